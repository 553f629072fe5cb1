"""Noise levels of a model as shares of its noise schedule, and back."""

from __future__ import annotations

from typing import Any


def sigma_at(model_sampling: Any, percent: float) -> float:
    """The noise level at a share of the model's noise schedule."""
    # At 0 some models give a number beyond their schedule.
    return min(float(model_sampling.percent_to_sigma(percent)), float(model_sampling.sigma_max))


def percent_of(model_sampling: Any, sigma: float) -> float:
    """The share 0..1 of a model's noise schedule that lies behind noise level `sigma`; inverse of percent_to_sigma."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if float(model_sampling.percent_to_sigma(middle)) > sigma:
            low = middle
        else:
            high = middle
    return high if high > 1e-9 else 0.0
