"""The one way to show progress and to honour Cancel."""

from __future__ import annotations

import sys

import comfy.model_management
import comfy.utils
from comfy_execution.utils import get_executing_context


class Progress:
    """Progress bar of the node that runs now."""

    def __init__(self, steps: int) -> None:
        self._bar = comfy.utils.ProgressBar(steps)

    def step(self, text: str = "") -> None:
        """One step is done; `text` is shown on the node. Raises ComfyUI's interrupt when the user has pressed
        Cancel."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update(1)
        if text:
            show(text)


def running_node() -> str | None:
    """The id of the node that runs now: "12:5" is node 5 within subgraph 12. None where no prompt runs."""
    context = get_executing_context()
    return None if context is None else str(context.node_id)


def show(text: str, node: str | None = None) -> None:
    """Shows a few lines on a node; nothing where there is no front end.

    node: its id; None is the node that runs now. Lines for a node inside a subgraph are shown on the subgraph's own
        node too, which is all that is seen from outside.
    """
    # Not imported: where no server runs, there is none to be had.
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None:
        return
    if node is None:
        if (running := running_node()) is not None:
            server.send_progress_text(text, running)
        return
    parts = node.split(":")
    for depth in range(len(parts), 0, -1):
        server.send_progress_text(text, ":".join(parts[:depth]))
