"""Diversity and adherence of a group of images, from features or attribute values alone.

Every feature-based score takes features `[N, D]` of N images of one prompt, and compares only with scores at equal N
in the same feature space.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_pairwise_similarity(features: Tensor) -> float:
    """MSS: mean cosine similarity over the pairs of different images, -1..1; lower is more diverse.

    Raises ValueError for fewer than two images.
    """
    unit = _unit(features)
    count = len(unit)
    if count < 2:
        raise ValueError(f"features has {count} rows; a pairwise similarity needs at least 2.")
    # The sum over all pairs is the squared length of the summed vectors.
    return ((unit.sum(0).square().sum() - count) / (count * (count - 1))).item()


def vendi_score(features: Tensor) -> float:
    """Vendi score: the effective number of different images, 1..N (Friedman & Dieng 2023, cosine kernel).

    exp of the Shannon entropy of the eigenvalues of K / N, where K is the matrix of cosine similarities.
    """
    unit = _unit(features)
    return _exponential_entropy(torch.linalg.eigvalsh(unit @ unit.T / len(unit)))


def effective_number(values: Iterable[object]) -> float:
    """Effective number of different values: exp of the Shannon entropy of their shares; k equally common ones give k.

    Raises ValueError for no values.
    """
    counts: dict[object, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    if not counts:
        raise ValueError("values is empty; an effective number needs at least 1 value.")
    shares = torch.tensor(list(counts.values()), dtype=torch.float64)
    return _exponential_entropy(shares / shares.sum())


def _unit(features: Tensor) -> Tensor:
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"features has shape {list(features.shape)}; it must be [N, D] with N of at least 1.")
    if not torch.isfinite(features).all():
        raise ValueError("features has values that are not finite.")
    lengths = features.double().norm(dim=1)
    if (lengths == 0).any():
        raise ValueError("features has a row of zeros, which has no direction and so no cosine similarity.")
    return F.normalize(features.double(), dim=1)


def _exponential_entropy(shares: Tensor) -> float:
    """exp(-sum p ln p) of shares that sum to 1; rounding errors below zero count as zero."""
    positive = shares.clamp(min=0)
    return torch.special.entr(positive).sum().exp().item()
