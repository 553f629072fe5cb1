"""Which finished images of a batch to keep, by the model that made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher

from ..methods.cno import pool
from ..methods.selection import dropped, keepers
from ..require import require
from .rarity import in_digits, rarity_of

DROP, RENOISE, NOISES = 0.05, 0.3, 3
_WINDOW = 16  # latents are averaged to a grid of so many cells a side before they are compared


@dataclass(frozen=True)
class Selection:
    """Places in the batch, counted from 0: what is kept, in order; what was dropped as badly made; and what as too like
    the others. rarity: of every image, see `rarity_of`."""

    kept: list[int]
    bad: list[int]
    alike: list[int]
    rarity: list[float]


def select(
    model: ModelPatcher,
    positive: list,
    latent: dict[str, Any],
    keep: int,
    drop: float = DROP,
    seed: int = 0,
    renoise: float = RENOISE,
    noises: int = NOISES,
    chunk_size: int = -1,
    after_noise: Callable[[], None] = lambda: None,
) -> Selection:
    """`keep` images of a latent: without the share `drop` that the model leads furthest away from when they are noised
    again (the minority objective of Um and Ye, here as a mark of what went wrong), those that differ most.

    renoise, noises, chunk_size, after_noise: see `rarity_of`. Nothing given is changed. Where all are kept nothing is
    measured. Raises ValueError for a value that is not allowed, and what `rarity_of` raises.
    """
    samples = latent["samples"]
    count = len(samples)
    require(1 <= keep <= count, "keep", keep, f"from 1 to the {count} images of this latent")
    if keep == count:
        return Selection(list(range(count)), [], [], [])
    values = rarity_of(model, positive, latent, seed, renoise, noises, chunk_size, after_noise)
    rarity = [float(value) for value in in_digits(values)]
    kept = keepers(rarity, pool(samples.float(), _WINDOW).flatten(1), keep, drop)
    bad = sorted(dropped(rarity, keep, drop))
    alike = [k for k in range(count) if k not in kept and k not in bad]
    return Selection(kept, bad, alike, rarity)
