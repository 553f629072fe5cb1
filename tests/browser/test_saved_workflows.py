"""Workflows that earlier versions of the pack have saved open whole, with every value where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from devtools.places import HERE

if TYPE_CHECKING:
    from devtools.frontend import Frontend

WORKFLOWS = sorted(path for path in (HERE.root / "tests" / "saved").glob("*/*.json") if ".prompt" not in path.name)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_opens_with_its_values(path: Path, frontend: Frontend) -> None:
    then = json.loads(path.with_suffix(".prompt.json").read_text(encoding="utf-8"))
    frontend.errors.clear()
    frontend.load(json.loads(path.read_text(encoding="utf-8")))
    assert frontend.unknown_nodes() == []
    now = frontend.prompt()
    assert now.keys() == then.keys()
    for node, saved in then.items():  # inputs that later versions have added are beside those
        assert now[node]["inputs"].items() >= saved["inputs"].items(), saved["class_type"]
    assert frontend.errors == []
