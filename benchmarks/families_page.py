"""Tables of docs/use/families.md: families by methods by set-ups, from what `benchmarks.families` has found.

A row of the results is a family in a set-up, with a text for each method. Versions of ComfyUI share a cell where they
say the same, and cells share a note where only numbers differ: those in it are of the first one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from devtools.pages import table
from devtools.released import TESTED

from .results import COMMITTED, read

BLOCK = "families: "
PLAIN = "plain"
EMBEDDINGS = ("Text to Vision Embedding, unCLIP per Image", "Text Embedding as Vision Embedding")
SHORT = ("Diversify", "Diverse Noise", "Diverse Prompts", "Minority Prompt")
FILES = tuple(f"families_{version}" for version in TESTED)
OFFICIAL = tuple(f"official_{version}" for version in TESTED)  # once they have been run

Cells = dict[str, dict[str, dict[str, str]]]  # "family, set-up" to method to version to text


def found(folder: Path = COMMITTED) -> tuple[list[dict[str, Any]], Cells]:
    """The rows of all versions, each once, and their cells."""
    rows: dict[str, dict[str, Any]] = {}
    cells: Cells = {}
    for version, file in zip(TESTED, FILES, strict=True):
        for row in read(folder / f"{file}.json")["rows"]:
            rows.setdefault(row["row"], row)
            for method, text in row["cells"].items():
                cells.setdefault(row["row"], {}).setdefault(method, {})[version] = text
    return list(rows.values()), cells


def block(name: str, folder: Path = COMMITTED) -> str:
    """What stands in the page's block of that name: `plain`, `embeddings`, `setups`, `encoders`, `models`,
    `summary`, `short`, or `official VERSION`."""
    if name.startswith("official "):
        return official(folder / f"official_{name.removeprefix('official ')}.json")
    rows, cells = found(folder)
    if name == "summary":
        return summary(cells)
    if name == "short":
        return short([row for row in rows if row["setup"] == PLAIN], cells)
    commands = "`python -m benchmarks.families` on each version"
    if name in ("setups", "encoders", "models"):
        own = [row for row in rows if _part(row["setup"]) == name]
        return f"{commands}\n\n{_table(own, cells, ('family', 'set-up'))}"
    own = [row for row in rows if row["setup"] == PLAIN]
    wanted: Iterable[str] = {method for row in own for method in row["cells"]} - set(EMBEDDINGS)
    if name == "embeddings":
        own, wanted = [row for row in own if EMBEDDINGS[0] in row["cells"]], EMBEDDINGS
    return f"{commands}\n\n{_table(own, cells, ('family',), set(wanted))}"


def official(path: Path) -> str:
    """What `benchmarks.official` has found with one version of ComfyUI."""
    if not path.exists():
        return "Not run yet."
    results = read(path)
    rows = [row["cells"] for row in results["rows"]]
    return f"`{results['command']}`\n\n{table(list(rows[0]), [list(row.values()) for row in rows])}"


def _part(setup: str) -> str:
    """Which table a set-up belongs to."""
    return {PLAIN: PLAIN, "encoder": "encoders", "model": "models"}.get(setup.split()[0], "setups")


def summary(cells: Cells) -> str:
    """How many cells there are of each kind, for each version."""
    texts = [(version, text) for row in cells.values() for cell in row.values() for version, text in cell.items()]
    head = ["ComfyUI", "cells", "work", "refused", "not in this version", "fail"]
    kinds = ("works", "refused", "not there", "fails")
    body = []
    for version in TESTED:
        own = [text for release, text in texts if release == version]
        body.append([version, str(len(own)), *(str(sum(text.startswith(kind) for text in own)) for kind in kinds)])
    return table(head, body)


def short(rows: Iterable[Mapping[str, Any]], cells: Cells) -> str:
    """The methods that have a line in the README, with one row for all families of which the same is true."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        lacking, texts = _line([cells[row["row"]][method] for method in SHORT], None)
        alike.setdefault(tuple(texts), []).append(row["family"] + lacking)
    return table(["family", *SHORT], [[", ".join(families), *found] for found, families in alike.items()])


def _table(rows: Iterable[Mapping[str, Any]], cells: Cells, keys: tuple[str, ...], only: set[str] | None = None) -> str:
    """With the longer texts as notes below."""
    rows, notes = list(rows), dict[str, int]()
    methods = [method for method in rows[0]["cells"] if only is None or method in only]
    names = {"family": "family", "set-up": "setup"}
    body = []
    for row in rows:
        lacking, texts = _line([cells[row["row"]][method] for method in methods], notes)
        *first, last = (row[names[key]] for key in keys)
        body.append([*first, last + lacking, *texts])
    text = table([*keys, *methods], body)
    return "\n\n".join([text, "\n".join(f"{number}. {note}." for note, number in notes.items())]) if notes else text


def _line(row: Iterable[Mapping[str, str]], notes: dict[str, int] | None) -> tuple[str, list[str]]:
    """Which versions do not have the whole row, and the texts of its cells for the others."""
    row = list(row)
    lacking = [version for version in TESTED if all(cell[version].startswith("not there") for cell in row)]
    versions = [version for version in TESTED if version not in lacking]
    texts = [_cell({version: cell[version] for version in versions}, notes) for cell in row]
    return f" (not in {', '.join(lacking)})" if lacking else "", texts


def _cell(by_version: Mapping[str, str], notes: dict[str, int] | None) -> str:
    """What all versions say alike, or each of them."""
    short = {version: _short(text, notes) for version, text in by_version.items()}
    if len(set(short.values())) == 1:
        return next(iter(short.values()))
    return "; ".join(f"{version}: {text}" for version, text in short.items())


def _short(text: str, notes: dict[str, int] | None) -> str:
    """The first words of a cell, with the number of a note for the others if there are to be notes."""
    if text == "works":
        return text
    first, mark, rest = text.partition(": ")
    if first.startswith("works, ") and not mark:
        return text
    if first == "not there":
        return "not there"
    if notes is None:
        return first
    note = f"{first[0].upper()}{first[1:]}: {rest}" if mark else text
    without_numbers = re.sub(r"\d+", "", note)
    alike = next((one for one in notes if re.sub(r"\d+", "", one) == without_numbers), note)
    return f"{first} [{notes.setdefault(alike, len(notes) + 1)}]"
