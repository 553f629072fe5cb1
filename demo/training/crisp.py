"""The few-step model's last phase: what it draws becomes sound, and its own earlier steps no longer lead it astray.

New pairs of a noise and the teacher's guided image, at a CFG that suits the teacher, which the world has drawn again.
Half of the batches start where the student's own few steps lead, with the velocity from there to the pair's image as
target, so that it learns to make good what its earlier steps have done (as in DAgger: Ross, Gordon and Bagnell 2011).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip

from ..loader import DISTILLED_FILE, MMDIT_FILE
from . import mmdit
from .distil import captions_of_pairs, guided, sampling_levels
from .latents import Conditionings
from .loop import Schedule, train
from .mmdit import BATCH, SHORT, correction_loss, levels, velocity_loss
from .pairs import Make, made_pairs
from .places import continued
from .redraw import Redrawn

PAIRS, CFG = 2_560, 3.0
STEPS, WHOLE = 700, 560
STUDENT_STEPS = (4, 4, 6, 8)  # numbers of steps that it learns to make good, the first one most
_CHUNK = 64


def make_pairs(folder: Path) -> tuple[Tensor, Tensor]:
    """Noises and the latents of what the teacher meant by them, both `[PAIRS, 16, 16, 16]` fp16."""
    captions = captions_of_pairs()[:PAIRS]

    def teacher() -> Make:
        model, conditionings = continued(mmdit.build(), MMDIT_FILE).eval(), Conditionings()
        redrawn = Redrawn()

        def make(noise: Tensor, own: slice) -> dict[str, Tensor]:
            made = guided(model, noise, captions[own], conditionings, CFG)
            return {"clean": redrawn(made, captions[own]).half()}

        return make

    found = made_pairs(folder / "pairs_crisp.safetensors", PAIRS, _CHUNK, 71, teacher)
    return found["noise"], found["clean"]


def train_distilled_crisp(folder: Path) -> nn.Module:
    torch.manual_seed(85)
    noises, cleans = make_pairs(folder)
    captions, conditionings = captions_of_pairs(), Conditionings()

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(PAIRS, size=BATCH)
        context, pooled = conditionings.encode([captions[k] for k in chosen])
        clean, noise = (part[chosen].float().to(DEVICE) for part in (cleans, noises))
        if rng.random() < 0.5:
            return on_policy_loss(model, clean, noise, context if step > WHOLE else context[:, :SHORT], pooled, rng)
        sigma = levels(rng, layout=True)
        sigma[: BATCH // 8] = 1.0  # with four steps, a quarter of the work is the one that starts at pure noise
        return velocity_loss(model, clean, noise, context, pooled, sigma, rng, step > WHOLE)

    student = continued(mmdit.build(), DISTILLED_FILE)
    schedule = Schedule(STEPS, 8e-4, warmup=30, average=0.99)
    return train("distilled_crisp", student, loss_at, schedule, folder, seed=86)


def on_policy_loss(
    model: nn.Module, clean: Tensor, noise: Tensor, context: Tensor, pooled: Tensor, rng: np.random.Generator
) -> Tensor:
    """Mean squared error of the velocity towards `clean` from where some of the model's own steps have led, in the
    scale of images: what is left of the noise counts for less the later the step."""

    def velocity(x: Tensor, sigma: float) -> Tensor:
        with autocast():
            return model(x, torch.full((len(x),), sigma * 1000, device=DEVICE), context=context, y=pooled).float()

    x, sigma = own_state(velocity, noise, rng, STUDENT_STEPS)
    level = torch.full((len(x),), sigma, device=DEVICE)
    return correction_loss(model, x, clean, level, context, pooled)


@torch.no_grad()
def own_state(
    velocity: Callable[[Tensor, float], Tensor], x: Tensor, rng: np.random.Generator, counts: Sequence[int]
) -> tuple[Tensor, float]:
    """Where some of a model's own Euler steps lead from the noise `x`, and the noise level there.

    counts: numbers of steps that sampling takes, of which one is drawn.
    """
    sigmas = sampling_levels(int(rng.choice(counts)))
    taken = int(rng.integers(len(sigmas) - 1))
    for sigma, following in pairwise(sigmas[: taken + 1]):
        x = x + (following - sigma) * velocity(x, sigma)
    return x, sigmas[taken]
