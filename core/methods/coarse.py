"""The coarse part of a noise: the means of a grid of cells, scaled so that white noise keeps its unit variance."""

from __future__ import annotations

import torch
from einops import einsum
from torch import Tensor


class Coarse:
    """The map between noises `[..., H, W]` and the means of `cells` x `cells` blocks of theirs.

    The rows of both matrices are orthonormal, so `spread` is the transpose of `of`, `of(spread(x)) == x`, and what
    `of` gives of white noise is white noise. A side shorter than `cells` has a cell for each value.
    """

    def __init__(self, like: Tensor, cells: int) -> None:
        self._rows, self._columns = (_means(length, min(cells, length)).to(like) for length in like.shape[-2:])

    def of(self, noise: Tensor) -> Tensor:
        """`[..., H, W]` to `[..., cells, cells]`."""
        return einsum(noise, self._rows, self._columns, "... h w, a h, b w -> ... a b")

    def spread(self, coarse: Tensor) -> Tensor:
        """`[..., cells, cells]` to `[..., H, W]`, alike within a block."""
        return einsum(coarse, self._rows, self._columns, "... a b, a h, b w -> ... h w")


def _means(length: int, cells: int) -> Tensor:
    """`[cells, length]`: row k is 1 / sqrt(n) on the n values of block k, else 0."""
    block = torch.arange(length) * cells // length
    inside = (block == torch.arange(cells)[:, None]).double()
    return inside / inside.sum(1, keepdim=True).sqrt()
