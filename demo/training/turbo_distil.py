"""The demo's Z-Image Turbo: guided images learned along straight lines, for eight steps at CFG 1.

Pairs of a noise and the image that the guidance-distilled MMDiT makes of it. Its own teacher, guided, is what taught
the student's teacher too, so that the two agree about which image belongs to which noise; and its images are cleaner.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip

from ..loader import DISTILLED_FILE
from . import mmdit
from .distil import sampling_levels
from .latents import Conditionings
from .loop import Schedule, train
from .mmdit import SHIFT, SHORT
from .pairs import Make, made_pairs
from .places import captions_by_turns, continued
from .turbo import BATCH, ByLength, Contexts, train_turbo_base, velocity_error

PAIRS, PAIRS_SEED, STEPS = 1_792, 141, 6
STUDENT = Schedule(1_550, 2e-3, warmup=50, average=0.995)
_CHUNK = 32


def captions_of_pairs() -> list[str]:
    """The caption of each pair."""
    return captions_by_turns(140, PAIRS)


def make_turbo_pairs(folder: Path) -> tuple[Tensor, Tensor]:
    """Noises and their latents, both `[PAIRS, 16, 16, 16]` fp16."""

    def teacher() -> Make:
        model, conditionings = continued(mmdit.build(), DISTILLED_FILE).eval(), Conditionings()
        captions = captions_of_pairs()

        def make(noise: Tensor, own: slice) -> dict[str, Tensor]:
            context, pooled = conditionings.encode(captions[own])
            return {"clean": _sampled(model, noise, context[:, :SHORT], pooled).half()}

        return make

    found = made_pairs(folder / "turbo_pairs.safetensors", PAIRS, _CHUNK, PAIRS_SEED, teacher)
    return found["noise"], found["clean"]


def _sampled(teacher: nn.Module, x: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
    """The latents of noises by Euler steps on the shifted schedule."""
    for sigma, following in pairwise(sampling_levels(STEPS)):
        times = torch.full((len(x),), sigma * 1000, device=DEVICE)
        with autocast():
            x = x + (following - sigma) * teacher(x, times, context=context, y=pooled).float()
    return x


def train_turbo(folder: Path) -> nn.Module:
    torch.manual_seed(142)
    noises, cleans = make_turbo_pairs(folder)
    samples = ByLength(captions_of_pairs(), Contexts())

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        chosen, context = samples.batch(rng, BATCH)
        clean, noise = (part[chosen].float().to(DEVICE) for part in (cleans, noises))
        return line_error(model, clean, noise, context, rng)

    student = copy.deepcopy(train_turbo_base(folder)).requires_grad_(True)
    return train("turbo", student, loss_at, STUDENT, folder, seed=143)


def line_error(model: nn.Module, clean: Tensor, noise: Tensor, context: Tensor, rng: np.random.Generator) -> Tensor:
    """Mean squared error of the velocity along the straight lines between noises and latents, `[N, 16, 16, 16]`."""
    # Levels as eight steps visit them, one from each of N equal parts; the first step is at pure noise.
    count = len(clean)
    even = torch.from_numpy((rng.permutation(count) + rng.random(count)) / count).float()
    even[: count // 8] = 1.0
    sigma = (SHIFT * even / (1 + (SHIFT - 1) * even)).to(DEVICE)
    level = sigma.view(-1, 1, 1, 1)
    return velocity_error(model, (1 - level) * clean + level * noise, sigma, context, noise - clean)
