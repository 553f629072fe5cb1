"""Absurd values of widgets, by the API or from another node: refused by ComfyUI, or a sentence before any work."""

from __future__ import annotations

import asyncio
import math
import re
from typing import Any

import pytest
from comfy_api.latest import io
from comfyui_diversity.nodes import NODES

WIDGETS = (io.Combo.Input, io.Int.Input, io.Float.Input, io.Boolean.Input, io.String.Input)
EVERY = [
    pytest.param(node, widget, id=f"{node.GET_SCHEMA().node_id}-{widget.id}")
    for node in NODES
    for widget in node.GET_SCHEMA().inputs
    if isinstance(widget, WIDGETS)
]
ABSURD = (math.nan, math.inf, -math.inf, 1e300, -1e300, 10**40, -(10**40), 0.5, "7", "of a later version", {}, [], True)


def not_allowed(widget: Any) -> list[Any]:
    """Of `ABSURD`, and just beyond the widget's limits."""
    if isinstance(widget, io.Combo.Input | io.String.Input):
        return [value for value in ABSURD if not (isinstance(widget, io.String.Input) and isinstance(value, str))]
    if isinstance(widget, io.Boolean.Input):
        return [value for value in ABSURD if value is not True]
    step = 1 if isinstance(widget, io.Int.Input) else 1e-6
    within = isinstance(widget, io.Float.Input) and widget.min <= 0.5 <= widget.max
    absurd = [value for value in ABSURD if not (within and value == 0.5)]
    return [*absurd, widget.min - step, widget.max + max(step, widget.max * 1e-6)]


def is_number_of(widget: Any, value: Any) -> bool:
    return isinstance(widget, io.Int.Input | io.Float.Input) and widget.min <= value <= widget.max


def values_of(node: Any, changed: dict[str, Any]) -> dict[str, Any]:
    """Defaults, and something for what has none or is connected, which nobody looks at."""
    schema = node.GET_SCHEMA()
    values = {one.id: getattr(one, "default", None) for one in schema.inputs}
    values = {name: "" if value is None else value for name, value in values.items() if name != "options"} | changed
    return {name: [value] for name, value in values.items()} if schema.is_input_list else values


@pytest.mark.parametrize(("node", "widget"), EVERY)
def test_from_another_node(node: Any, widget: Any) -> None:
    for value in not_allowed(widget):
        with pytest.raises(ValueError, match=re.escape(f"{widget.id} is {value!r}; it must be ")):
            node.execute(**values_of(node, {widget.id: value}))


@pytest.mark.parametrize(("node", "widget"), EVERY)
def test_by_the_api(node: Any, widget: Any, known: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What ComfyUI lets pass, it has made a value that is allowed, or the node refuses it."""
    import execution

    kind = node.GET_SCHEMA().node_id
    monkeypatch.setitem(known, kind, node)
    for value in not_allowed(widget):
        if isinstance(value, list):
            continue  # a link to ComfyUI
        prompt = {"1": {"class_type": kind, "inputs": {widget.id: value}}}
        _, errors, _ = asyncio.run(execution.validate_inputs("prompt", prompt, "1", {}))
        if any(error["extra_info"].get("input_name") == widget.id for error in errors):
            continue
        passed = prompt["1"]["inputs"][widget.id]
        if isinstance(widget, io.String.Input | io.Boolean.Input) or is_number_of(widget, passed):
            continue
        with pytest.raises(ValueError, match=f"{widget.id} is .*; it must be "):
            node.execute(**values_of(node, {widget.id: passed}))


@pytest.fixture
def known() -> dict[str, Any]:
    import nodes

    return nodes.NODE_CLASS_MAPPINGS  # pyrefly: ignore[missing-attribute] - ComfyUI's nodes
