"""Noise on the prompt's embeddings: SeedVarianceEnhancer's, and ComfyUI's proposed ConditioningVariation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..job import Change, Job


def uniform_on_part(value: Tensor, strength: float, part: float, generator: torch.Generator) -> Tensor:
    """Uniform noise in -strength..strength on a random `part` of the values (SeedVarianceEnhancer)."""
    noise = strength * (2 * torch.rand(value.shape, generator=generator) - 1)
    chosen = torch.rand(value.shape, generator=generator) < part
    return value + noise.to(value) * chosen.to(value)


def renormalised(value: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of `strength` times each token's own root mean square, the token then brought back to its length
    (ConditioningVariation)."""
    length = value.norm(dim=-1, keepdim=True)
    noise = torch.randn(value.shape, generator=generator).to(value) * length / value.shape[-1] ** 0.5
    moved = value + strength * noise
    return moved * length / moved.norm(dim=-1, keepdim=True)


def seed_variance(strength: float, part: float = 0.5, end: float = 0.2, pooled: bool = False) -> Change:
    """Each image its own noise, up to the share `end` of the steps; then the prompt as it is. pooled: the same noise on
    the pooled vector, which the node leaves alone."""
    return _varied(lambda value, generator: uniform_on_part(value, strength, part, generator), end, pooled)


def conditioning_variation(strength: float, end: float = 1.0) -> Change:
    """Each image its own noise, on the pooled vector too, up to the share `end` of the steps (the node: all)."""
    return _varied(lambda value, generator: renormalised(value, strength, generator), end, True)


def _varied(noisy: Callable[[Tensor, torch.Generator], Tensor], end: float, pooled: bool) -> Change:
    def change(job: Job) -> None:
        from comfyui_diversity.core.drivers.schedule import scheduled
        from comfyui_diversity.core.methods.schedule import Window

        generator = job.generator("embedding noise")

        def rows(value: Tensor) -> Tensor:
            return noisy(value.repeat(job.images, *[1] * (value.ndim - 1)), generator)

        found: list[Any] = []
        for cond, extras in job.positive:
            own = dict(extras)
            varied = rows(cond)
            if pooled and own.get("pooled_output") is not None:
                own["pooled_output"] = rows(own["pooled_output"])
            found.append([varied, own])
        job.positive = scheduled(found, job.positive, Window(end, 0.0, "hold"))

    return change
