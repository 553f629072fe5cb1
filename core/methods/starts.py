"""Better initial noises without any gradient: wider, with more low frequencies, and the most different of several.

What many do in place of Contrastive Noise Optimization, and what may go before it. "Wide" noise is ours: its very
coarsest structure, which decides what goes where and in which tone, is larger than the noise of training has it. "Pink"
noise has the power spectrum 1 / f^exponent. Choosing: as in Scalable Group Inference, arXiv 2508.15773.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..require import require
from .coarse import Coarse
from .selection import farthest

WIDE_CELLS = 2  # blocks a side; at any size these are as many values, so that a factor means the same


def wide(noise: Tensor, factor: float) -> Tensor:
    """The noise `[B, C, H, W]` or `[B, C, T, H, W]` with the means of its 2 x 2 blocks `factor` times as large, each
    image's at its own length.

    1 is the noise itself. It moves each image away from what all images have in common, without knowing of any other.
    All frames of a video change alike: what would differ from frame to frame would flicker. Raises ValueError for a
    factor that is below 1 or not finite.
    """
    require(math.isfinite(factor) and factor >= 1, "wide", factor, "1 or more")
    if factor == 1:
        return noise
    own = noise.float()
    coarse = Coarse(own, WIDE_CELLS)
    means = coarse.of(own)
    if noise.ndim == 5:
        means = means.mean(2, keepdim=True)
    return _at_length_of(noise, own + coarse.spread((factor - 1) * means))


def pink(noise: Tensor, exponent: float) -> Tensor:
    """White noise `[..., H, W]` with the power spectrum 1 / f^exponent, each image's at its own length.

    0 is the white noise itself. The mean has no frequency, and is treated as one wave over the longer side. Raises
    ValueError for an exponent that is negative or not finite.
    """
    require(math.isfinite(exponent) and exponent >= 0, "pink", exponent, "0 or more")
    if exponent == 0:
        return noise
    height, width = noise.shape[-2:]
    rows = torch.fft.fftfreq(height, device=noise.device)[:, None]
    frequency = torch.hypot(rows, torch.fft.rfftfreq(width, device=noise.device)[None])
    frequency[0, 0] = 1 / max(height, width)
    spectrum = torch.fft.rfft2(noise.float()) * frequency ** (-exponent / 2)
    coloured = torch.fft.irfft2(spectrum, s=(height, width))
    return _at_length_of(noise, coloured)


def _at_length_of(noise: Tensor, changed: Tensor) -> Tensor:
    """What it was changed to, each image `[...]` of `[B, ...]` at the length that it had, in its own precision."""
    axes = tuple(range(1, noise.ndim))
    before, after = (torch.linalg.vector_norm(x.float(), dim=axes, keepdim=True) for x in (noise, changed))
    return (changed * (before / after)).to(noise.dtype)


def candidates(noise: Tensor, count: int) -> list[Tensor]:
    """The noise `[B, ...]` and count - 1 more of its kind, drawn by what the noise itself holds: the same noise has the
    same candidates. Raises ValueError for a count below 1."""
    require(count >= 1, "candidates", count, "1 or more")
    if count == 1:
        return [noise]
    digest = hashlib.sha256(noise.detach().float().cpu().contiguous().numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return [noise, *(torch.randn(noise.shape, generator=generator).to(noise) for _ in range(count - 1))]


def most_different(features: Tensor, alike: bool) -> list[tuple[int, int]]:
    """Whose noise each image is to have, as (candidate, image), of features `[K, N, D]` of K candidates for N images.

    The first image keeps its first candidate; each next one gets the one whose greatest cosine to those before is
    least, about the mean of all: one of its own, or, where the images differ by nothing but their noise (`alike`), any
    that is not taken.
    """
    if alike:
        return [divmod(place, features.shape[1]) for place in farthest(features.flatten(0, 1), features.shape[1])]
    unit = F.normalize(features - features.mean((0, 1)), dim=2)
    kept = [(0, 0)]
    nearest = torch.full_like(unit[..., 0], -torch.inf)  # the greatest cosine to those kept
    for image in range(1, unit.shape[1]):
        nearest = torch.maximum(nearest, unit @ unit[kept[-1]])
        kept.append((int(nearest[:, image].argmin()), image))
    return kept
