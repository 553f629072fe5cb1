"""95 % intervals by the bootstrap over prompts, paired: all rows of a replicate have the same prompts."""

from __future__ import annotations

import numpy as np

REPLICATES, LEVEL = 2000, 0.95


def resampled(prompts: int, replicates: int = REPLICATES, seed: int = 0) -> np.ndarray:
    """Indices `[replicates, prompts]`, drawn with replacement."""
    return np.random.default_rng(seed).integers(prompts, size=(replicates, prompts))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Bounds of the middle 95 % of replicates."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return round(float(low), 4), round(float(high), 4)


def mean_interval(values: np.ndarray, replicates: int = REPLICATES) -> tuple[float, float]:
    """Of the mean of one value a prompt, `[prompts]`."""
    return interval(np.asarray(values)[resampled(len(values), replicates)].mean(1))


def beside(bounds: tuple[float, float], digits: int) -> str:
    """What stands behind a figure: the interval of its difference from another, or `unclear` where that holds 0."""
    low, high = bounds
    return "(unclear)" if low <= 0 <= high else f"({low:+.{digits}f} to {high:+.{digits}f})"
