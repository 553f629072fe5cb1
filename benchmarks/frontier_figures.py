"""What the rows of a frontier say together: who has more diversity at the same quality, and by how much.

Rows of one name are a curve; every curve begins at the baseline, which is each method with its knob at 0. Between two
neighbours on a curve lies what a setting between theirs would give, taken as a straight line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .intervals import interval, resampled

# The fixed corner of the hypervolume: every second image good, and no diversity.
REFERENCE = (0.5, 1.0)
POINTS_LESS = 0.01  # "at the baseline's quality less one point"
MOST_LESS = 0.05  # a row whose good share is further below the baseline's is not the best by quality-weighted Vendi
_LEAST_GAIN = 0.01  # a rival that gains nothing would make any ratio infinite
REPLICATES = 500  # of the bootstrap over prompts
Row = Mapping[str, Any]
Point = tuple[float, float]  # good share and Vendi
Points = Sequence[Point]  # of one row: of all prompts, then of each replicate


def points_of(row: Row, samples: np.ndarray) -> Points:
    """samples: `[replicates, prompts]`, which prompts each mean is over."""
    good, vendi = (_means(row, name, samples).tolist() for name in ("good_share", "vendi"))
    return list(zip(good, vendi, strict=True))


def _means(row: Row, name: str, samples: np.ndarray) -> np.ndarray:
    return np.asarray(row["per_prompt"][name])[samples].mean(1)


def hypervolume(points: Sequence[Point], reference: Point = REFERENCE) -> float:
    """Area that is dominated by points (good share, Vendi) and lies above the reference."""
    area, best = 0.0, reference[1]
    for good, vendi in sorted(points, reverse=True):
        if good > reference[0] and vendi > best:
            area += (good - reference[0]) * (vendi - best)
            best = vendi
    return area


def best_at(points: Sequence[Point], quality: float) -> float:
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
    """Curves of one kind: `name` to the points of its rows, without the baseline."""

    curves: Mapping[str, Sequence[Points]]

    def best(self, start: Point, replicate: int) -> tuple[float, str]:
        """The greatest Vendi at the baseline's quality less one point, and whose it is; the baseline's own at least.

        start: the baseline's point.
        """
        quality = start[0] - POINTS_LESS
        found = {
            name: best_at([start, *(row[replicate] for row in rows)], quality) for name, rows in self.curves.items()
        }
        name = max(found, key=lambda one: found[one], default="none")
        return (max(found[name], start[1]), name) if found else (start[1], name)

    def points(self, replicate: int) -> list[Point]:
        return [row[replicate] for rows in self.curves.values() for row in rows]


def family(rows: Sequence[Row], samples: np.ndarray) -> Family:
    curves: dict[str, list[Points]] = {}
    for row in rows:
        curves.setdefault(row["name"], []).append(points_of(row, samples))
    return Family(curves)


def best_quality(rows: Sequence[Row], base: Row, samples: np.ndarray) -> tuple[str, np.ndarray]:
    """The greatest quality-weighted Vendi score of the rows, of those alone whose good share is at least the baseline's
    less five points, so that a row which breaks many images does not win by diversity alone.

    Returns whose it is on all prompts, and the score of each sample, for which the best row is chosen again; the
    baseline's score, and nobody's, where no row may win.
    """
    enough = _means(base, "good_share", samples) - MOST_LESS - 1e-9
    name, best = "none", np.full(len(samples), -np.inf)
    for row in rows:
        score = np.where(_means(row, "good_share", samples) >= enough, _means(row, "quality_vendi", samples), -np.inf)
        name = row["name"] if score[0] > best[0] else name
        best = np.maximum(best, score)
    return name, np.where(np.isfinite(best), best, _means(base, "quality_vendi", samples))


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Of the rows of one model, all on the same prompts: the baseline, the best free rival, the best rival of all and
    ours at the baseline's quality less one point; gains in Vendi, their ratio and difference with 95 % intervals. The
    same of the best quality-weighted Vendi score of each (see `best_quality`), and how much more ours is.

    Raises ValueError for rows without one baseline.
    """
    bases = [row for row in rows if row["role"] == "baseline"]
    if len(bases) != 1:
        raise ValueError(f"The rows have {len(bases)} baselines; a model must have 1.")
    [base] = bases
    count = len(base["per_prompt"]["vendi"])
    samples = np.concatenate([np.arange(count)[None], resampled(count, REPLICATES)])
    start = points_of(base, samples)
    found: dict[str, Any] = {"model": base["model"], "prompts": count, "images": base["images"], "cfg": base["cfg"]}
    found["baseline"] = start[0]

    def over_replicates(statistic: Callable[[int], float]) -> np.ndarray:
        return np.array([statistic(k) for k in range(len(samples))])

    gains: dict[str, np.ndarray] = {}
    quality = {"baseline": _means(base, "quality_vendi", samples)}
    found |= _with_interval("quality_baseline", quality["baseline"])
    rivals = [row for row in rows if row["role"] == "rival"]
    groups = {
        "free": [row for row in rivals if row["free"]],
        "rivals": rivals,
        "ours": [row for row in rows if row["role"] == "method"],
    }
    for name, own in groups.items():
        one = family(own, samples)
        gains[name] = over_replicates(lambda k, one=one: one.best(start[k], k)[0] - start[k][1])
        volumes = over_replicates(lambda k, one=one: hypervolume([start[k], *one.points(k)]))
        found[name] = {"name": one.best(start[0], 0)[1]}
        found[name] |= _with_interval("gain", gains[name]) | _with_interval("hypervolume", volumes)
        found[name]["quality_name"], quality[name] = best_quality(own, base, samples)
        found[name] |= _with_interval("quality", quality[name])
    for name in ("free", "rivals"):
        found |= _with_interval(f"ratio_{name}", gains["ours"] / np.maximum(gains[name], _LEAST_GAIN))
        found |= _with_interval(f"difference_{name}", gains["ours"] - gains[name])
    for name in ("baseline", "free", "rivals"):
        found |= _with_interval(f"quality_difference_{name}", quality["ours"] - quality[name])
    return found


def _with_interval(name: str, figures: np.ndarray) -> dict[str, Any]:
    """A figure and its interval. figures: of all prompts, then of each replicate."""
    return {name: float(figures[0]), f"{name}_interval": interval(figures[1:])}
