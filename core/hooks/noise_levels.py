"""Noise levels of a model as shares of its noise schedule, and back."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
from torch import Tensor


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


def training_steps(model_sampling: Any) -> int | None:
    """T, the number of discrete noise levels that a model was trained at; None for flow matching and other continuous
    schedules."""
    discrete = isinstance(model_sampling, comfy.model_sampling.ModelSamplingDiscrete)
    other = (comfy.model_sampling.ModelSamplingDiscreteEDM, comfy.model_sampling.StableCascadeSampling)
    return len(model_sampling.sigmas) if discrete and not isinstance(model_sampling, other) else None


def level_before(model_sampling: Any, sigma: float) -> float | None:
    """The noise level one training step below `sigma`, 0 below the lowest; None where levels are not discrete."""
    if training_steps(model_sampling) is None:
        return None
    sigmas: Tensor = model_sampling.sigmas.cpu().double()  # not every device has float64
    index = int((sigmas / sigma).log().abs().argmin())
    return sigma * float(sigmas[index - 1] / sigmas[index]) if index > 0 else 0.0


def read_one_level_late(clean: Tensor, x: Tensor, sigma: float, before: float) -> Tensor:
    """The clean estimate `[B, C, ...]` of a variance-preserving z = x / sqrt(1 + sigma^2) and the noise that a model
    sees in it, with the alphas of the level `before`: sqrt(1 + before^2) z - before eps.

    x: noisy images in ComfyUI's scaling; clean: the model's estimate of them at `sigma`.
    """
    scale = ((1 + before**2) / (1 + sigma**2)) ** 0.5
    return scale * x - before / sigma * (x - clean)


def timestep_share(model_sampling: Any, sigma: float) -> float:
    """1 - t / T for the timestep t of a noise level: what lies behind it of T training steps, whose last t is T - 1.

    The same as `percent_of` for continuous schedules.
    """
    steps = training_steps(model_sampling)
    percent = percent_of(model_sampling, sigma)
    return percent if steps is None else 1 - (1 - percent) * (steps - 1) / steps


def sigma_at_timestep(model_sampling: Any, share: float) -> float:
    """The noise level at t = share T; see `timestep_share`."""
    steps = training_steps(model_sampling)
    return sigma_at(model_sampling, 1 - share * (1 if steps is None else steps / (steps - 1)))
