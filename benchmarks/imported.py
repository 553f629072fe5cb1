"""Which files of this repository some of its files import, directly or by way of others."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

_PACK = "comfyui_diversity"  # how benchmarks name the repository's root


def imported(files: Iterable[Path], root: Path) -> set[Path]:
    """The files themselves and all below `root` that they import, wherever in a file that stands."""
    found, new = set[Path](), set(files)
    while new:
        found |= new
        new = {path for file in new for path in _direct(file, root)} - found
    return found


def _direct(file: Path, root: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            places = [(root, one.name.split(".")) for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            start = file.parents[node.level - 1] if node.level else root
            places = [(start, parts), *((start, [*parts, one.name]) for one in node.names)]
        else:
            continue
        for start, parts in places:
            yield from _file_of(start, parts[1:] if start == root and parts[:1] == [_PACK] else parts)


def _file_of(start: Path, parts: list[str]) -> Iterator[Path]:
    place = start.joinpath(*parts)
    yield from (path for path in (place.with_suffix(".py"), place / "__init__.py") if parts and path.is_file())
