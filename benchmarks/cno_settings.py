"""What the settings of Contrastive Noise Optimization do, beside the published ones and beside pink noise.

    python -m benchmarks.cno_settings --model unet                    # choose: on the prompts for choosing
    python -m benchmarks.cno_settings --model unet --report --only baseline "closer*" shipped "pink*"

All rows share prompts and seeds. Adherence and diversity come from the attribute classifier, which nothing optimises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .rows import BATCH, Make, arguments_of, carry_out  # isort: skip - this makes ComfyUI and the pack importable
import torch
from comfyui_diversity.core.drivers.cno import ContrastiveNoise
from comfyui_diversity.core.hooks.denoise import CleanEstimate
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.sampling import SamplerRun, with_noise_change
from comfyui_diversity.core.methods.cno import RECOMMENDED, Settings, pool
from torch import Tensor

from .peers import most_different, pink
from .world import World


def cno(gradient: str = "stop", **settings: Any) -> Make:
    """Images with optimised noise."""

    def make(world: World, text: str, seed: int) -> Tensor:
        return world.latents(text, seed, BATCH, patched=patched(world, Settings(**settings), gradient))

    return make


def published(world: World, text: str, seed: int) -> Tensor:
    """Images with noise that is optimised as the node does it with mode published."""
    change = ContrastiveNoise.published()
    return world.latents(text, seed, BATCH, patched=with_noise_change(world.model, "benchmark", change))


def patched(world: World, settings: Settings, gradient: str) -> Any:
    return with_noise_change(world.model, "benchmark", ContrastiveNoise(settings, gradient))


def with_noise(change: Callable[[Tensor], Tensor]) -> Make:
    return lambda world, text, seed: world.latents(text, seed, BATCH, noise=change)


def chosen(times: int) -> Make:
    """No optimisation: of `times` as many noises those whose one-step predictions differ most; as many passes of the
    model as `times` iterations, and the noises are Gaussian as they are."""

    def make(world: World, text: str, seed: int) -> Tensor:
        def change(run: SamplerRun) -> Tensor:
            generator = torch.Generator().manual_seed(10**6 + seed)
            more = [torch.randn(run.noise.shape, generator=generator).to(run.noise) for _ in range(times - 1)]
            groups = [run.noise, *more]
            with gradients():
                estimate = CleanEstimate(run, "stop")
                features = torch.cat([pool(estimate(group)[0].detach().float(), 16).flatten(1) for group in groups])
            return torch.cat(groups)[most_different(features, len(run.noise))]

        return world.latents(text, seed, BATCH, patched=with_noise_change(world.model, "benchmark", change))

    return make


# The paper's, but for gamma, 1, which is the released code's, and for gradients that are scaled first.
CLOSER: dict[str, Any] = {
    "strength": 0.03,
    "iterations": 3,
    "gamma": 1.0,
    "denominator": "all",
    "projection": "off",
}
BOLD: dict[str, Any] = {"strength": 0.5, "iterations": 10, "denominator": "positive", "projection": "norm"}
SPECTRUM: dict[str, Any] = BOLD | {"projection": "spectrum"}
ALL: dict[str, Any] = SPECTRUM | {"denominator": "all"}
ROWS: dict[str, Make] = {
    "baseline": lambda world, text, seed: world.latents(text, seed, BATCH),
    "published": published,
    "closer to the paper": cno(**CLOSER),
    "bold": cno(**BOLD),
    "bold, spectrum": cno(**SPECTRUM),
    "bold, all": cno(**(BOLD | {"denominator": "all"})),
    "bold, spectrum, all": cno(**ALL),
    "bold, spectrum, all, strength 0.25, 3 iterations": cno(**(ALL | {"strength": 0.25, "iterations": 3})),
    "shipped": cno(**vars(RECOMMENDED)),
    "shipped, two cells": cno(**(vars(RECOMMENDED) | {"cells": 2})),
    "chosen of 100": chosen(10),
    "pink 0.5": with_noise(partial(pink, alpha=0.5)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = arguments_of(__doc__)
    carry_out("cno_settings", ROWS, parser, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
