"""CADS: annealed noise on the conditioning (Sadat et al., ICLR 2024, arXiv 2310.17347)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..job import Change, Job, share_done


def gamma(t: float, low: float, high: float) -> float:
    """How much of the conditioning is left at time t, 1 (noise) to 0 (image): 1 up to `low`, 0 from `high` on, a
    straight line in between (equation 3)."""
    if t <= low:
        return 1.0
    return 0.0 if t >= high else (high - t) / (high - low)


def annealed(y: Tensor, noise: Tensor, left: float, strength: float, mixing: float = 1.0) -> Tensor:
    """sqrt(left) y + strength sqrt(1 - left) noise, brought back to y's own mean and deviation by the share `mixing`
    (equations 2, 5 and 6); row by row."""
    noisy = left**0.5 * y + strength * (1 - left) ** 0.5 * noise
    own = tuple(range(1, y.ndim))
    mean, deviation = y.mean(own, keepdim=True), y.std(own, keepdim=True)
    scaled = (noisy - noisy.mean(own, keepdim=True)) / noisy.std(own, keepdim=True) * deviation + mean
    return mixing * scaled + (1 - mixing) * noisy


def cads(strength: float, start: float = 0.6, end: float = 0.9, mixing: float = 1.0, pooled: bool = True) -> Change:
    """start, end: tau_1 and tau_2 of the annealing, where 1 is the first step and 0 the last; noise is fresh in every
    step. `end` below `start` is taken as equal to it. pooled: the pooled vector, too. The negative prompt stays."""

    def change(job: Job) -> None:
        generator = job.generator("cads")

        def noisy(c: dict[str, Any], rows: slice, t: float) -> None:
            left = gamma(t, start, max(end, start))
            for name in ("c_crossattn", "y") if pooled else ("c_crossattn",):
                if left < 1 and c.get(name) is not None:
                    own = c[name][rows]
                    noise = torch.randn(own.shape, generator=generator).to(own)
                    c[name][rows] = annealed(own, noise, left, strength, mixing)

        change_conditions(job, noisy)

    return change


def change_conditions(job: Job, edit: Callable[[dict[str, Any], slice, float], None]) -> None:
    """Calls `edit` before every call of the model with copies of its conditions, the rows of the positive prompt and
    the time of the run, 1 at the first step and 0 at the end."""

    def wrapper(apply: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        c: dict[str, Any] = {
            name: value.clone() if isinstance(value, Tensor) else value for name, value in args["c"].items()
        }
        kinds = args["cond_or_uncond"]
        size = len(args["input"]) // len(kinds)
        options = c["transformer_options"]
        time = 1 - share_done(options, options["sigmas"])
        for k, kind in enumerate(kinds):
            if kind == 0:
                edit(c, slice(k * size, (k + 1) * size), time)
        return apply(args["input"], args["timestep"], **c)

    job.model = job.model.clone()
    job.model.set_model_unet_function_wrapper(wrapper)
