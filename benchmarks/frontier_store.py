"""Rows of the frontier on disk: half done ones, from which a stopped run goes on, and the committed list of all.

A row in progress lies below `.dev/benchmarks/frontier/REVISION`, so that what another revision made is never met. The
committed file is one list; beside rows of another revision of their model, or of other numbers of prompts and images,
new ones are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from .results import COMMITTED, SCRATCH, replace

FRONTIER = COMMITTED / "frontier.json"
STORE = SCRATCH / "frontier"
_FIGURES = ("adherence", "fidelity", "good_share", "vendi", "quality_vendi")
# What tables and the picture take from a row.
NEEDED = ("key", "model", "revision", "role", "name", "settings", "cfg", "free", "prompts", "images", "seconds",
           "machine", "versions", "per_prompt", *_FIGURES, *(f"{name}_interval" for name in _FIGURES))  # fmt: skip


def folder_of(making: str, key: str) -> Path:
    """Where the images of a row are kept."""
    return STORE / making / hashlib.sha256(key.encode()).hexdigest()[:16]


def load(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none if there is no file. Raises ValueError for a file that is not such a list, or that has a
    row without figures."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, list) or any(not isinstance(row, dict) or "key" not in row for row in found):
            raise ValueError("it is not a list of rows")
        for row in found:
            if missing := [name for name in NEEDED if name not in row]:
                raise ValueError(f"row {row['key']!r} has no {', '.join(missing)}")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Delete it, or restore it by `git checkout`.") from error
    return found


def check(path: Path, model: str, current: Set[str], prompts: int, images: int) -> list[dict[str, Any]]:
    """The rows of the file. Raises ValueError where rows of the model cannot stand beside new ones: they are of none of
    the `current` revisions, or of other numbers of prompts, or of images of a prompt."""
    rows = load(path)
    own = [row for row in rows if row["model"] == model]
    if others := {row["revision"] for row in own} - current:
        theirs, new = (", ".join(sorted(one)) for one in (others, current))
        raise ValueError(
            f"{path} holds rows of revision {theirs} of {model}; this is {new}. "
            "Rows of two revisions are not mixed: give another folder by --out, or drop the other ones by --replace."
        )
    if others := {(row["prompts"], row["images"] // row["prompts"]) for row in own} - {(prompts, images)}:
        theirs, new = (" and ".join(map(_size, sorted(one))) for one in (others, {(prompts, images)}))
        raise ValueError(
            f"{path} holds rows of {theirs} for {model}; this is {new}. Such rows cannot be compared: give the same "
            "numbers, another folder by --out, or drop the other ones by --replace."
        )
    return rows


def _size(size: tuple[int, int]) -> str:
    return "--prompts {} --images {}".format(*size)


def merged(path: Path, row: Mapping[str, Any], current: Set[str]) -> list[dict[str, Any]]:
    """The rows of the file with this one in place of an earlier one of the same key. Raises as `check` does."""
    old = check(path, row["model"], current, row["prompts"], row["images"] // row["prompts"])
    return list({one["key"]: dict(one) for one in [*old, row]}.values())


def save(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One row a line, so that a change of one row is a change of one line."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    replace(path, f"[\n{lines}\n]\n" if rows else "[]\n")
