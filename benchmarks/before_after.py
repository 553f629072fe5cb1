"""The README's image: the same prompts and seeds without and with a method, from what the demo wrote.

    python -m benchmarks.before_after             # Diverse Noise on the MMDiT
    python -m benchmarks.before_after unet diversify  # model and method of any row of the demo

Nothing in it is chosen: those prompts of the demo that state at most one attribute, which are of every object once, and
the first images of each. Broken images have the red mark that they have on the demo's sheets.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from devtools.pack import load_pack
from devtools.places import HERE

from .demo import OUTPUT, image_name
from .demo_rows import RUNS, Run
from .demo_sheet import Block, contact_sheet
from .measure import Group, judge

load_pack()

from comfyui_diversity.demo.scorer import Scorer  # noqa: E402
from comfyui_diversity.demo.world.prompts import DEMO_PROMPTS  # noqa: E402

TARGET = HERE.root / "docs" / "before_after.jpg"
PROMPTS = [prompt for prompt in DEMO_PROMPTS if len(prompt.stated) <= 2]
COLUMNS, SIDE = 5, 96
# What a reader looks for in ComfyUI; a method without an entry is named by itself.
NODES = {
    "diversify": "Diversify",
    "cno": "Diverse Noise (CNO)",
    "tpso": "Diverse Prompts (TPSO)",
    "minority": "Minority Prompt",
}


def before_after(model: str, method: str, output: Path = OUTPUT) -> Image.Image:
    """The sheet. Raises ValueError for a pair that is no row of the demo, FileNotFoundError for images not made."""
    after = _row(model, method)
    before = next(
        row
        for row in RUNS
        if (row.model, row.method, row.cfg, row.steps) == (model, "baseline", after.cfg, after.steps)
    )
    settings = f"{model}, CFG {after.cfg:g}, {after.steps} steps"
    scorer = Scorer.load()
    return contact_sheet(
        [prompt.text for prompt in PROMPTS],
        [
            _block("Without", settings, _groups(before, output), scorer),
            _block(f"With {NODES.get(method, method)}", "the same prompts and seeds", _groups(after, output), scorer),
        ],
        COLUMNS,
        SIDE,
    )


def _block(title: str, caption: str, groups: Sequence[Group], scorer: Scorer) -> Block:
    broken = [one.broken.tolist() for one in judge(groups, scorer)]
    if any(map(any, broken)):
        caption += "; a red mark: broken"
    return Block(title, caption, [group.images for group in groups], broken)


def _row(model: str, method: str) -> Run:
    rows = {(row.model, row.method): row for row in reversed(RUNS) if row.method != "baseline"}
    if (model, method) not in rows:
        known = ", ".join(" ".join(pair) for pair in sorted(rows))
        raise ValueError(f"model and method are {model} {method}; they must be one of: {known}.")
    return rows[model, method]


def _groups(row: Run, output: Path) -> list[Group]:
    folder = output / row.model / row.name

    def image(text: str, k: int) -> np.ndarray:
        return np.asarray(Image.open(folder / image_name(text, k)).convert("RGB"))

    return [Group(prompt, np.stack([image(prompt.text, k) for k in range(COLUMNS)])) for prompt in PROMPTS]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.before_after", description="Make the README's image.")
    parser.add_argument("model", nargs="?", default="mmdit")
    parser.add_argument("method", nargs="?", default="cno")
    options = parser.parse_args(arguments)
    try:
        sheet = before_after(options.model, options.method)
    except ValueError as error:
        sys.exit(str(error))
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing: run `python dev.py demo` first.")
    TARGET.parent.mkdir(exist_ok=True)
    sheet.save(TARGET, quality=90)
    print(TARGET.relative_to(HERE.root))


if __name__ == "__main__":
    main()
