"""The few-step model: the MMDiT's guided images learned along straight lines, so that CFG 1 and few steps suffice.

Pairs of a noise and the image that the teacher makes of it at CFG 6; the student then learns the velocity of the
straight line between the two (reflow with guidance built in: Liu et al. 2022, "Flow Straight and Fast"; Liu et al.
2023, "InstaFlow"). It inherits the guided teacher's low diversity, as distilled models do.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip

from .latents import Conditionings
from .loop import Schedule, train
from .mmdit import BATCH, SHIFT, SHORT, levels, velocity_loss
from .pairs import Make, made_pairs
from .places import captions_by_turns, train_mmdit_places

PAIRS, CFG, TEACHER_STEPS = 4_096, 6.0, 12
STEPS = 1_000
_CHUNK = 64


def captions_of_pairs() -> list[str]:
    """The caption of each pair."""
    return captions_by_turns(70, PAIRS)


def make_pairs(folder: Path) -> tuple[Tensor, Tensor]:
    """Noises and the teacher's latents, both `[PAIRS, 16, 16, 16]` fp16."""

    def teacher() -> Make:
        model, conditionings, captions = train_mmdit_places(folder).eval(), Conditionings(), captions_of_pairs()
        return lambda noise, own: {"clean": guided(model, noise, captions[own], conditionings, CFG).half()}

    found = made_pairs(folder / "pairs.safetensors", PAIRS, _CHUNK, 71, teacher)
    return found["noise"], found["clean"]


def sampling_levels(steps: int) -> list[float]:
    """Noise levels of ComfyUI's scheduler "simple", from 1 to 0."""
    even = torch.linspace(1, 0, steps + 1)
    return (SHIFT * even / (1 + (SHIFT - 1) * even)).tolist()


def guided(teacher: nn.Module, x: Tensor, captions: list[str], conditionings: Conditionings, cfg: float) -> Tensor:
    """The teacher's latents `[N, 16, 16, 16]` of noises `x`: Euler steps with guidance."""
    context, pooled = conditionings.encode(captions + [""] * len(captions))
    for sigma, following in pairwise(sampling_levels(TEACHER_STEPS)):
        times = torch.full((2 * len(x),), sigma * 1000, device=DEVICE)
        with autocast():
            both = teacher(torch.cat([x, x]), times, context=context[:, :SHORT], y=pooled).float()
        stated, empty = both.chunk(2)
        x = x + (following - sigma) * (empty + cfg * (stated - empty))
    return x


def train_distilled(folder: Path) -> nn.Module:
    torch.manual_seed(80)
    noises, cleans = make_pairs(folder)
    captions, conditionings = captions_of_pairs(), Conditionings()

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(PAIRS, size=BATCH)
        context, pooled = conditionings.encode([captions[k] for k in chosen])
        clean, noise = (part[chosen].float().to(DEVICE) for part in (cleans, noises))
        sigma = levels(rng, layout=True)
        sigma[: BATCH // 8] = 1.0  # with four steps, a quarter of the work is the one that starts at pure noise
        return velocity_loss(model, clean, noise, context, pooled, sigma, rng, step > 0.8 * STEPS)

    student = copy.deepcopy(train_mmdit_places(folder)).requires_grad_(True)
    return train("distilled", student, loss_at, Schedule(STEPS, 6e-4), folder, seed=81)
