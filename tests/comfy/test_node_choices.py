"""A choice that a node does not have, as in a workflow that a later version has saved: a sentence before any work."""

from __future__ import annotations

from typing import Any

import pytest
from comfy_api.latest import io
from comfyui_diversity.nodes import NODES

CHOICES = [
    pytest.param(node, widget, id=f"{node.GET_SCHEMA().node_id}-{widget.id}")
    for node in NODES
    for widget in node.GET_SCHEMA().inputs
    if isinstance(widget, io.Combo.Input)
]

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(("node", "widget"), CHOICES)
def test_unknown_choices_are_refused_by_name(node: Any, widget: io.Combo.Input) -> None:
    schema = node.GET_SCHEMA()
    values = {one.id: getattr(one, "default", None) for one in schema.inputs} | {widget.id: "of a later version"}
    for other in schema.inputs:
        if other.id not in ("options", widget.id) and values[other.id] is None:
            values[other.id] = ""  # something connected; it is not looked at
    if schema.is_input_list:
        values = {name: [value] for name, value in values.items()}
    with pytest.raises(ValueError, match=f"{widget.id} is 'of a later version'; it must be one of"):
        node.execute(**values)
