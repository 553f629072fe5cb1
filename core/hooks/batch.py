"""The pictures of a batch, as many through the model at once as memory allows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from .conditioning import conditioning_rows


class Batch:
    """How many of a run's pictures go through the model at once.

    chunk: 0 is all of them, and fewer when memory runs out. Raises ValueError for a negative one.
    """

    def __init__(self, guider: comfy.samplers.CFGGuider, size: int, chunk: int = 0) -> None:
        if chunk < 0:
            raise ValueError(f"chunk is {chunk}; it must be 0 (all pictures at once) or more.")
        self._guider = guider
        self._size = size
        self._chunk = min(chunk or size, size)

    @property
    def whole(self) -> bool:
        """Whether all pictures go through the model at once."""
        return self._chunk == self._size

    def each(self, work: Callable[[slice], Tensor]) -> Tensor:
        """`work(rows)` for all pictures, put together; begins anew with half as many at once when memory runs out."""
        while True:
            try:
                starts = range(0, self._size, self._chunk)
                return torch.cat([work(slice(start, start + self._chunk)) for start in starts])
            except comfy.model_management.OOM_EXCEPTION as error:
                self.halve(error)

    def halve(self, error: Exception) -> None:
        """From now on half as many at once. Raises the error where that is no remedy."""
        # Where PyTorch has no such error, ComfyUI's name stands for every error.
        if self._chunk == 1 or comfy.model_management.OOM_EXCEPTION is Exception:
            raise error
        self._chunk = math.ceil(self._chunk / 2)
        comfy.model_management.soft_empty_cache()

    def guider(self, rows: slice) -> comfy.samplers.CFGGuider:
        """The guider with the conditioning of these pictures only; the run's own when they are all of them. Raises
        ValueError for conditioning that cannot be cut."""
        if self.whole:
            return self._guider
        guider = copy.copy(self._guider)
        guider.conds = conditioning_rows(guider.conds, range(self._size)[rows])
        return guider

    def rows(self, tensor: Tensor | None, rows: slice) -> Tensor | None:
        """The rows of a tensor that has one for each picture; one that serves all pictures as it is."""
        return tensor[rows] if tensor is not None and len(tensor) == self._size else tensor
