"""What one strength of Diversify means: adherence and diversity over strength, for every demo model.

    python -m benchmarks.diversify_strength --model mmdit             # choose: on the prompts for choosing
    python -m benchmarks.diversify_strength --model mmdit --report --prompts 30 --only "one at a time*"

All rows share prompts; rows of one kind also share seeds. The baseline is strength 0, the stock result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .rows import BATCH, Make, arguments_of, carry_out  # isort: skip - this makes ComfyUI and the pack importable
import torch
from comfyui_diversity.core.drivers.diversify import diversified_model, diversified_prompt
from torch import Tensor

from .world import World

STRENGTHS = (0.5, 1.0, 0.25, 0.75)


def diversify(strength: float, cfg: float = 0.0) -> Make:
    """Images of the node Diversify; cfg 0 is the model's own."""

    def make(world: World, text: str, seed: int) -> Tensor:
        with torch.inference_mode():
            model = diversified_model(world.model, strength, None, True)
            positive = diversified_prompt(world.clip, text, seed, strength, None)
        own = world.recipe
        world.recipe = replace(own, cfg=cfg or own.cfg)
        try:
            return world.latents(text, seed, BATCH, patched=model, positive=positive)
        finally:
            world.recipe = own

    return make


def one_at_a_time(strength: float) -> Make:
    """As many images, each in a run of its own with the next seed."""

    def make(world: World, text: str, seed: int) -> Tensor:
        with torch.inference_mode():
            model = diversified_model(world.model, strength, None, True)
            positive = diversified_prompt(world.clip, text, seed, strength, None)
        seeds = range(BATCH * seed, BATCH * (seed + 1))
        return torch.cat([world.latents(text, one, 1, patched=model, positive=positive) for one in seeds])

    return make


ROWS: dict[str, Make] = {
    "baseline": diversify(0.0),
    "one at a time": one_at_a_time(0.0),
    **{f"one at a time, strength {strength:g}": one_at_a_time(strength) for strength in (0.5, 1.0)},
    **{f"strength {strength:g}": diversify(strength) for strength in STRENGTHS},
    **{f"CFG {cfg:g}, strength {s:g}": diversify(s, cfg=cfg) for cfg in (3.0,) for s in (0.0, 0.5, 1.0)},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = arguments_of(__doc__)
    carry_out("diversify_strength", ROWS, parser, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
