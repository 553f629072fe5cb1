"""What the benchmarks of settings share: rows of images at common prompts and seeds, measured, printed and kept."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .world import RECIPES, World  # isort: skip - this makes ComfyUI and the pack importable

import torch
from comfyui_diversity.demo.scorer import Scorer
from comfyui_diversity.demo.world.prompts import REPORT_PROMPTS, TUNE_PROMPTS
from rich.console import Console
from torch import Tensor

from .measure import measure
from .results import SCRATCH, add_row

BATCH = 10
SETS = {"tune": TUNE_PROMPTS, "report": REPORT_PROMPTS}  # for choosing; for reporting: no setting is chosen on these
FIRST_SEED = {"tune": 5000, "report": 1000}  # of each set's first prompt

# World, text and seed to finished latents.
Make = Callable[[World, str, int], Tensor]


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """The command line that every benchmark of settings has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(RECIPES), default="unet")
    parser.add_argument("--report", action="store_true", help="the prompts that figures are published on")
    parser.add_argument("--only", nargs="*", default=["*"], help='rows of these names, "*" for anything')
    parser.add_argument("--prompts", type=int, default=0, help="only the first so many prompts")
    parser.add_argument("--seeds", type=int, default=1, help="batches of ten for each prompt, each with another seed")
    parser.add_argument("--steps", type=int, default=0, help="sampling steps, 0 for the model's own")
    parser.add_argument(
        "--out", type=Path, default=SCRATCH, help="folder of the results; benchmarks/results keeps them"
    )
    return parser


def carry_out(
    name: str, rows: Mapping[str, Make], parser: argparse.ArgumentParser, options: argparse.Namespace
) -> None:
    """Makes and measures the chosen rows; adds each to `NAME_MODEL_PROMPTS_IMAGES.json` as soon as it is there.

    Ends the program with exit code 1 and the sentence of a ValueError.
    """
    try:
        _carry_out(name, rows, parser, options)
    except ValueError as error:
        sys.exit(str(error))


def _carry_out(
    name: str, rows: Mapping[str, Make], parser: argparse.ArgumentParser, options: argparse.Namespace
) -> None:
    torch.set_num_threads(1)
    kind = "report" if options.report else "tune"
    prompts = SETS[kind][: options.prompts or None]
    chosen = {row: make for row, make in rows.items() if any(fnmatch(row, wanted) for wanted in options.only)}
    if not chosen:
        parser.error(f"--only is {options.only}; the names are: {'; '.join(rows)}")
    world, scorer, console = World(options.model, options.steps), Scorer.load(), Console(width=150)
    for row_name, make in chosen.items():
        started = time.perf_counter()
        groups = [
            world.group(prompt, [make(world, prompt.text, FIRST_SEED[kind] + k + 100 * batch)])
            for batch in range(options.seeds)
            for k, prompt in enumerate(prompts)
        ]
        images = BATCH * len(groups)
        given = {"model": options.model, "steps": world.recipe.steps, "prompts": kind, "images": images}
        row = {"row": row_name, **given, **measure(groups, scorer)}
        row["seconds"] = round(time.perf_counter() - started, 1)
        console.print(line(row), highlight=False)
        add_row(options.out / f"{name}_{options.model}_{kind}_{images}.json", _command(name, parser, options), row)


def _command(name: str, parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """The command that makes all rows of a file."""
    words = [f"python -m benchmarks.{name} --model {options.model}"]
    words += ["--report"] if options.report else []
    for option in ("prompts", "seeds", "steps"):
        value = getattr(options, option)
        words += [f"--{option} {value}"] if value != parser.get_default(option) else []
    return " ".join(words)


def line(row: Mapping[str, Any]) -> str:
    numbers = " ".join(f"{name[:6]} {value:.2f}" for name, value in row["effective_number"].items())
    return (
        f"{row['row']:<30} MSS {row['mss']:.3f}, centred {row['mss_centred']:.3f}  Vendi {row['vendi']:.2f}  "
        f"adherence {row['adherence']:.3f}  "
        f"rare {row['rare_share']:.3f}  {numbers}  {row['seconds']:.0f} s"
    )
