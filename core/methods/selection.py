"""Which of several images to keep: drop those that came out badly, then keep those that differ most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..require import require


def farthest(features: Tensor, count: int, first: int = 0) -> list[int]:
    """`count` of the rows `[M, D]`, beginning with the `first`: next always the one whose greatest cosine to those
    before is least, about the mean of all (farthest-point selection). Raises ValueError for a count beyond M."""
    require(0 <= count <= len(features), "count", count, f"from 0 to the {len(features)} there are")
    unit = F.normalize(features - features.mean(0), dim=1)
    kept = [first][:count]
    nearest = torch.full_like(unit[:, 0], -torch.inf)  # the greatest cosine to those kept
    while len(kept) < count:
        nearest = torch.maximum(nearest, unit @ unit[kept[-1]])
        nearest[kept[-1]] = torch.inf  # taken
        kept.append(int(nearest.argmin()))
    return kept


def dropped(rarity: Sequence[float], keep: int, drop: float) -> list[int]:
    """The images to drop: those of the greatest rarity, a share `drop` of all and at least one, but none of the last
    `keep`; with a share of 0 none.

    Of equal ones the later are dropped. Raises ValueError for a value that is not allowed.
    """
    require(1 <= keep <= len(rarity), "keep", keep, f"from 1 to the {len(rarity)} images there are")
    require(0 <= drop < 1, "drop", drop, "from 0 to below 1")
    share = max(int(drop * len(rarity) + 0.5), 1) if drop > 0 else 0
    count = min(share, len(rarity) - keep)
    order = sorted(range(len(rarity)), key=lambda k: rarity[k])
    return order[len(order) - count :]


def keepers(rarity: Sequence[float], features: Tensor, keep: int, drop: float) -> list[int]:
    """The places of `keep` images, in order: of those that are not `dropped` the ones that differ most, beginning with
    the one of the least rarity.

    rarity: of each image, see `methods.minority.rarity`. features: `[B, D]`, what images differ in.
    """
    out = set(dropped(rarity, keep, drop))
    left = [k for k in range(len(rarity)) if k not in out]
    first = min(range(len(left)), key=lambda place: rarity[left[place]])
    return sorted(left[place] for place in farthest(features[left], keep, first))
