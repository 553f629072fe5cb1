"""What a ComfyUI server says of the pack: nodes, schema, help pages, templates."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

import pytest

from devtools.places import HERE, PACK_NAME
from devtools.server import Client


def declared_nodes() -> list[str]:
    """Node ids in the source of `nodes`: what should be registered, found without importing anything."""
    sources = [path.read_text(encoding="utf-8") for path in (HERE.root / "nodes").glob("*.py")]
    return sorted(name for source in sources for name in re.findall(r'node_id="([^"]+)"', source))


def nodes_of_the_pack(client: Client) -> dict[str, Any]:
    info = client.object_info()
    return {name: node for name, node in info.items() if node["python_module"] == f"custom_nodes.{PACK_NAME}"}


def inputs_without_tooltip(node: dict[str, Any]) -> list[str]:
    """Names of the inputs in one node's `/object_info` that explain nothing."""
    inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    return [name for name, entry in inputs.items() if len(entry) < 2 or not entry[1].get("tooltip", "").strip()]


@pytest.fixture(scope="module")
def nodes(client: Client) -> dict[str, Any]:
    return nodes_of_the_pack(client)


def test_every_node_is_registered(nodes: dict[str, Any]):
    assert declared_nodes() == sorted(nodes)
    assert "DiversityLoadDemoWorld" in nodes


def widgets(node: dict[str, Any]) -> list[str]:
    """Names of the inputs in one node's `/object_info` that have a widget other than a text box."""
    inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    return [
        name
        for name, (kind, *options) in inputs.items()
        if isinstance(kind, list)
        or kind in ("INT", "FLOAT", "BOOLEAN", "COMBO")
        or (kind == "STRING" and not options[0].get("multiline"))
    ]


def test_main_nodes_show_at_most_six_widgets(nodes: dict[str, Any]):
    crowded = {name: widgets(node) for name, node in nodes.items() if not name.endswith("Options")}
    assert {name: found for name, found in crowded.items() if len(found) > 6} == {}


def test_every_node_explains_itself(nodes: dict[str, Any]):
    for name, node in nodes.items():
        assert name.startswith("Diversity"), f"{name} could be the name of another pack's node"
        assert node["description"].strip(), f"{name} has no description"
        assert node["display_name"].strip(), f"{name} has no display name"
        assert inputs_without_tooltip(node) == [], f"inputs of {name} without a tooltip"
        tooltips = node["output_tooltips"] or []
        assert len(tooltips) == len(node["output"]), f"{name} has outputs without a tooltip"
        assert all(tooltips), f"{name} has outputs without a tooltip"


def test_a_missing_tooltip_would_be_noticed():
    """The check above on the shapes that the server sends."""
    node = {"input": {"required": {"a": ["INT"], "b": ["INT", {"tooltip": " "}], "c": ["INT", {"tooltip": "said"}]}}}
    assert inputs_without_tooltip(node) == ["a", "b"]
    assert inputs_without_tooltip({"input": {"optional": {"d": ["INT", {}]}}}) == ["d"]


def test_every_node_has_a_help_page(client: Client, nodes: dict[str, Any]):
    """Served under the address at which the front end asks for it."""
    for name in nodes:
        page = (HERE.root / "web" / "docs" / f"{name}.md").read_bytes()
        assert len(page.strip()) > 100, f"the help page of {name} says next to nothing"
        assert client.request(f"/extensions/{PACK_NAME}/docs/{name}.md") == page
    assert {path.stem for path in (HERE.root / "web" / "docs").glob("*.md")} == set(nodes)


def test_every_template_is_listed(client: Client):
    ours = {path.stem for path in (HERE.workflows).glob("*.json")}
    assert ours
    assert set(client.json("/workflow_templates")[PACK_NAME]) == ours
    for name in ours:
        path = HERE.workflows / f"{name}.json"
        served = client.json(f"/api/workflow_templates/{PACK_NAME}/{quote(name)}.json")
        assert served == json.loads(path.read_text(encoding="utf-8"))
