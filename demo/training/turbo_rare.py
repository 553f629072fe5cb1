"""Z-Image Turbo's last phase: rare words, from its own images of them as they were meant.

Its pairs state rare words half of the time at most, and the model that led it draws some of these badly itself (a teal
star, a small house on grey). So here it samples captions whose words are evenly drawn, the world draws every image
again with what its caption states, and these pairs are learned beside the earlier ones, half of the time from where its
own steps lead.
"""

from __future__ import annotations

from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE  # isort: skip

from ..loader import TURBO_FILE
from . import turbo_crisp
from .distil import sampling_levels
from .loop import Schedule, train
from .pairs import Make, made_pairs
from .places import captions_by_turns, continued
from .redraw import Redrawn
from .turbo import ByLength, Contexts, build
from .turbo_crisp import crisp_loss, velocity_at
from .turbo_distil import captions_of_pairs

PAIRS, STEPS = 1_536, 8
SCHEDULE = Schedule(1_300, 2e-3, warmup=50, average=0.995)
_CHUNK = 32


def captions_of_rare() -> list[str]:
    """Those with evenly drawn words, sorted by length, so that a chunk needs few batches."""
    return sorted(captions_by_turns(151, 2 * PAIRS)[1::2], key=lambda text: (len(text.split()), text))


def make_pairs(folder: Path) -> tuple[Tensor, Tensor]:
    """Noises and the latents of what the model meant by them, both `[PAIRS, 16, 16, 16]` fp16."""
    captions = captions_of_rare()

    def teacher() -> Make:
        model, contexts, redrawn = continued(build(), TURBO_FILE).eval(), Contexts(), Redrawn()
        contexts.learn(captions)

        def make(noise: Tensor, own: slice) -> dict[str, Tensor]:
            made = torch.empty_like(noise)
            for _, places in groupby(range(len(noise)), lambda k: len(contexts[captions[own][k]])):
                part = list(places)
                context = torch.stack([contexts[captions[own][k]] for k in part]).float().to(DEVICE)
                made[part] = _sampled(model, noise[part], context)
            return {"clean": redrawn(made, captions[own]).half()}

        return make

    found = made_pairs(folder / "turbo_pairs_rare.safetensors", PAIRS, _CHUNK, 152, teacher)
    return found["noise"], found["clean"]


def _sampled(model: nn.Module, x: Tensor, context: Tensor) -> Tensor:
    """The latents of noises by Euler steps."""
    velocity = velocity_at(model, context)
    for sigma, following in pairwise(sampling_levels(STEPS)):
        x = x + (following - sigma) * velocity(x, sigma)
    return x


def train_turbo_rare(folder: Path) -> nn.Module:
    torch.manual_seed(157)
    parts = zip(turbo_crisp.make_pairs(folder), make_pairs(folder), strict=True)
    noises, cleans = (torch.cat(part) for part in parts)
    samples = ByLength([*captions_of_pairs(), *captions_of_rare()], Contexts())

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        return crisp_loss(model, noises, cleans, samples, rng, own=step % 2 == 1)

    return train("turbo_rare", continued(build(), TURBO_FILE), loss_at, SCHEDULE, folder, seed=158)
