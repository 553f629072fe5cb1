"""What the settings of Diverse Prompts and Schedule Conditioning do: similarity (kappa), ratio, spread, shared latent.

    python -m benchmarks.tpso_settings --model unet                       # choose: on the prompts for choosing
    python -m benchmarks.tpso_settings --model unet --report --only baseline shipped kappa ratio

All rows share prompts and seeds. Adherence and diversity come from the attribute classifier, which nothing optimises.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

from .world import RECIPES, World  # isort: skip - this makes ComfyUI and the pack importable

import torch
from comfyui_diversity.core.hooks.schedule import scheduled
from comfyui_diversity.core.hooks.variants import vary_prompt
from comfyui_diversity.core.methods.schedule import Window
from comfyui_diversity.core.methods.tpso import Settings
from comfyui_diversity.demo.scorer import Scorer
from comfyui_diversity.demo.world.prompts import REPORT_PROMPTS, TUNE_PROMPTS
from rich.console import Console
from torch import Tensor

from devtools.measure import measure

from .cno_settings import BATCH, FIRST_SEED, OUTPUT, line, write

Make = Callable[[World, str, int], Tensor]
STEPS = 40


def sample(world: World, positive: list, negative: list, noise: Tensor, seed: int) -> Tensor:
    """Finished latents as KSampler with euler gives them."""
    import comfy.sample

    recipe = world.recipe
    return comfy.sample.sample(
        world.model,
        noise,
        recipe.steps,
        recipe.cfg,
        "euler",
        recipe.scheduler,
        positive,
        negative,
        torch.zeros_like(noise),
        seed=seed,
        disable_pbar=True,
    )


def tpso(
    kappa: float,
    ratio: float = 0.4,
    spread: bool = True,
    shared: bool = False,
    negative: bool = False,
    steps: int = 0,
    easing: str = "linear",
) -> Make:
    """Pictures from prompt variants, one each; `shared` starts them all from one noise."""

    @torch.inference_mode()
    def make(world: World, text: str, seed: int) -> Tensor:
        import comfy.sample

        settings, window = (
            Settings(kappa, steps=STEPS if spread else 50, spread=spread),
            Window(ratio, 0.0, easing, steps),
        )

        def conditioning(prompt: str) -> list:
            variants, _ = vary_prompt(world._clip, world._clip.tokenize(prompt), BATCH, seed, settings)
            return scheduled(variants, world.conditioning(prompt), window)

        empty = torch.zeros(BATCH, 16, 16, 16)
        noise = comfy.sample.prepare_noise(empty, seed)
        if shared:
            noise = noise[:1].repeat(BATCH, 1, 1, 1)
        return sample(world, conditioning(text), conditioning("") if negative else world.conditioning(""), noise, seed)

    return make


ROWS: dict[str, Make] = {
    "baseline": lambda world, text, seed: world.latents(text, seed, BATCH),
    "published": tpso(0.8, spread=False),
    "published, shared latent": tpso(0.8, spread=False, shared=True),
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
    "few 1": tpso(0.6, steps=1),
    "few 2": tpso(0.6, steps=2),
    "few 2 hold": tpso(0.6, steps=2, easing="hold"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(RECIPES), default="unet")
    parser.add_argument("--report", action="store_true", help="the prompts that figures are published on")
    parser.add_argument("--only", nargs="*", default=[], help="rows whose name begins with one of these")
    parser.add_argument("--prompts", type=int, default=0, help="only the first so many prompts")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    prompts = (REPORT_PROMPTS if options.report else TUNE_PROMPTS)[: options.prompts or None]
    chosen = {name: make for name, make in ROWS.items() if not options.only or name.startswith(tuple(options.only))}
    world, scorer, console = World(options.model), Scorer.load(), Console(width=140)
    kind = "report" if options.report else "tune"
    for name, make in chosen.items():
        started, groups = time.perf_counter(), []
        for k, prompt in enumerate(prompts):
            groups.append(world.group(prompt, [make(world, prompt.text, FIRST_SEED[options.report] + k)]))
        row: dict[str, Any] = {"model": options.model, "prompts": kind, "count": len(prompts), "row": name}
        row |= measure(groups, scorer)
        row["seconds"] = round(time.perf_counter() - started, 1)
        console.print(line(row), highlight=False)
        write(OUTPUT / f"tpso_settings_{options.model}_{kind}.jsonl", row)


if __name__ == "__main__":
    main()
