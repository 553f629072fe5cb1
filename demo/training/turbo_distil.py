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
from ..world.attributes import sample_scene
from ..world.captions import caption, random_caption
from . import mmdit
from .distil import sampling_levels
from .latents import Conditionings
from .loop import Schedule, train
from .mmdit import SHIFT, SHORT
from .pairs import Make, made_pairs
from .places import continued, evenly_stated_scene
from .turbo import BATCH, ByLength, Contexts, train_turbo_base, velocity_error

PAIRS, STEPS = 1_792, 6
STUDENT = Schedule(1_550, 2e-3, warmup=50, average=0.995)
_CHUNK = 32


def captions_of_pairs() -> list[str]:
    """The caption of each pair: by turns of a scene as the world draws it, and with evenly drawn words."""
    rng = np.random.default_rng(140)
    captions = []
    for k in range(PAIRS):
        scene, stated = evenly_stated_scene(rng)
        captions.append(caption(scene, stated, rng) if k % 2 else random_caption(sample_scene(rng), rng))
    return captions


def make_turbo_pairs(folder: Path) -> tuple[Tensor, Tensor]:
    """Noises and their latents, both `[PAIRS, 16, 16, 16]` fp16."""

    def teacher() -> Make:
        model, conditionings = continued(mmdit.build(), DISTILLED_FILE).eval(), Conditionings()
        captions = captions_of_pairs()

        def make(noise: Tensor, own: slice) -> dict[str, Tensor]:
            context, pooled = conditionings.encode(captions[own])
            return {"clean": sampled(model, noise, context[:, :SHORT], pooled).half()}

        return make

    found = made_pairs(folder / "turbo_pairs.safetensors", PAIRS, _CHUNK, 141, teacher)
    return found["noise"], found["clean"]


def sampled(teacher: nn.Module, x: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
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
        # Levels as eight steps visit them, one from each of BATCH equal parts; the first step is at pure noise.
        even = torch.from_numpy((rng.permutation(BATCH) + rng.random(BATCH)) / BATCH).float()
        even[: BATCH // 8] = 1.0
        sigma = (SHIFT * even / (1 + (SHIFT - 1) * even)).to(DEVICE)
        level = sigma.view(-1, 1, 1, 1)
        return velocity_error(model, (1 - level) * clean + level * noise, sigma, context, noise - clean)

    student = copy.deepcopy(train_turbo_base(folder)).requires_grad_(True)
    return train("turbo", student, loss_at, STUDENT, folder, seed=143)
