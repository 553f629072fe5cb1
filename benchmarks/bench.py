"""The frontier: good images against diversity, for every rival and method, on the prompts that nothing was chosen on.

    python dev.py bench                     # ten minutes: the few-step model, one row a curve, few prompts
    python dev.py bench --full              # hours: every model and row that is reported; a stopped run goes on
    python dev.py bench --every             # days: all values of a knob, all pairs, all CFGs, the fifth model, too
    python dev.py bench --full --model mmdit --rows "CFG*" "Diverse*"

Writes `frontier.json`, a list of rows, after every row (see `benchmarks.frontier_store`), and `frontier.png`. With
`--out benchmarks/results` these are the committed ones; `python -m benchmarks.report` then writes the page.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .world import World  # isort: skip - this makes ComfyUI and the pack importable

import numpy as np
import torch
from comfyui_diversity.demo.scorer import Scorer
from comfyui_diversity.demo.world.attributes import sample_scene
from comfyui_diversity.demo.world.draw import draw
from comfyui_diversity.demo.world.prompts import Prompt

from . import provenance
from .frontier_extent import REPORTED
from .frontier_plot import draw_frontier
from .frontier_rows import MODELS, Row, grid, quick, rows_of
from .frontier_score import FIGURES, means, score
from .frontier_store import check, folder_of, load, merged, save
from .image_store import stored
from .intervals import mean_interval
from .job import finished, new_job
from .measure import Group
from .results import SCRATCH, commit
from .results import replace as write_whole
from .rows import FIRST_SEED, SETS

IMAGES = 20  # one batch
QUICK_PROMPTS, QUICK_IMAGES, QUICK_MODELS = 4, 5, ("distilled",)
OUT, QUICK_OUT = SCRATCH / "frontier", SCRATCH / "frontier_quick"
DATA = "the data itself"


class Bench:
    """Makes and scores rows on a set of prompts; keeps every image, so that nothing is made twice.

    images: of one prompt, in one batch. Raises ValueError for a batch of one, which has no diversity.
    """

    def __init__(self, kind: str, prompts: int, images: int) -> None:
        if images < 2:
            raise ValueError(f"images is {images}; it must be 2 or more.")
        self.kind, self.images = kind, images
        self.prompts: Sequence[Prompt] = SETS[kind][: prompts or None]
        self.scorer = Scorer.load()
        self._world: World | None = None

    def images_of(self, row: Row, k: int) -> np.ndarray:
        """Prompt k's images, `uint8 [images, H, W, 3]`."""
        path = self._path(row, k)
        text, seed = self.prompts[k].text, FIRST_SEED[self.kind] + k

        def make() -> Any:
            world = self.world(row.model)
            started = time.process_time()
            job = new_job(world, text, seed, self.images, row.cfg)
            for change in row.changes():
                change(job)
            latents = finished(job)
            seconds = (time.process_time() - started) / self.images
            write_whole(path.with_suffix(".seconds"), f"{seconds:.5f}")
            return world.images(latents)

        return stored(path, text, self.images, make)

    def prompt_score(self, row: Row, k: int) -> dict[str, float]:
        """`FIGURES` of prompt k's images, and `seconds` of CPU time to sample one of them."""
        path = self._path(row, k)
        scores = path.with_name(f"{path.stem}_{provenance.revision(made_as(row), row.model)}.json")
        found = kept_score(scores)
        if found is None:
            found = score(Group(self.prompts[k], self.images_of(row, k)), self.scorer)
            found["seconds"] = kept_seconds(path)
            write_whole(scores, json.dumps(found))
        return found

    def row(self, row: Row) -> dict[str, Any]:
        """A whole row, as it is kept."""
        return self._entry(row, [self.prompt_score(row, k) for k in range(len(self.prompts))])

    def data(self, model: str) -> dict[str, Any]:
        """The world's own images of the same prompts, as many of each."""
        rng = np.random.default_rng(2024)
        groups = [Group(prompt, drawn(prompt, rng, self.images)) for prompt in self.prompts]
        found = [{**score(group, self.scorer), "seconds": 0.0} for group in groups]
        return self._entry(Row(model, "data", DATA, 0.0), found)

    def world(self, model: str) -> World:
        if self._world is None or self._world.name != model:
            self._world = World(model)
        return self._world

    def _path(self, row: Row, k: int) -> Path:
        return folder_of(provenance.making(made_as(row), row.model), row.key) / f"{self.kind}_{k}_{self.images}.npz"

    def _entry(self, row: Row, found: list[dict[str, float]]) -> dict[str, Any]:
        per_prompt = {name: [round(one[name], 4) for one in found] for name in (*FIGURES, "seconds")}
        figures: dict[str, Any] = means(found)
        for name in FIGURES:
            figures[f"{name}_interval"] = mean_interval(np.array(per_prompt[name]))
        figures["seconds"] = round(float(np.mean(per_prompt["seconds"])), 4)
        figures["seconds_interval"] = mean_interval(np.array(per_prompt["seconds"]))
        own = {"model": row.model, "role": row.role, "name": row.name, "settings": row.settings, "cfg": row.cfg}
        own |= {"free": row.free, "prompts": len(self.prompts), "images": self.images * len(self.prompts)}
        own |= {"set": self.kind, "seed": FIRST_SEED[self.kind]}
        made = {"revision": provenance.revision(made_as(row), row.model), "commit": commit()}
        made |= {"machine": provenance.machine(), "versions": provenance.versions()}
        return {"key": row.key, **own, **figures, **made, "per_prompt": per_prompt}


