"""What benchmarks measured, as JSON files: one a command, with a row for each line of a table.

`{"command": ..., "rows": [{"row": NAME, "commit": ..., ...}, ...]}`, where a row has the numbers of
`benchmarks.measure`, or `cells`, texts by column. Committed files lie in `benchmarks/results`; `python -m
benchmarks.report` makes the tables of docs/measurements from them. Rows with `from` in place of `commit` were read off
the page that it names and are rounded.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from devtools.pages import table
from devtools.places import HERE

COMMITTED = HERE.root / "benchmarks" / "results"
SCRATCH = HERE.root / ".dev" / "benchmarks"
_GIVEN = {"images", "prompts", "steps", "cfg", "seconds"}  # numbers of a row that are no figures


def add_row(path: Path, command: str, row: Mapping[str, Any]) -> None:
    """Adds a row to the file, in place of an earlier one of the same name."""
    found = read(path) if path.exists() else {"rows": []}
    rows = {one["row"]: one for one in found["rows"]}
    rows[row["row"]] = {**row, "commit": commit()}
    write(path, command, list(rows.values()))


def write(path: Path, command: str, rows: Sequence[Mapping[str, Any]]) -> None:
    replace(path, json.dumps({"command": command, "rows": rows}, indent=1) + "\n")


def replace(path: Path, text: str) -> None:
    """Writes a file in one step: a stopped run, or a full disk, leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """Command and rows of a file. Raises ValueError for one that is missing, damaged, or without rows, and for a row
    without figures; later also for a figure that is asked of a row and is not there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [_Row(path, {"row": row["row"], **row}) for row in found["rows"]]
        without = [row["row"] for row in rows if not _has_figures(row)]
        if without or not rows:
            raise ValueError(f"row {without[0]!r} has neither figures nor cells" if without else "it has no rows")
        return {"command": found["command"], "rows": rows}
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; restore it, or make it again.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it, or delete it and make it again.") from error


def _has_figures(row: Mapping[str, Any]) -> bool:
    """Whether a row has cells, or a number that is not one of what it was made with."""
    return bool(row.get("cells")) or any(isinstance(row[name], (int, float)) for name in row.keys() - _GIVEN)


class _Row(dict[str, Any]):
    """A row of a file, which it names when it has not what is asked for."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"{self._path}: row {self['row']!r} has no {key}; make it again.")


def commit() -> str:
    """The commit that is checked out, in ten digits; `-dirty` if files differ from it."""
    git = ["git", "-C", str(HERE.root), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


class PrintedTable:
    """A table whose cells are texts: printed line by line, and kept in a file."""

    def __init__(self, path: Path, command: str, head: Sequence[str]) -> None:
        self._path, self._command, self._head = path, command, list(head)
        print(table(head, []), flush=True)

    def add(self, cells: Sequence[str], name: str | None = None) -> None:
        """name: what tells this row from others; its first cell by default."""
        print(table(cells, []).splitlines()[0], flush=True)
        row = {"row": name or cells[0], "cells": dict(zip(self._head, cells, strict=True))}
        add_row(self._path, self._command, row)
