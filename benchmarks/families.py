"""Which method works with which family of models and which set-up: every cell is run, none is reasoned about.

    python -m benchmarks.families
    COMFYUI_PATH=FOLDER python -m benchmarks.families

Small models of ComfyUI's own classes with random weights (tests/small), with the ComfyUI at hand, whose version is in
the name of the file of results. `benchmarks.families_page` says what the words in a cell mean.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from devtools.comfy_source import release
from devtools.places import HERE

from .families_world import NotThere, World  # isort: skip - this makes ComfyUI and the pack importable

import torch

from .families_methods import PACK_LOG, Method, methods_of, rows
from .results import SCRATCH, add_row, read, write

COMMAND = "python -m benchmarks.families"


@contextmanager
def _logged() -> Iterator[list[str]]:
    """What the pack logs inside, line by line."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.extend(record.getMessage().splitlines())

    logger, handler = PACK_LOG, Handler()
    before, logger.propagate = logger.level, False
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = True


def _is_ours(error: BaseException) -> bool:
    """Whether the pack itself raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(last).is_relative_to(HERE.root) and not Path(last).is_relative_to(HERE.root / "benchmarks")


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].strip().rstrip(".")


def cell(world: World, method: Method) -> str:
    """One cell of the table; never empty."""
    world.steps_done = 0
    with _logged() as lines:
        try:
            images = method.run(world)
        except Exception as error:
            why = _first_sentence(str(error)) or "no message"
            if isinstance(error, ValueError) and _is_ours(error) and world.steps_done == 0:
                found = world.judged(None)
                return f"refused: {why}" if found == "works" else found
            logging.getLogger(__name__).exception("%s", why)
            return f"fails: {type(error).__name__}: {why}"
    found = world.judged(images)
    if found != "works":
        return found
    report = "\n".join(lines)
    notes = ["by search"] if "search without gradients" in report or "Searched without" in report else []
    notes += [
        f"without variants: {_first_sentence(line.partition('no variants, ')[2])}"
        for line in lines
        if line.startswith("Prompt: no variants")
    ]
    notes += [
        f"noise unchanged: {_first_sentence(line.removeprefix('Noise: as it is').strip(' .,'))}"
        for line in lines
        if line.startswith("Noise: as it is")
    ]
    return ", ".join(["works", *notes])


def row(family: str, setup: str, only: Sequence[str] = ()) -> dict[str, str]:
    """Cells by method; of all methods, or of `only` some."""
    names = {name: one for name, one in methods_of(family, setup).items() if not only or name in only}
    with torch.inference_mode():
        try:
            world = World(family, setup)
        except NotThere as error:
            return dict.fromkeys(names, f"not there: {error}")
        cells = {name: cell(world, method) for name, method in names.items()}
        if not torch.equal(world.sample(world.model, world.positive), world.plain):
            raise AssertionError(f"{family}, {setup}: after all methods a plain run gives other images.")
        return cells


def load_small() -> None:
    """Makes tests/small importable as `small`."""
    if "small" in sys.modules:
        return
    folder = HERE.root / "tests" / "small"
    spec = importlib.util.spec_from_file_location(
        "small", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} cannot be loaded as a package.")
    module = sys.modules["small"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    parser.add_argument("--only", default="", help="rows whose name, `family, set-up`, holds this")
    parser.add_argument("--again", action="store_true", help="also rows that the file of results has already")
    parser.add_argument("--methods", nargs="*", default=(), help="only these cells, beside what the file has already")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    load_small()
    file = options.out / f"families_{release(HERE.comfyui())}.json"
    before = {one["row"]: one["cells"] for one in read(file)["rows"]} if file.exists() else {}
    for family, setup in rows():
        name = f"{family}, {setup}"
        if options.only in name and (options.again or options.methods or name not in before):
            made = {**before.get(name, {}), **row(family, setup, options.methods)}
            cells = {method: made[method] for method in methods_of(family, setup) if method in made}
            print(f"{name}: {summary(cells)}", flush=True)
            add_row(file, COMMAND, {"row": name, "family": family, "setup": setup, "cells": cells})
    if file.exists():
        found = {one["row"]: one for one in read(file)["rows"]}
        write(file, COMMAND, [found[name] for name in (f"{a}, {b}" for a, b in rows()) if name in found])


def summary(cells: Mapping[str, str]) -> str:
    other = {name: text for name, text in cells.items() if text != "works"}
    return f"{len(cells) - len(other)} of {len(cells)} work" + "".join(f"\n    {k}: {v}" for k, v in other.items())


if __name__ == "__main__":
    main()
