"""What CFG alone gives: every model at CFG 1, 1.5, 2, 3, 4 and 6, so that a method is compared with the best of them.

    python -m benchmarks.cfg_curve mmdit              # choose: on the prompts for choosing
    python -m benchmarks.cfg_curve mmdit --report     # on those that figures are published on

Images are kept in .dev/benchmarks/images: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .rows import FIRST_SEED, SETS, line  # isort: skip - this makes ComfyUI and the pack importable

import torch
from comfyui_diversity.demo.scorer import Scorer
from rich.console import Console

from . import provenance
from .command import exit_code
from .image_store import STORE, stored
from .measure import Group, measure
from .results import SCRATCH, add_row
from .world import World

CFGS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
MODELS = {"mmdit": CFGS, "distilled": (1.0,), "unet": CFGS, "turbo": (1.0,)}  # two have it built in
IMAGES = 6


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--report", action="store_true", help="the prompts that figures are published on")
    parser.add_argument("--cfg", type=float, nargs="*", help="only these")
    parser.add_argument("--images", type=int, default=IMAGES, help="of each prompt")
    parser.add_argument("--prompts", type=int, default=0, help="only the first so many prompts")
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    options = parser.parse_args(arguments)
    return exit_code(lambda: carry_out(options))


def carry_out(options: argparse.Namespace) -> None:
    """Makes and measures a row a CFG; adds each to the results as soon as it is there."""
    torch.set_num_threads(1)
    kind = "report" if options.report else "tune"
    prompts = SETS[kind][: options.prompts or None]
    world, scorer, console = World(options.model), Scorer.load(), Console(width=150)
    recipe = world.recipe
    for cfg in options.cfg or MODELS[options.model]:
        started = time.perf_counter()
        world.recipe = replace(recipe, cfg=cfg)
        making = provenance.making("baseline", options.model)
        folder = STORE / options.model / making / f"cfg_{cfg:g}_{kind}_{options.images}"
        groups = []
        for k, prompt in enumerate(prompts):
            seed = FIRST_SEED[kind] + k

            def make(text: str = prompt.text, seed: int = seed) -> object:
                return world.images(world.latents(text, seed, options.images))

            groups.append(Group(prompt, stored(folder / f"{seed}.npz", prompt.text, options.images, make)))
        row = {"row": f"CFG {cfg:g}", "model": options.model, "steps": recipe.steps, "cfg": cfg, "prompts": kind}
        row |= {"images": options.images * len(prompts), **measure(groups, scorer)}
        row["seconds"] = round(time.perf_counter() - started, 1)
        console.print(line(row), highlight=False)
        command = f"python -m benchmarks.cfg_curve {options.model}{' --report' if options.report else ''}"
        command += f" --images {options.images}" if options.images != IMAGES else ""
        command += f" --prompts {options.prompts}" if options.prompts else ""
        add_row(options.out / f"cfg_curve_{options.model}_{kind}.json", command, row)


if __name__ == "__main__":
    sys.exit(main())
