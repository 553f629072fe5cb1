"""Every template opens in the real front end, whole, and becomes the prompt that is kept of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devtools.graph import Prompt, shipped_prompt
from devtools.places import HERE

if TYPE_CHECKING:
    from devtools.frontend import Frontend

TEMPLATES = sorted(HERE.workflows.glob("*.json"))
SCREENSHOTS = HERE.root / "demo" / "output" / "screenshots"
TITLE_HEIGHT = 30
# Of a saved node; the rest differs between versions of the front end, which read one another's files.
ESSENCE = ("id", "type", "title", "pos", "size", "mode", "color", "inputs", "widgets_values")


def test_every_template_has_its_prompt() -> None:
    assert len(TEMPLATES) >= 3
    assert {path.name for path in TEMPLATES} == {path.name for path in HERE.prompts.glob("*.json")}


def workflow_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def essence_of_prompt(prompt: Prompt) -> Prompt:
    """Without the titles, which the front end translates and its versions name differently."""
    return {node_id: {key: node[key] for key in ("class_type", "inputs")} for node_id, node in prompt.items()}


@pytest.fixture(scope="module", params=TEMPLATES, ids=lambda path: path.stem)
def opened(request: pytest.FixtureRequest, frontend: Frontend) -> Path:
    """A template, open in the front end."""
    frontend.errors.clear()
    frontend.console.clear()
    frontend.load(workflow_of(request.param))
    return request.param


def test_template(opened: Path, frontend: Frontend) -> None:
    assert frontend.unknown_nodes() == []
    outdated = f"run `python -m devtools.templates --prompts {opened.stem}`"
    assert essence_of_prompt(frontend.prompt()) == essence_of_prompt(shipped_prompt(opened.stem)), outdated
    frontend.screenshot(SCREENSHOTS / f"{opened.stem}.png")
    assert frontend.red_nodes() == []
    assert frontend.console == []
    assert frontend.errors == []


def essence(node: dict[str, Any]) -> dict[str, Any]:
    """Without the inputs of unlinked widgets, which the front end leaves out though a label may hang on them."""
    inputs = [one for one in node.get("inputs") or [] if one.get("link") is not None or "widget" not in one]
    return {key: ({**node, "inputs": inputs}).get(key) or None for key in ESSENCE}


def test_saving_again_changes_nothing(opened: Path, frontend: Frontend) -> None:
    # A template that was edited by hand, or saved with another version of a node, comes back different.
    workflow, saved = workflow_of(opened), frontend.saved()
    assert [essence(node) for node in saved["nodes"]] == [essence(node) for node in workflow["nodes"]]
    assert saved["links"] == workflow["links"]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_nodes_do_not_overlap(path: Path) -> None:
    nodes = workflow_of(path)["nodes"]
    for k, a in enumerate(nodes):
        for b in nodes[k + 1 :]:
            beside = a["pos"][0] + a["size"][0] <= b["pos"][0] or b["pos"][0] + b["size"][0] <= a["pos"][0]
            above = a["pos"][1] + a["size"][1] <= b["pos"][1] - TITLE_HEIGHT
            below = b["pos"][1] + b["size"][1] <= a["pos"][1] - TITLE_HEIGHT
            assert beside or above or below, f"{a['type']} {a['id']} and {b['type']} {b['id']} overlap"
