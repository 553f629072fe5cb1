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
from comfyui_diversity.core.methods.cno import Settings, pool
from torch import Tensor

from .peers import most_different, pink
from .world import World


def cno(gradient: str = "stop", **settings: Any) -> Make:
    """Images with optimised noise."""

    def make(world: World, text: str, seed: int) -> Tensor:
        return world.latents(text, seed, BATCH, patched=patched(world, Settings(**settings), gradient))

    return make


def published(form: str) -> Make:
    """Images with noise that is optimised as the node does it with mode published."""

    def make(world: World, text: str, seed: int) -> Tensor:
        change = ContrastiveNoise.published(form=form)
        return world.latents(text, seed, BATCH, patched=with_noise_change(world.model, "benchmark", change))

    return make


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
SAFE: dict[str, Any] = {**BOLD, "projection": "spectrum"}
ROWS: dict[str, Make] = {
    "baseline": lambda world, text, seed: world.latents(text, seed, BATCH),
    "closer to the paper": cno(**CLOSER),
    "published, paper": published("paper"),
    "bold": cno(**BOLD),
    "bold, no projection": cno(**(BOLD | {"projection": "off"})),
    "bold, spectrum": cno(**SAFE),
    **{f"spectrum, strength {strength}": cno(**(SAFE | {"strength": strength})) for strength in (0.1, 0.25, 0.35)},
    "spectrum, strength 0.75": cno(**(SAFE | {"strength": 0.75})),
    "spectrum, strength 1": cno(**(SAFE | {"strength": 1.0})),
    "spectrum, strength 2": cno(**(SAFE | {"strength": 2.0})),
    "spectrum, gamma 0.4": cno(**(SAFE | {"gamma": 0.4})),
    "spectrum, window 8": cno(**(SAFE | {"window": 8})),
    "spectrum, all": cno(**(SAFE | {"denominator": "all"})),
    "spectrum, strength 1, gamma 0.4": cno(**(SAFE | {"strength": 1.0, "gamma": 0.4})),
    "spectrum, strength 1, all": cno(**(SAFE | {"strength": 1.0, "denominator": "all"})),
    "spectrum, strength 1, others": cno(**(SAFE | {"strength": 1.0, "denominator": "others"})),
    "spectrum, strength 1, temperature 0.3": cno(**(SAFE | {"strength": 1.0, "temperature": 0.3})),
    "spectrum, strength 1, window 4": cno(**(SAFE | {"strength": 1.0, "window": 4})),
    "bold, all": cno(**(BOLD | {"denominator": "all"})),
    "bold, others": cno(**(BOLD | {"denominator": "others"})),
    "bold, 4 iterations": cno(**(BOLD | {"iterations": 4})),
    "bold, strength 0.25": cno(**(BOLD | {"strength": 0.25})),
    "bold, strength 1": cno(**(BOLD | {"strength": 1.0})),
    "bold, window 4": cno(**BOLD, window=4),
    "bold, window 1": cno(**BOLD, window=1),
    "bold, temperature 0.3": cno(**BOLD, temperature=0.3),
    "bold, temperature 1": cno(**BOLD, temperature=1.0),
    **{f"pink {alpha}": with_noise(partial(pink, alpha=alpha)) for alpha in (0.2, 0.5, 1.0)},
    "bold, full gradient": cno("full", **BOLD),
    "published, release": published("release"),
    **{f"chosen of {times * BATCH}": chosen(times) for times in (4, 10)},
    **{f"all, strength {strength}": cno(strength=strength) for strength in (0.2, 0.25, 0.3, 0.35)},
    **{f"all, strength {s}, 3 iterations": cno(strength=s, iterations=3) for s in (0.25, 0.5)},
    "shipped": cno(),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = arguments_of(__doc__)
    carry_out("cno_settings", ROWS, parser, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
