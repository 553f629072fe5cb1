"""The last phase of the demo's Z-Image Turbo, as the few-step model's: what was meant, and its own steps as starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip

from ..loader import DISTILLED_FILE, TURBO_FILE
from . import mmdit
from .crisp import own_state
from .latents import Conditionings
from .loop import Schedule, train
from .mmdit import SHIFT, SHORT
from .pairs import Make, made_pairs
from .places import continued
from .redraw import Redrawn
from .turbo import ByLength, Contexts, build, velocity_error
from .turbo_distil import PAIRS, captions_of_pairs, sampled

BATCH = 32
SCHEDULE = Schedule(1_200, 2e-3, warmup=50, average=0.995)
STUDENT_STEPS = (6, 8, 8, 10)
_CHUNK = 32


def make_pairs(folder: Path) -> tuple[Tensor, Tensor]:
    """Noises and the latents of what the few-step model meant by them, both `[PAIRS, 16, 16, 16]` fp16."""

    def teacher() -> Make:
        model, conditionings = continued(mmdit.build(), DISTILLED_FILE).eval(), Conditionings()
        captions, redrawn = captions_of_pairs(), Redrawn()

        def make(noise: Tensor, own: slice) -> dict[str, Tensor]:
            context, pooled = conditionings.encode(captions[own])
            return {"clean": redrawn(sampled(model, noise, context[:, :SHORT], pooled), captions[own]).half()}

        return make

    found = made_pairs(folder / "turbo_pairs_crisp.safetensors", PAIRS, _CHUNK, 141, teacher)
    return found["noise"], found["clean"]


def train_turbo_crisp(folder: Path) -> nn.Module:
    torch.manual_seed(145)
    noises, cleans = make_pairs(folder)
    samples = ByLength(captions_of_pairs(), Contexts())

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        chosen, context = samples.batch(rng, BATCH)
        clean, noise = (part[chosen].float().to(DEVICE) for part in (cleans, noises))
        if step % 2:
            return _on_policy_loss(model, clean, noise, context, rng)
        even = torch.from_numpy((rng.permutation(BATCH) + rng.random(BATCH)) / BATCH).float()
        even[: BATCH // 8] = 1.0
        sigma = (SHIFT * even / (1 + (SHIFT - 1) * even)).to(DEVICE)
        level = sigma.view(-1, 1, 1, 1)
        return velocity_error(model, (1 - level) * clean + level * noise, sigma, context, noise - clean)

    return train("turbo_crisp", continued(build(), TURBO_FILE), loss_at, SCHEDULE, folder, seed=146)


def _on_policy_loss(
    model: nn.Module, clean: Tensor, noise: Tensor, context: Tensor, rng: np.random.Generator
) -> Tensor:
    """As `crisp.on_policy_loss`."""

    def velocity(x: Tensor, sigma: float) -> Tensor:
        with autocast():
            times = torch.full((len(x),), sigma, device=DEVICE)
            return model(x, times, context=context, num_tokens=context.shape[1]).float()

    x, sigma = own_state(velocity, noise, rng, STUDENT_STEPS)
    level = torch.full((len(x),), sigma, device=DEVICE)
    return velocity_error(model, x, level, context, (x - clean) / sigma) * sigma**2
