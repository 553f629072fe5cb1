"""Small helpers for schemas."""

from __future__ import annotations

from typing import TypeVar

from comfy_api.latest import io

_Input = TypeVar("_Input", bound=io.Input)


def advanced(widget: _Input) -> _Input:
    """The same input, shown only when a user asks for advanced ones."""
    # Older versions of ComfyUI pass the flag on to the front end but have no parameter for it.
    if hasattr(widget, "advanced"):
        widget.advanced = True
    else:
        widget.extra_dict = {**(widget.extra_dict or {}), "advanced": True}
    return widget
