"""The one way to show progress and to honour Cancel."""

from __future__ import annotations

import comfy.model_management
import comfy.utils


class Progress:
    """Progress bar of the node that runs now."""

    def __init__(self, steps: int) -> None:
        self._bar = comfy.utils.ProgressBar(steps)

    def step(self) -> None:
        """One step is done. Raises ComfyUI's interrupt when the user has pressed Cancel."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._bar.update(1)
