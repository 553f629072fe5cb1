"""The few-step model's last phase: what it draws becomes sound, and its own earlier steps no longer lead it astray.

New pairs of a noise and the teacher's guided image, at the CFG that suits the teacher best. Those whose image is
broken, or does not show what its caption says, are left out: the world knows which they are. Half of the batches start
where the student's own few steps lead, with the velocity from there to the pair's image as target, so that it learns to
make good what its earlier steps have done (as in DAgger: Ross, Gordon and Bagnell 2011).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip

from ..fidelity import Judge
from ..loader import DISTILLED_FILE, MMDIT_FILE, VAE_FILE, WEIGHTS
from ..scorer import Scorer, satisfies
from ..world.captions import stated_in
from ..world.prompts import Prompt
from . import mmdit, vae
from .distil import captions_of_pairs, guided, sampling_levels
from .latents import Conditionings
from .loop import Schedule, train
from .mmdit import BATCH, SHORT, levels, velocity_loss
from .pairs import Make, made_pairs
from .places import continued

PAIRS, CFG = 2_560, 3.0
STEPS, WHOLE = 420, 330
STUDENT_STEPS = (4, 4, 6, 8)  # numbers of steps that it learns to make good, the first one most
_CHUNK = 64


@dataclass(frozen=True)
class Pairs:
    """Noises and the teacher's latents of them, `[N, 16, 16, 16]` fp16, and captions."""

    noise: Tensor
    clean: Tensor
    captions: list[str]


def make_pairs(folder: Path) -> Pairs:
    """The pairs whose image is sound and shows what its caption says."""
    captions = captions_of_pairs()[:PAIRS]

    def teacher() -> Make:
        model, conditionings, selection = continued(mmdit.build(), MMDIT_FILE).eval(), Conditionings(), Selection()

        def make(noise: Tensor, own: slice) -> dict[str, Tensor]:
            clean = guided(model, noise, captions[own], conditionings, CFG)
            return {"clean": clean.half(), "good": selection(clean, captions[own])}

        return make

    found = made_pairs(folder / "pairs_sound.safetensors", PAIRS, _CHUNK, 71, teacher)
    good = found["good"]
    return Pairs(found["noise"][good], found["clean"][good], [captions[k] for k in good.nonzero()[:, 0].tolist()])


class Selection:
    """Tells which latents are of images that are sound and show what their captions say."""

    def __init__(self) -> None:
        self._vae = vae.build().eval()
        self._vae.load_state_dict(load_file(WEIGHTS / VAE_FILE))
        self._scorer, self._judge = Scorer.load(), Judge.load()

    @torch.no_grad()
    def __call__(self, latents: Tensor, captions: list[str]) -> Tensor:
        """Bool `[N]` of latents `[N, 16, 16, 16]`."""
        decoded = self._vae.taesd_decoder(latents.to(memory_format=torch.channels_last)).float()
        images = (255 * decoded.clamp(0, 1)).permute(0, 2, 3, 1).cpu().numpy().astype("uint8")
        read = self._scorer.read(images)
        sound = ~self._judge.broken(self._judge.residuals(images, read))
        shown = [satisfies(one, Prompt(text, stated_in(text))) for one, text in zip(read, captions, strict=True)]
        return sound & torch.tensor(shown)


def train_distilled_crisp(folder: Path) -> nn.Module:
    torch.manual_seed(85)
    pairs, conditionings = make_pairs(folder), Conditionings()

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(len(pairs.captions), size=BATCH)
        context, pooled = conditionings.encode([pairs.captions[k] for k in chosen])
        clean, noise = (part[chosen].float().to(DEVICE) for part in (pairs.clean, pairs.noise))
        if rng.random() < 0.5:
            return on_policy_loss(model, clean, noise, context if step > WHOLE else context[:, :SHORT], pooled, rng)
        sigma = levels(rng, layout=True)
        sigma[: BATCH // 8] = 1.0  # with four steps, a quarter of the work is the one that starts at pure noise
        return velocity_loss(model, clean, noise, context, pooled, sigma, rng, step > WHOLE)

    student = continued(mmdit.build(), DISTILLED_FILE)
    schedule = Schedule(STEPS, 5e-4, warmup=30, average=0.99)
    return train("distilled_crisp", student, loss_at, schedule, folder, seed=86)


def on_policy_loss(
    model: nn.Module, clean: Tensor, noise: Tensor, context: Tensor, pooled: Tensor, rng: np.random.Generator
) -> Tensor:
    """Mean squared error of the velocity towards `clean` from where some of the model's own steps have led, in the
    scale of images: what is left of the noise counts for less the later the step."""
    sigmas = sampling_levels(int(rng.choice(STUDENT_STEPS)))
    taken = int(rng.integers(len(sigmas) - 1))

    def velocity(x: Tensor, sigma: float) -> Tensor:
        with autocast():
            return model(x, torch.full((len(x),), sigma * 1000, device=DEVICE), context=context, y=pooled).float()

    x = noise
    with torch.no_grad():
        for sigma, following in pairwise(sigmas[: taken + 1]):
            x = x + (following - sigma) * velocity(x, sigma)
    sigma = sigmas[taken]
    return (velocity(x, sigma) - (x - clean) / sigma).square().mean() * sigma**2
