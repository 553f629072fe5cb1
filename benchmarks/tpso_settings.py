"""What the settings of Diverse Prompts and Schedule Conditioning do: similarity (kappa), ratio, spread, shared latent.

    python -m benchmarks.tpso_settings --model unet                       # choose: on the prompts for choosing
    python -m benchmarks.tpso_settings --model unet --report --only baseline "kappa*" "ratio*"

All rows share prompts and seeds. Adherence and diversity come from the attribute classifier, which nothing optimises.
"""

from __future__ import annotations

from collections.abc import Sequence

from .rows import BATCH, Make, arguments_of, carry_out  # isort: skip - this makes ComfyUI and the pack importable
import torch
from comfyui_diversity.core.drivers.schedule import scheduled
from comfyui_diversity.core.drivers.shared_noise import with_shared_noise
from comfyui_diversity.core.drivers.tpso import Recipe, vary_prompt
from comfyui_diversity.core.drivers.tpso_published import RATIO, SD15, SD35, draw_negative, rule_of, vary_as_released
from comfyui_diversity.core.methods.schedule import ReleasedWindow, Window
from comfyui_diversity.core.methods.tpso import Settings
from torch import Tensor

from .results import SCRATCH
from .world import World

STEPS = 40


def tpso(kappa: float, ratio: float = 0.4, added: int = 0, tries: int = STEPS, keep: bool = False) -> Make:
    """Images from prompt variants, one each; `added` is of tokens, `keep` of words."""

    @torch.inference_mode()
    def make(world: World, text: str, seed: int) -> Tensor:
        variants, _ = vary_prompt(world.clip, text, BATCH, seed, Recipe(Settings(kappa, steps=tries), added, keep))
        positive = scheduled(variants, world.conditioning(text), Window(ratio, 0.0, "linear", 0))
        return world.latents(text, seed, BATCH, positive=positive)

    return make


def as_published(own_noises: bool = False, plain_negative: bool = False, ratio: float = RATIO, **rule: float) -> Make:
    """What mode published and the nodes that its report names give: the preset of the text encoder for the UNet, that
    of SD3.5 for flows; `own_noises` and `plain_negative` leave a part of it out, `rule` is what `rule_of` changes."""

    @torch.inference_mode()
    def make(world: World, text: str, seed: int) -> Tensor:
        clip = world.clip
        preset = SD15 if world.recipe.scheduler == "normal" else SD35
        changed, window = rule_of(preset, **rule), ReleasedWindow(ratio)
        variants, _ = vary_as_released(clip, text, BATCH, seed, preset, changed)
        negative = None
        if not plain_negative:
            drawn, _ = draw_negative(clip, "", BATCH, seed, preset, changed, SCRATCH / "published_bank")
            negative = scheduled(drawn, world.conditioning(""), window)
        shared = with_shared_noise(world.model, preset.step_noise, last=preset.step_noise > 0)
        return world.latents(
            text,
            seed,
            BATCH,
            patched=None if own_noises else shared,
            positive=scheduled(variants, world.conditioning(text), window),
            negative=negative,
        )

    return make


ROWS: dict[str, Make] = {
    "baseline": lambda world, text, seed: world.latents(text, seed, BATCH),
    "published": as_published(),
    "ratio 0.2": tpso(0.8, 0.2),
    "kappa 0.8": tpso(0.8),
    "keep, kappa 0.8, ratio 0.1": tpso(0.8, 0.1, tries=60, keep=True),
    "keep, kappa 0.8, ratio 0.2": tpso(0.8, 0.2, tries=60, keep=True),
    "keep, kappa 0.8, ratio 0.4": tpso(0.8, 0.4, tries=60, keep=True),
    "added 4, kappa 0.8, ratio 0.2": tpso(0.8, 0.2, added=4, tries=60),
    "added 4, kappa 0.8, ratio 0.4": tpso(0.8, 0.4, added=4, tries=60),
    "added 2, kappa 0.8, ratio 0.2": tpso(0.8, 0.2, added=2, tries=60),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = arguments_of(__doc__)
    options = parser.parse_args(arguments)
    carry_out("tpso_settings", ROWS, parser, options)


if __name__ == "__main__":
    main()
