"""Runs with diverse noise: the node's model, what KSampler makes with it, and the noise it starts from."""

from __future__ import annotations

from typing import Any

import comfy.sample
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_diversity.nodes._inputs import RECOMMENDED
from comfyui_diversity.nodes.cno import DiverseNoise
from comfyui_diversity.nodes.cno_options import DiverseNoiseOptions
from torch import Tensor

from .models import conditioning, random_latent

STEPS = 3


def diverse(model: Any, strength: float = 0.5, iterations: int = 3, **options: Any) -> Any:
    """The node's model."""
    chosen = DiverseNoiseOptions.execute(**options).args[0]
    return DiverseNoise.execute(model, strength, iterations, RECOMMENDED, chosen).args[0]


def sample(model: Any, family: str = "eps", batch: int = 3, noise: Tensor | None = None, **options: Any) -> Tensor:
    """What KSampler computes."""
    start = random_latent(family, batch) if noise is None else noise
    named: dict[str, Any] = {
        "steps": STEPS,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "positive": conditioning(family),
        "negative": conditioning(family, seed=1),
        "latent_image": torch.zeros_like(start) if "latent_image" not in options else None,
        "disable_pbar": True,
        "seed": 0,
        **options,
    }
    with torch.inference_mode():
        return comfy.sample.sample(model, start, **named)


class NoiseSpy:
    """The noise that the sampler starts from in the end."""

    def __init__(self) -> None:
        self.noise: Tensor | None = None

    def on(self, model: Any) -> Any:
        def wrapper(
            executor: Any, guider: Any, sigmas: Any, extra: Any, callback: Any, noise: Tensor, *rest: Any
        ) -> Any:
            self.noise = noise.clone()
            return executor(guider, sigmas, extra, callback, noise, *rest)

        spied = model.clone()
        spied.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "spy", wrapper)
        return spied


def started_from(model: Any, **options: Any) -> Tensor:
    spy = NoiseSpy()
    sample(spy.on(model), **options)
    assert spy.noise is not None
    return spy.noise
