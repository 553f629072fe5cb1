"""Z-Image Turbo's last phase: rare words, from its own images of them as they were meant.

Its pairs state rare words half of the time at most, and the model that led it draws some of these badly itself (a teal
star, a small house on grey). So here it samples captions whose words are evenly drawn, the world draws every image
again with what its caption states, and these pairs are learned beside the earlier ones, half of the time from where its
own steps lead. What it then still draws badly is looked for again, twice, with new captions, and counts for more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import comfy_boot  # noqa: F401 # isort: skip - this makes ComfyUI importable

from ..loader import TURBO_FILE
from . import turbo_crisp
from .distil import sampling_levels
from .loop import Schedule, train
from .pairs import Make, made_pairs, with_the_worst_again
from .places import captions_by_turns, continued
from .redraw import Redrawn
from .turbo import ByLength, Contexts, build
from .turbo_crisp import crisp_loss, velocity_at
from .turbo_distil import captions_of_pairs

PAIRS, STEPS = 1_536, 8
SCHEDULE = Schedule(1_300, 2e-3, warmup=50, average=0.995)
AGAIN_SCHEDULE = Schedule(1_500, 1.5e-3, warmup=50, average=0.995)
MORE_PAIRS, MORE_SCHEDULE = 2_048, Schedule(1_800, 1.5e-3, warmup=50, average=0.995)
_SEEDS, _AGAIN_SEEDS, _MORE_SEEDS = (151, 152), (251, 252), (351, 352)  # of captions and noises
_CHUNK = 32


@dataclass(frozen=True)
class Rare:
    """Captions of rare words, noises and the latents of what the model meant by them, both `[N, 16, 16, 16]` fp16.

    error: `[N]`, mean squared difference between what the model made and what it meant.
    """

    captions: list[str]
    noises: Tensor
    cleans: Tensor
    error: Tensor


def captions_of_rare(seed: int, count: int) -> list[str]:
    """Those with evenly drawn words, sorted by length, so that a chunk needs few batches."""
    return sorted(captions_by_turns(seed, 2 * count)[1::2], key=lambda text: (len(text.split()), text))


def make_pairs(folder: Path) -> Rare:
    return _pairs(folder / "turbo_pairs_rare.safetensors", PAIRS, *_SEEDS)


def make_pairs_again(folder: Path) -> Rare:
    """Others, by the weights that learned from the first."""
    return _pairs(folder / "turbo_pairs_rare_again.safetensors", PAIRS, *_AGAIN_SEEDS)


def make_more_pairs(folder: Path) -> Rare:
    """More of them, by the weights that learned from both."""
    return _pairs(folder / "turbo_pairs_rare_more.safetensors", MORE_PAIRS, *_MORE_SEEDS)


def _pairs(path: Path, count: int, caption_seed: int, seed: int) -> Rare:
    captions = captions_of_rare(caption_seed, count)

    def teacher() -> Make:
        model, contexts, redrawn = continued(build(), TURBO_FILE).eval(), Contexts(), Redrawn()
        contexts.learn(captions)

        def make(noise: Tensor, own: slice) -> dict[str, Tensor]:
            made = torch.empty_like(noise)
            for part, context in contexts.together(captions[own]):
                made[part] = _sampled(model, noise[part], context)
            clean = redrawn(made, captions[own])
            return {"clean": clean.half(), "error": (made - clean).square().mean((1, 2, 3))}

        return make

    found = made_pairs(path, count, _CHUNK, seed, teacher)
    return Rare(captions, found["noise"], found["clean"], found["error"])


def _sampled(model: nn.Module, x: Tensor, context: Tensor) -> Tensor:
    """The latents of noises by Euler steps."""
    velocity = velocity_at(model, context)
    for sigma, following in pairwise(sampling_levels(STEPS)):
        x = x + (following - sigma) * velocity(x, sigma)
    return x


def train_turbo_rare(folder: Path) -> nn.Module:
    torch.manual_seed(157)
    return _trained("turbo_rare", folder, [make_pairs(folder)], SCHEDULE, seed=158)


def train_turbo_rare_again(folder: Path) -> nn.Module:
    torch.manual_seed(257)
    second = make_pairs_again(folder)
    parts = [make_pairs(folder), *with_the_worst_again(second)]
    return _trained("turbo_rare_again", folder, parts, AGAIN_SCHEDULE, seed=258)


def train_turbo_rare_more(folder: Path) -> nn.Module:
    torch.manual_seed(357)
    return _trained("turbo_rare_more", folder, with_the_worst_again(make_more_pairs(folder)), MORE_SCHEDULE, seed=358)


def _trained(name: str, folder: Path, rare: Sequence[Rare], schedule: Schedule, seed: int) -> nn.Module:
    """The model after a schedule on pairs of rare words and on those of the phase before."""
    noises, cleans = turbo_crisp.make_pairs(folder)
    noises = torch.cat([noises, *(part.noises for part in rare)])
    cleans = torch.cat([cleans, *(part.cleans for part in rare)])
    samples = ByLength([*captions_of_pairs(), *(text for part in rare for text in part.captions)], Contexts())

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        return crisp_loss(model, noises, cleans, samples, rng, own=step % 2 == 1)

    return train(name, continued(build(), TURBO_FILE), loss_at, schedule, folder, seed)
