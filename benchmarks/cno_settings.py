"""What the settings of Contrastive Noise Optimization do, beside the published ones and beside pink noise.

    python -m benchmarks.cno_settings --model unet                    # choose: on the prompts for choosing
    python -m benchmarks.cno_settings --model unet --report --only baseline published shipped "pink*"
    python -m benchmarks.cno_settings --model unet --batches          # runs of ten batches of four

All rows share prompts and seeds. Adherence and diversity come from the attribute classifier, which nothing optimises.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from .world import RECIPES, World  # isort: skip - this makes ComfyUI and the pack importable

import torch
from comfyui_diversity.core.hooks.denoise import CleanEstimate
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.sampling import SamplerRun, with_noise_change
from comfyui_diversity.core.methods.cno import Settings, optimise_noise
from comfyui_diversity.demo.scorer import Scorer
from comfyui_diversity.demo.world.prompts import REPORT_PROMPTS, TUNE_PROMPTS
from rich.console import Console
from torch import Tensor

from devtools.measure import measure
from devtools.places import HERE

from .peers import pink

OUTPUT = HERE.root / ".dev" / "benchmarks"
BATCH = 10
FIRST_SEED = {False: 5000, True: 1000}  # report seeds are the demo's

Make = Callable[[World, str, int], Tensor]


def cno(gradient: str = "stop", **settings: Any) -> Make:
    """Pictures with optimised noise."""

    def make(world: World, text: str, seed: int) -> Tensor:
        return world.latents(text, seed, BATCH, patched=patched(world, Settings(**settings), gradient))

    return make


def patched(world: World, settings: Settings, gradient: str = "stop", avoid: Tensor | None = None) -> Any:
    def change(run: SamplerRun) -> Tensor:
        with gradients():
            repelled = None if avoid is None else run.model.process_latent_in(avoid.clone())
            return optimise_noise(run.noise.clone(), CleanEstimate(run, gradient), settings, avoid=repelled)

    return with_noise_change(world.model, "benchmark", change)


def with_noise(change: Callable[[Tensor], Tensor]) -> Make:
    return lambda world, text, seed: world.latents(text, seed, BATCH, noise=change)


PUBLISHED: dict[str, Any] = {
    "strength": 0.03,
    "iterations": 3,
    "gamma": 1.0,
    "denominator": "all",
    "projection": "none",
}
BOLD: dict[str, Any] = {"strength": 0.5, "iterations": 10, "denominator": "positive", "projection": "norm"}
SAFE = {**BOLD, "projection": "spectrum"}
ROWS: dict[str, Make] = {
    "baseline": lambda world, text, seed: world.latents(text, seed, BATCH),
    "published": cno(**PUBLISHED),
    "bold": cno(**BOLD),
    "bold, no projection": cno(**{**BOLD, "projection": "none"}),
    "bold, spectrum": cno(**SAFE),
    "spectrum, strength 0.25": cno(**{**SAFE, "strength": 0.25}),
    "spectrum, strength 0.75": cno(**{**SAFE, "strength": 0.75}),
    "spectrum, strength 1": cno(**{**SAFE, "strength": 1.0}),
    "spectrum, strength 2": cno(**{**SAFE, "strength": 2.0}),
    "spectrum, strength 1, gamma 0.4": cno(**{**SAFE, "strength": 1.0, "gamma": 0.4}),
    "spectrum, strength 1, all": cno(**{**SAFE, "strength": 1.0, "denominator": "all"}),
    "spectrum, strength 1, others": cno(**{**SAFE, "strength": 1.0, "denominator": "others"}),
    "spectrum, strength 1, temperature 0.3": cno(**{**SAFE, "strength": 1.0, "temperature": 0.3}),
    "spectrum, strength 1, window 4": cno(**{**SAFE, "strength": 1.0, "window": 4}),
    "bold, all": cno(**{**BOLD, "denominator": "all"}),
    "bold, others": cno(**{**BOLD, "denominator": "others"}),
    "bold, 4 iterations": cno(**{**BOLD, "iterations": 4}),
    "bold, strength 0.25": cno(**{**BOLD, "strength": 0.25}),
    "bold, strength 1": cno(**{**BOLD, "strength": 1.0}),
    "bold, window 4": cno(**BOLD, window=4),
    "bold, window 1": cno(**BOLD, window=1),
    "bold, temperature 0.3": cno(**BOLD, temperature=0.3),
    "bold, temperature 1": cno(**BOLD, temperature=1.0),
    **{f"pink {alpha}": with_noise(partial(pink, alpha=alpha)) for alpha in (0.2, 0.5, 1.0)},
    "bold, full gradient": cno("full", **BOLD),
    "published code": cno("full", **{**PUBLISHED, "denominator": "positive"}),
    "shipped": cno(),
}
RUN_BATCH, RUNS = 4, 10


def run_of_batches(memory: str) -> Make:
    """Ten batches of four, as of ten queue runs; each stays away from what `memory` keeps of the earlier ones."""

    def make(world: World, text: str, seed: int) -> Tensor:
        finished: list[Tensor] = []
        kept: list[Tensor] = []
        for batch in range(RUNS):
            avoid = torch.cat(kept) if kept else None
            model = None if memory == "none, no CNO" else patched(world, Settings(), avoid=avoid)
            finished.append(world.latents(text, 100 * seed + batch, RUN_BATCH, patched=model))
            if memory == "finished pictures":
                kept.append(finished[-1])
        return torch.cat(finished)

    return make


MEMORY_ROWS: dict[str, Make] = {
    f"40 in batches of 4, memory: {memory}": run_of_batches(memory)
    for memory in ("none, no CNO", "none", "finished pictures")
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(RECIPES), default="unet")
    parser.add_argument("--report", action="store_true", help="the prompts that figures are published on")
    parser.add_argument("--batches", action="store_true", help="rows of ten batches, with and without a memory")
    parser.add_argument("--only", nargs="*", default=["*"], help='rows of these names, "*" for anything')
    parser.add_argument("--prompts", type=int, default=0, help="only the first so many prompts")
    parser.add_argument("--seeds", type=int, default=1, help="batches of ten for each prompt, each with another seed")
    parser.add_argument("--steps", type=int, default=0, help="sampling steps, 0 for the model's own")
    parser.add_argument("--out", type=Path, default=OUTPUT, help="folder that the rows are written to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kind = "report" if options.report else "tune"
    prompts = (REPORT_PROMPTS if options.report else TUNE_PROMPTS)[: options.prompts or None]
    rows = MEMORY_ROWS if options.batches else ROWS
    chosen = {name: make for name, make in rows.items() if any(fnmatch(name, wanted) for wanted in options.only)}
    if not chosen:
        parser.error(f"--only is {options.only}; the names are: {'; '.join(rows)}")
    world, scorer, console = World(options.model, options.steps), Scorer.load(), Console(width=150)
    for name, make in chosen.items():
        started = time.perf_counter()
        groups = [
            world.group(prompt, [make(world, prompt.text, FIRST_SEED[options.report] + k + 100 * batch)])
            for batch in range(options.seeds)
            for k, prompt in enumerate(prompts)
        ]
        given = {"model": options.model, "steps": world.recipe.steps, "prompts": kind, "count": len(groups)}
        row = {**given, "row": name, **measure(groups, scorer)}
        row["seconds"] = round(time.perf_counter() - started, 1)
        console.print(line(row), highlight=False)
        write(options.out / f"cno_settings_{options.model}_{kind}.jsonl", row)


def line(row: dict[str, Any]) -> str:
    numbers = " ".join(f"{name[:6]} {value:.2f}" for name, value in row["effective_number"].items())
    return (
        f"{row['row']:<30} MSS {row['mss']:.3f}  Vendi {row['vendi']:.2f}  adherence {row['adherence']:.3f}  "
        f"rare {row['rare_share']:.3f}  {numbers}  {row['seconds']:.0f} s"
    )


def write(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
