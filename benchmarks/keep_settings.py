"""What the settings of Keep the Best do: of how many images the ten are kept, by what measure, and how many are bad.

    python -m benchmarks.keep_settings --model distilled                  # choose: on the prompts for choosing
    python -m benchmarks.keep_settings --model mmdit --only "*made" "10 of 15*"

All rows keep images of the same batches of twenty, made to differ: at CFG 1 by Diverse Noise on pink noise, else by
Diversify at 1. "far from the mean" is a rival without a model: it drops what is furthest from the mean of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from .rows import BATCH, Make, arguments_of, carry_out  # isort: skip - this makes ComfyUI and the pack importable
import torch
from comfyui_diversity.core.drivers.cno import ContrastiveNoise
from comfyui_diversity.core.drivers.diversify import diversified_model
from comfyui_diversity.core.drivers.selection import DROP, select
from comfyui_diversity.core.hooks.sampling import with_noise_change
from comfyui_diversity.core.methods.selection import keepers
from torch import Tensor

from .world import World

MADE = 20
PINK = 0.85


@cache
def made(world: World, text: str, seed: int) -> Tensor:
    """The images that all rows choose from."""
    with torch.inference_mode():
        if world.recipe.cfg == 1:
            model = with_noise_change(world.model, "benchmark", ContrastiveNoise.recommended(pink=PINK))
        else:
            model = diversified_model(world.model, 1.0, None, True)
    return world.latents(text, seed, MADE, patched=model)


def kept(number: int, **settings: Any) -> Make:
    """Ten of the first `number`."""

    def make(world: World, text: str, seed: int) -> Tensor:
        latents = made(world, text, seed)[:number]
        with torch.inference_mode():
            chosen = select(world.model, world.conditioning(text), {"samples": latents}, BATCH, **settings)
        return latents[chosen.kept]

    return make


def far_from_the_mean(number: int) -> Make:
    def make(world: World, text: str, seed: int) -> Tensor:
        latents = made(world, text, seed)[:number].flatten(1)
        distances = (latents - latents.mean(0)).norm(dim=1).tolist()
        return made(world, text, seed)[keepers(distances, latents, BATCH, DROP)]

    return make


ROWS: dict[str, Make] = {
    "baseline": lambda world, text, seed: world.latents(text, seed, BATCH),
    "as made": kept(BATCH),
    **{f"10 of {number}": kept(number) for number in (12, 15, 20)},
    **{f"10 of 15, drop {drop:g}": kept(15, drop=drop) for drop in (0.0, 0.15, 0.3)},
    **{f"10 of 15, renoise {share:g}": kept(15, renoise=share) for share in (0.15, 0.5, 0.75)},
    "10 of 15, far from the mean": far_from_the_mean(15),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = arguments_of(__doc__)
    carry_out("keep_settings", ROWS, parser, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
