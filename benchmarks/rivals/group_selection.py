"""The best N of M starts by a cheap preview, as in scalable group inference (arXiv 2508.15773)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..job import Change, Job
from ..peers import most_different

if TYPE_CHECKING:
    from comfyui_diversity.core.hooks.sampling import SamplerRun


def group_selection(times: int, window: int = 16) -> Change:
    """Of `times` as many noises those whose first clean estimates, averaged to a window x window grid, differ most:
    each next one is the least like those kept. Costs `times` forward passes of the first step."""

    def change(job: Job) -> None:
        from comfyui_diversity.core.hooks.sampling import with_noise_change

        def select(run: SamplerRun) -> Tensor:
            return selected(run, times, window, job.generator("group selection"))

        job.model = with_noise_change(job.model, "group selection", select)

    return change


def selected(run: SamplerRun, times: int, window: int, generator: torch.Generator) -> Tensor:
    """The run's noise, or another of its shape: the most different of `times` as many."""
    from comfyui_diversity.core.hooks.denoise import CleanEstimate
    from comfyui_diversity.core.hooks.gradients import gradients
    from comfyui_diversity.core.methods.cno import pool

    more = [torch.randn(run.noise.shape, generator=generator).to(run.noise) for _ in range(times - 1)]
    groups = [run.noise, *more]
    with gradients():
        estimate = CleanEstimate(run, "stop")
        features = torch.cat([pool(estimate(group)[0].detach().float(), window).flatten(1) for group in groups])
    centred = features - features.mean(0)
    return torch.cat(groups)[most_different(centred, len(run.noise))]
