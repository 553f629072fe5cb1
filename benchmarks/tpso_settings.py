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


def tpso(
    kappa: float,
    ratio: float = 0.4,
    shared: bool = False,
    per_step: float = 0.0,
    negative: bool = False,
    steps: int = 0,
    easing: str = "linear",
    added: int = 0,
    tries: int = STEPS,
    keep: bool = False,
) -> Make:
    """Images from prompt variants, one each; `shared` starts them all from one noise, `per_step` adds new noise after
    every step as well; `added` is of tokens, `keep` of words."""

    @torch.inference_mode()
    def make(world: World, text: str, seed: int) -> Tensor:
        settings, window = Settings(kappa, steps=tries), Window(ratio, 0.0, easing, steps)

        def conditioning(prompt: str) -> list:
            variants, _ = vary_prompt(world.clip, prompt, BATCH, seed, Recipe(settings, added, keep))
            return scheduled(variants, world.conditioning(prompt), window)

        return world.latents(
            text,
            seed,
            BATCH,
            patched=with_shared_noise(world.model, per_step) if shared else None,
            positive=conditioning(text),
            negative=conditioning("") if negative else None,
        )

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
    "published, without the shared latent": as_published(own_noises=True),
    "published, without the bank": as_published(plain_negative=True),
    "kappa 0.95": tpso(0.95),
    "kappa 0.95 ratio 0.6": tpso(0.95, 0.6),
    "kappa 0.9": tpso(0.9),
    "kappa 0.9 ratio 0.2": tpso(0.9, 0.2),
    "kappa 0.8": tpso(0.8),
    "kappa 0.7": tpso(0.7),
    "kappa 0.6": tpso(0.6),
    "kappa 0.6 ratio 0.6": tpso(0.6, 0.6),
    "kappa 0.5 ratio 0.6": tpso(0.5, 0.6),
    "ratio -0.4": tpso(0.8, -0.4),
    "ratio 0.2": tpso(0.8, 0.2),
    "ratio 0.6": tpso(0.8, 0.6),
    "ratio 0.8": tpso(0.8, 0.8),
    "shared latent": tpso(0.6, 0.6, shared=True),
    "diverse negative": tpso(0.6, 0.6, negative=True),
    "kappa 0.97": tpso(0.97),
    "kappa 0.97 ratio 0.6": tpso(0.97, 0.6),
    "kappa 0.95 ratio 0.2": tpso(0.95, 0.2),
    **{f"kappa {kappa}, diverse negative": tpso(kappa, negative=True) for kappa in (0.95, 0.9, 0.8)},
    "kappa 0.95, shared latent": tpso(0.95, shared=True),
    "kappa 0.8, ratio 0.2, shared latent": tpso(0.8, 0.2, shared=True),
    "kappa 0.8, ratio 0.2, shared latent, 0.03 per step": tpso(0.8, 0.2, shared=True, per_step=0.03),
    **{
        f"added {added}, kappa {kappa}, ratio {ratio}": tpso(kappa, ratio, added=added, tries=60)
        for added, kappa, ratio in (
            (1, 0.8, 0.2),
            (2, 0.8, 0.2),
            (4, 0.9, 0.2),
            (4, 0.85, 0.2),
            (4, 0.8, 0.2),
            (4, 0.7, 0.2),
            (4, 0.8, -0.4),
            (4, 0.8, 0.4),
            (4, 0.97, 0.2),
            (4, 0.95, 0.2),
            (4, 0.8, 0.1),
        )
    },
    **{
        f"keep, kappa {kappa}, ratio {ratio}": tpso(kappa, ratio, tries=60, keep=True)
        for kappa, ratio in (
            *((kappa, 0.2) for kappa in (0.8, 0.7, 0.6, 0.4)),
            (0.8, 0.4),
            (0.95, 0.4),
            (0.4, 0.25),
            (0.6, 0.1),
            (0.8, 0.1),
        )
    },
    "keep, added 4, kappa 0.8, ratio 0.2": tpso(0.8, 0.2, added=4, tries=60, keep=True),
    "few 1": tpso(0.6, steps=1),
    "few 2": tpso(0.6, steps=2),
    "few 2 hold": tpso(0.6, steps=2, easing="hold"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = arguments_of(__doc__)
    options = parser.parse_args(arguments)
    carry_out("tpso_settings", ROWS, parser, options)


if __name__ == "__main__":
    main()
