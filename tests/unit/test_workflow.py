"""The converter on what the real front end made of the same workflows, and on workflows that it must refuse."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from devtools.workflow import to_prompt

# Written by the front end itself: see tests/browser/test_conversion.py.
RECORDED = json.loads((Path(__file__).parent / "recorded_workflows.json").read_text(encoding="utf-8"))
INFO: dict[str, Any] = RECORDED["info"]


def recorded(name: str) -> dict[str, Any]:
    return copy.deepcopy(RECORDED["cases"][name]["workflow"])


def node_of(workflow: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(node for node in workflow["nodes"] if node["type"] == kind)


@pytest.mark.parametrize("name", RECORDED["cases"])
def test_as_the_front_end_did(name: str) -> None:
    case = RECORDED["cases"][name]
    assert to_prompt(case["workflow"], INFO) == case["prompt"]


@pytest.mark.parametrize("name", RECORDED["cases"])
def test_input_is_left_alone(name: str) -> None:
    workflow = recorded(name)
    before = copy.deepcopy(workflow)
    to_prompt(workflow, INFO)
    assert workflow == before


def test_the_value_behind_a_seed_is_skipped() -> None:
    prompt = to_prompt(recorded("widgets and seeds"), INFO)
    sampler = next(entry for entry in prompt.values() if entry["class_type"] == "KSampler")
    assert sampler["inputs"]["seed"] == 123456789012345
    assert sampler["inputs"]["steps"] == 3


def test_missing_values_are_defaults() -> None:
    workflow = recorded("widgets and seeds")
    node = node_of(workflow, "EmptyImage")
    node["widgets_values"] = [48]
    inputs = to_prompt(workflow, INFO)[str(node["id"])]["inputs"]
    assert inputs == {"width": 48, "height": 512, "batch_size": 1, "color": 0}


def test_a_list_is_no_link() -> None:
    workflow = recorded("widgets and seeds")
    node = node_of(workflow, "EmptyImage")
    node["widgets_values"] = [["1", 0], 64, 1, 0]
    assert to_prompt(workflow, INFO)[str(node["id"])]["inputs"]["width"] == {"__value__": ["1", 0]}


def test_refuses_a_prompt() -> None:
    with pytest.raises(ValueError, match="no list of nodes"):
        to_prompt(RECORDED["cases"]["reroutes"]["prompt"], INFO)


def test_refuses_an_unknown_node() -> None:
    workflow = recorded("reroutes")
    node_of(workflow, "PreviewImage")["type"] = "NoSuchNode"
    with pytest.raises(ValueError, match="'NoSuchNode', which the server does not know"):
        to_prompt(workflow, INFO)


def test_refuses_too_many_values() -> None:
    workflow = recorded("widgets and seeds")
    node_of(workflow, "KSampler")["widgets_values"].append(1)
    with pytest.raises(ValueError, match=r"KSampler\) has 8 widget values; the server's node has 7"):
        to_prompt(workflow, INFO)


def test_refuses_a_dangling_link() -> None:
    workflow = recorded("reroutes")
    workflow["links"] = workflow["links"][1:]
    with pytest.raises(ValueError, match="there is no link"):
        to_prompt(workflow, INFO)


def test_refuses_a_link_from_nowhere() -> None:
    workflow = recorded("reroutes")
    workflow["nodes"] = [node for node in workflow["nodes"] if node["type"] != "EmptyImage"]
    with pytest.raises(ValueError, match="there is no node"):
        to_prompt(workflow, INFO)


@pytest.mark.parametrize("text", ["a {red|blue} heart", "a heart // not this", r"a \{ brace"])
def test_refuses_text_that_the_front_end_rewrites(text: str) -> None:
    workflow = recorded("widgets and seeds")
    node_of(workflow, "CLIPTextEncode")["widgets_values"] = [text]
    with pytest.raises(ValueError, match=r"CLIPTextEncode.*text has a random choice"):
        to_prompt(workflow, INFO)


def test_refuses_values_by_name() -> None:
    workflow = recorded("widgets and seeds")
    node_of(workflow, "EmptyImage")["widgets_values"] = {"width": 64}
    with pytest.raises(ValueError, match="by name"):
        to_prompt(workflow, INFO)


def test_refuses_group_nodes() -> None:
    with pytest.raises(ValueError, match="group nodes"):
        to_prompt({"nodes": [], "extra": {"groupNodes": {"mine": {}}}}, INFO)


def test_refuses_a_subgraph_inside_itself() -> None:
    workflow = recorded("subgraph")
    definition = workflow["definitions"]["subgraphs"][0]
    own = next(node for node in workflow["nodes"] if node["type"] == definition["id"])
    definition["nodes"].append({**copy.deepcopy(own), "id": 99, "inputs": []})
    with pytest.raises(ValueError, match="contains itself"):
        to_prompt(workflow, INFO)


def test_refuses_a_loop() -> None:
    # Reroutes that feed each other have no beginning.
    workflow = recorded("reroutes")
    one, two = (node for node in workflow["nodes"] if node["type"] == "Reroute" and node["inputs"][0]["link"])
    for link in workflow["links"]:
        if link[0] == one["inputs"][0]["link"]:
            link[1] = two["id"]
    with pytest.raises(ValueError, match="loop"):
        to_prompt(workflow, INFO)
