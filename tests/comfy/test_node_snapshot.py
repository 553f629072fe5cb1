"""Saved workflows keep working: what a node had when it was recorded, it still has. Only additions at the end pass.

    RECORD_NODES=1 pytest tests/comfy/test_node_snapshot.py

adds to tests/comfy/node_snapshot.json what is new. It refuses to record what breaks saved workflows; to do that all the
same, delete the entry of the node from that file first.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from comfyui_diversity.nodes import NODES

RECORDED = Path(__file__).with_name("node_snapshot.json")
Snapshot = dict[str, dict[str, Any]]

pytestmark = pytest.mark.fast


def snapshot() -> Snapshot:
    """Of every node its widgets and sockets in order, which is how workflows save them, and its outputs."""
    return {node_id(node): described(node.GET_NODE_INFO_V1()) for node in sorted(NODES, key=node_id)}


def node_id(node: Any) -> str:
    return node.GET_SCHEMA().node_id


def described(info: dict[str, Any]) -> dict[str, Any]:
    sides: dict[str, list[dict[str, Any]]] = {"widgets": [], "sockets": []}
    for need, names in info["input_order"].items():
        for name in names:
            kind, options = (*info["input"][need][name], {})[:2]
            entry: dict[str, Any] = {"name": name, "required": need == "required"}
            if isinstance(kind, list):  # ComfyUI 0.3.75
                kind, options = "COMBO", {**options, "options": kind}
            entry["type"] = kind
            entry |= {key: options[key] for key in ("default", "min", "max", "options") if key in options}
            widget = "default" in entry or kind in ("STRING", "COMBO")
            sides["widgets" if widget else "sockets"].append(entry)
    outputs = [{"name": name, "type": kind} for name, kind in zip(info["output_name"], info["output"], strict=True)]
    return {**sides, "outputs": outputs}


def broken(old: Snapshot, new: Snapshot) -> list[str]:
    """What of the old is gone, other or elsewhere in the new, and what is new but would be missing in old workflows."""
    found = [f"{node} is gone" for node in old if node not in new]
    for node in old.keys() & new.keys():
        for side, before in old[node].items():
            now = new[node][side]
            for k, entry in enumerate(before):
                if k >= len(now) or not keeps(entry, now[k]):
                    found.append(f"{node}: {side}[{k}] was {entry}, is {now[k] if k < len(now) else 'gone'}")
            found += [
                f"{node}: {entry['name']} is new and has no default"
                for entry in now[len(before) :]
                if entry.get("required") and "default" not in entry and "options" not in entry
            ]
    return found


def keeps(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether every value that the old input took, the new one takes, and means the same where none is given."""
    if any(old.get(key) != new.get(key) for key in ("name", "type", "default")):
        return False
    if new.get("required") and not old["required"]:
        return False
    if ("min" in old and new["min"] > old["min"]) or ("max" in old and new["max"] < old["max"]):
        return False
    return set(old.get("options", ())) <= set(new.get("options", ()))


def test_saved_workflows_keep_working() -> None:
    new = snapshot()
    old = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
    assert not (problems := broken(old, new)), "\n".join(problems)
    if os.environ.get("RECORD_NODES"):
        RECORDED.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
    elif new != old:
        pytest.fail(f"Nodes have additions that are not recorded: RECORD_NODES=1 pytest {__file__}")


def test_changes_are_noticed_and_additions_pass() -> None:
    old: Snapshot = {
        "Node": {
            "widgets": [
                {"name": "a", "required": True, "type": "INT", "default": 1, "min": 0, "max": 9},
                {"name": "b", "required": False, "type": "COMBO", "options": ["x", "y"]},
            ],
            "sockets": [{"name": "model", "required": True, "type": "MODEL"}],
            "outputs": [{"name": "out", "type": "MODEL"}],
        }
    }

    def with_change(side: str, k: int, **change: Any) -> Snapshot:
        new = copy.deepcopy(old)
        new["Node"][side][k] |= change
        return new

    added = copy.deepcopy(old)
    added["Node"]["widgets"].append({"name": "c", "required": True, "type": "INT", "default": 0})
    added["Node"]["sockets"].append({"name": "options", "required": False, "type": "OPTIONS"})
    added["Other"] = added["Node"]
    for fine in (old, added, with_change("widgets", 0, max=10), with_change("widgets", 1, options=["y", "z", "x"])):
        assert broken(old, fine) == []

    swapped = copy.deepcopy(old)
    swapped["Node"]["widgets"].reverse()
    demanding = copy.deepcopy(old)
    demanding["Node"]["sockets"].append({"name": "clip", "required": True, "type": "CLIP"})
    for change in (
        {},
        {"Node": {**old["Node"], "outputs": []}},
        swapped,
        demanding,
        with_change("widgets", 0, default=2),
        with_change("widgets", 0, min=1),
        with_change("widgets", 0, type="FLOAT"),
        with_change("widgets", 1, options=["x"]),
        with_change("widgets", 1, required=True),
        with_change("sockets", 0, name="clip"),
    ):
        assert broken(old, change), change