def kept_score(path: Path) -> dict[str, float] | None:
    """A prompt's score as it is kept; None where there is none, or a damaged one: it is made again."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return {name: float(found[name]) for name in (*FIGURES, "seconds")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def kept_seconds(images: Path) -> float:
    """CPU time to sample one of the images in a file. Raises ValueError where it is missing or damaged."""
    path = images.with_suffix(".seconds")
    try:
        return float(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete {images} with it, and both are made again.") from error


def made_as(row: Row) -> str:
    """The role of `provenance` in which a row's images are made: a rival that is nothing but another CFG, and the data
    itself, are made as a baseline is."""
    if not row.parts or row.role == "data":
        return "baseline"
    return "teacher's rival" if "first step by the base model" in row.settings else row.role


def drawn(prompt: Prompt, rng: np.random.Generator, images: int) -> np.ndarray:
    """The world's own images of a prompt, `uint8 [images, H, W, 3]`: what it leaves open is as the world has it."""
    scenes = [replace(sample_scene(rng, prompt.object), **prompt.stated) for _ in range(images)]
    return np.stack([draw(scene, rng) for scene in scenes])


def line(entry: dict[str, Any]) -> str:
    settings = " ".join(f"{key} {value}" for one in entry["settings"].values() for key, value in one.items())
    return (
        f"{entry['model']:<10} {entry['name']:<30} CFG {entry['cfg']:<4g} good {entry['good_share']:.3f}  "
        f"Vendi {entry['vendi']:.2f}  quality Vendi {entry['quality_vendi']:.2f}  {settings}"
    )


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python dev.py bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--full", action="store_true", help="every prompt, and every model and row that is reported")
    found.add_argument("--every", action="store_true", help="as --full, with all other rows, too")
    found.add_argument("--model", nargs="*", choices=list(MODELS), help="only these")
    found.add_argument("--rows", nargs="*", default=["*"], help='only curves of these names, "*" for anything')
    found.add_argument("--prompts", type=int, default=0, help="only the first so many prompts")
    found.add_argument("--images", type=int, default=0, help="of each prompt, in one batch")
    found.add_argument("--one", action="store_true", help="one row a curve, as without --full")
    found.add_argument("--images-only", action="store_true", help="make the images; another run scores them")
    found.add_argument("--minutes", type=float, default=0, help="stop after the row that is then at work; 0: never")
    found.add_argument("--replace", action="store_true", help="drop a model's rows of other revisions and sizes")
    found.add_argument("--out", type=Path, help=f"folder of frontier.json; {OUT}, or without --full {QUICK_OUT}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    full = options.full or options.every
    path = (options.out or (OUT if full else QUICK_OUT)) / "frontier.json"
    models = options.model or (MODELS if options.every else REPORTED if full else QUICK_MODELS)
    hold_revisions(models)
    try:
        bench = Bench("report", options.prompts or (0 if full else QUICK_PROMPTS),
                      options.images or (IMAGES if full else QUICK_IMAGES))  # fmt: skip
        size = (len(bench.prompts), bench.images)
        if options.replace:
            begin_anew(path, models, *size)
        for model in models:
            check(path, model, provenance.revisions(model), *size)  # refused before hours are spent
        rows = [row for model in models for row in chosen(model, options.every, full and not options.one, options.rows)]
        if not rows:
            more = " Other curves than those that are reported come with --every." if not options.every else ""
            raise ValueError(f"--rows is {options.rows}; no curve of {', '.join(models)} has such a name.{more}")
        if options.images_only:
            for k, prompt in enumerate(bench.prompts):  # prompt by prompt: stopped, all rows have the same ones
                for row in rows:
                    bench.images_of(row, k)
                print(f"{k + 1} of {len(bench.prompts)}: {prompt.text}", flush=True)
            return 0
        carry_out(bench, rows, path, options.minutes * 60)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    draw_frontier(load(path), path.with_suffix(".png"))
    print(f"Figures: {path}\nPicture: {path.with_suffix('.png')}")
    return 0


def carry_out(bench: Bench, rows: Sequence[Row], path: Path, seconds: float) -> None:
    """Makes the rows one by one, each added to the file as soon as it is there; stops behind the first that ends
    after so many seconds (0: never)."""
    started = time.monotonic()
    for model in dict.fromkeys(row.model for row in rows):
        save(path, merged(path, bench.data(model), provenance.revisions(model)))
    for row in rows:
        entry = bench.row(row)
        save(path, merged(path, entry, provenance.revisions(row.model)))
        print(line(entry), flush=True)
        if seconds and time.monotonic() - started > seconds:
            print("Time is up; the same command goes on from here.", flush=True)
            return


def chosen(model: str, every: bool, full: bool, names: Sequence[str]) -> list[Row]:
    """A model's rows of these names: of those that are reported, or of `every`; one a curve where not `full`."""
    rows = grid(model) if every else rows_of(model)
    return [row for row in (rows if full else quick(rows)) if any(fnmatch(row.name, name) for name in names)]


def begin_anew(path: Path, models: Sequence[str], prompts: int, images: int) -> None:
    """Takes out of the file what is of another revision of these models, or of another size."""

    def stays(row: dict[str, Any]) -> bool:
        own = (row["prompts"], row["images"]) == (prompts, prompts * images)
        return row["model"] not in models or (own and row["revision"] in provenance.revisions(row["model"]))

    old = load(path)
    kept = [row for row in old if stays(row)]
    if len(kept) < len(old):
        save(path, kept)


def hold_revisions(models: Sequence[str]) -> None:
    """Takes the revisions of now: files may change while a benchmark runs, and what is loaded does not."""
    for model in models:
        for role in provenance.ROLES:
            provenance.making(role, model)
            provenance.revision(role, model)


if __name__ == "__main__":
    sys.exit(main())
