"""A differentiable function of rows through a ComfyUI model, as many rows at once as memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from .gradients import gradients

Pullback = Callable[[Tensor], Tensor]


class InChunks:
    """Rows in, vectors and their pullback out. A subclass has `module`, `device`, and the two methods at the end.

    Row k of the result depends on row k of the input alone, and so not on the chunks.
    """

    module: Any
    chunk: int = 0  # rows at once; 0 is as many as memory allows

    @property
    def device(self) -> torch.device:
        raise NotImplementedError

    def __call__(self, rows: Tensor) -> tuple[Tensor, Pullback]:
        """Vectors `[N, E]` of rows `[N, ...]`, and their pullback. Call it inside `gradients()`."""
        count = len(rows)
        self.chunk = min(self.chunk or self._chunk_for(count), count)
        if self.chunk >= count:
            try:
                return self._with_graph(rows)
            except comfy.model_management.OOM_EXCEPTION as error:
                self._halve_chunk(error)
        return self.vectors(rows), lambda gradient: self._in_chunks(
            count, lambda some: self._with_graph(rows[some])[1](gradient[some])
        )

    def vectors(self, rows: Tensor) -> Tensor:
        """Vectors `[N, E]` of rows `[N, ...]`, without a gradient. Raises ComfyUI's interrupt on Cancel."""
        count = len(rows)
        self.chunk = min(self.chunk or self._chunk_for(count), count)

        def work(some: slice) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return self._plain(rows[some])

        return self._in_chunks(count, work)

    def memory(self, count: int) -> int:
        """Bytes that a gradient of `count` rows at once takes, about."""
        return count * self._bytes_per_row()

    def _with_graph(self, rows: Tensor) -> tuple[Tensor, Pullback]:
        variable = rows.detach().clone().requires_grad_()
        with gradients(self.module):
            vectors = self._vectors(variable)

        def pull_back(gradient: Tensor) -> Tensor:
            with gradients(self.module):
                return torch.autograd.grad(vectors, variable, gradient.to(vectors))[0]

        return vectors.detach(), pull_back

    def _plain(self, rows: Tensor) -> Tensor:
        with gradients(self.module), torch.no_grad():
            return self._vectors(rows.detach()).clone()

    def _chunk_for(self, count: int) -> int:
        free = comfy.model_management.get_free_memory(self.device)
        fits = int(0.5 * free / max(self._bytes_per_row(), 1))
        return max(1, min(count, fits))

    def _in_chunks(self, count: int, work: Callable[[slice], Tensor]) -> Tensor:
        while True:
            try:
                return torch.cat([work(slice(at, at + self.chunk)) for at in range(0, count, self.chunk)])
            except comfy.model_management.OOM_EXCEPTION as error:
                self._halve_chunk(error)

    def _halve_chunk(self, error: Exception) -> None:
        # Where PyTorch has no such error, ComfyUI's name stands for every error.
        if self.chunk <= 1 or comfy.model_management.OOM_EXCEPTION is Exception:
            raise error
        self.chunk = math.ceil(self.chunk / 2)
        comfy.model_management.soft_empty_cache()

    def _vectors(self, rows: Tensor, /) -> Tensor:
        """Vectors `[N, E]` of rows `[N, ...]`; differentiable."""
        raise NotImplementedError

    def _bytes_per_row(self) -> int:
        """Of what autograd keeps for one row."""
        raise NotImplementedError
