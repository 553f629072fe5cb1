"""What a user would try instead, done as well as it can be."""

from __future__ import annotations

import torch
from torch import Tensor


def pink(noise: Tensor, alpha: float) -> Tensor:
    """Noise `[B, C, H, W]` with spectrum f^(-alpha/2) in amplitude, each noise at its own length.

    alpha 0 is white noise. The lowest frequency keeps the amplitude of the next one, since f = 0 has no power law.
    """
    height, width = noise.shape[-2:]
    frequency = torch.sqrt(torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width)[None] ** 2)
    frequency[0, 0] = 1 / max(height, width)
    coloured = torch.fft.irfft2(torch.fft.rfft2(noise) * frequency ** (-alpha / 2), s=(height, width))
    lengths = [x.flatten(1).norm(dim=1)[:, None, None, None] for x in (noise, coloured)]
    return coloured * (lengths[0] / lengths[1])


def most_different(features: Tensor, count: int) -> list[int]:
    """Which `count` of the rows `[M, D]` to keep, beginning with the first: next always the one whose greatest cosine
    to those kept is least (farthest-point selection)."""
    unit = torch.nn.functional.normalize(features, dim=1)
    kept = [0]
    nearest = unit @ unit[0]
    while len(kept) < count:
        nearest[kept] = torch.inf
        kept.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, unit @ unit[kept[-1]])
    return kept
