"""What the rows of a frontier say together: who has more diversity at the same quality, and by how much.

Rows of one name are a curve; every curve begins at the baseline, which is each method with its knob at 0. Between two
neighbours on a curve lies what a setting between theirs would give, taken as a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .intervals import statistic_interval

# The fixed corner of the hypervolume: every second image good, and no diversity.
REFERENCE = (0.5, 1.0)
POINTS_LESS = 0.01  # "at the baseline's quality less one point"
_LEAST_GAIN = 0.01  # a rival that gains nothing would make any ratio infinite
Row = Mapping[str, Any]


def values(row: Row, name: str, prompts: np.ndarray | None = None) -> float:
    """The mean over prompts, or over those of a replicate."""
    own = np.asarray(row["per_prompt"][name])
    return float((own if prompts is None else own[prompts]).mean())


def point(row: Row, prompts: np.ndarray | None = None) -> tuple[float, float]:
    """Good share and Vendi."""
    return values(row, "good_share", prompts), values(row, "vendi", prompts)


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float] = REFERENCE) -> float:
    """Area that is dominated by points (good share, Vendi) and lies above the reference."""
    area, best = 0.0, reference[1]
    for good, vendi in sorted(points, reverse=True):
        if good > reference[0] and vendi > best:
            area += (good - reference[0]) * (vendi - best)
            best = vendi
    return area


def best_at(points: Sequence[tuple[float, float]], quality: float) -> float:
    """The greatest Vendi on the line through the points, in the order of their Vendi, with a good share of at least
    `quality`; minus infinity where there is none."""
    ordered = sorted(points, key=lambda one: one[1])
    found = [vendi for good, vendi in ordered if good >= quality]
    for (a, x), (b, y) in pairwise(ordered):
        if (a - quality) * (b - quality) < 0:
            found.append(x + (y - x) * (quality - a) / (b - a))
    return max(found, default=-np.inf)


@dataclass(frozen=True)
class Family:
    """Curves of one kind: `name` to rows, without the baseline."""

    curves: Mapping[str, Sequence[Row]]

    def best(self, base: Row, prompts: np.ndarray | None = None) -> tuple[float, str]:
        """The greatest Vendi at the baseline's quality less one point, and whose it is; the baseline's own at least."""
        start = point(base, prompts)
        quality = start[0] - POINTS_LESS
        found = {
            name: best_at([start, *(point(row, prompts) for row in rows)], quality)
            for name, rows in self.curves.items()
        }
        name = max(found, key=lambda one: found[one], default="none")
        return (max(found[name], start[1]), name) if found else (start[1], name)

    def points(self, prompts: np.ndarray | None = None) -> list[tuple[float, float]]:
        return [point(row, prompts) for rows in self.curves.values() for row in rows]


def family(rows: Sequence[Row], role: str, free_only: bool = False) -> Family:
    curves: dict[str, list[Row]] = {}
    for row in rows:
        if row["role"] == role and (row["free"] or not free_only):
            curves.setdefault(row["name"], []).append(row)
    return Family(curves)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Of the rows of one model, all on the same prompts: the baseline, the best free rival, the best rival of all and
    ours at the baseline's quality less one point; gains in Vendi, their ratio and difference with 95 % intervals.

    Raises ValueError for rows without one baseline.
    """
    bases = [row for row in rows if row["role"] == "baseline"]
    if len(bases) != 1:
        raise ValueError(f"The rows have {len(bases)} baselines; a model must have 1.")
    [base] = bases
    families = {
        "free": family(rows, "rival", True), "rivals": family(rows, "rival"), "ours": family(rows, "method")
    }  # fmt: skip
    count = len(base["per_prompt"]["vendi"])

    def gain(name: str, prompts: np.ndarray | None = None) -> float:
        return families[name].best(base, prompts)[0] - point(base, prompts)[1]

    def ratio(other: str, prompts: np.ndarray | None = None) -> float:
        return gain("ours", prompts) / max(gain(other, prompts), _LEAST_GAIN)

    def difference(other: str, prompts: np.ndarray | None = None) -> float:
        return gain("ours", prompts) - gain(other, prompts)

    found: dict[str, Any] = {"model": base["model"], "prompts": count, "images": base["images"], "cfg": base["cfg"]}
    found["baseline"] = point(base)
    for name, one in families.items():
        found[name] = {"name": one.best(base)[1], "gain": gain(name)}
        found[name]["gain_interval"] = statistic_interval(lambda chosen, name=name: gain(name, chosen), count)
        found[name]["hypervolume"] = hypervolume([point(base), *one.points()])
        found[name]["hypervolume_interval"] = statistic_interval(
            lambda chosen, one=one: hypervolume([point(base, chosen), *one.points(chosen)]), count
        )
    for name in ("free", "rivals"):
        found[f"ratio_{name}"] = ratio(name)
        found[f"ratio_{name}_interval"] = statistic_interval(lambda chosen, name=name: ratio(name, chosen), count)
        found[f"difference_{name}"] = difference(name)
        found[f"difference_{name}_interval"] = statistic_interval(
            lambda chosen, name=name: difference(name, chosen), count
        )
    return found
