"""A batch through a model in chunks of rows: as many rows at once as memory allows."""

from __future__ import annotations

import bisect
import contextlib
import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.utils._pytree import tree_map

from ..require import require
from .conditioning import conditioning_rows
from .gradients import gradients

Pullback = Callable[[Tensor], Any]
WithGraph = Callable[[slice], tuple[Tensor, Pullback]]
_Result = TypeVar("_Result")

_SHARE_BESIDE = 0.8  # of what a model leaves of the device's memory
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether fewer rows at once may help: PyTorch's own error, an accelerator's of that meaning (which newer versions
    of ComfyUI know), or one that says so in words: the CPU's, Apple's, that of a library of the GPU's."""
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY):
        return True
    management: Any = comfy.model_management
    # Where PyTorch has no such error, ComfyUI's name stands for every error.
    if management.OOM_EXCEPTION is Exception:
        return False
    known = getattr(management, "is_oom", None)
    return isinstance(error, management.OOM_EXCEPTION) if known is None else bool(known(error))


def check_chunk_size(size: int) -> None:
    """Raises ValueError for a number of images at once that is neither -1 (auto) nor 1 or more."""
    require(size == -1 or size >= 1, "chunk_size", size, "1 or more, or -1 (auto)")


class Chunks:
    """How many of a batch's rows go through a model at once, halved whenever memory runs out.

    size: below 1 is all of them, and fewer when memory runs out.
    """

    def __init__(self, count: int, size: int = -1) -> None:
        self.count = count
        self.size = count if size < 1 else min(size, count)

    @property
    def whole(self) -> bool:
        """Whether all rows go through the model at once."""
        return self.size == self.count

    def slices(self) -> Iterator[slice]:
        """The rows of each chunk."""
        return (slice(start, start + self.size) for start in range(0, self.count, self.size))

    def joined(self, work: Callable[[slice], _Result]) -> _Result:
        """`work(rows)` of every chunk, concatenated along the rows: tensors, or containers of tensors."""
        return tree_map(lambda *parts: torch.cat(parts), *[work(rows) for rows in self.slices()])

    def each(self, work: Callable[[slice], _Result]) -> _Result:
        """`joined(work)`, which starts over with half as many rows at once when memory runs out."""
        return self.retried(lambda: self.joined(work))

    def retried(self, work: Callable[[], _Result], last_resort: Callable[[], bool] = lambda: False) -> _Result:
        """`work()`, which starts over with half as many rows at once when memory runs out.

        last_resort: called when memory runs out for a single row; saves memory in some other way, and says whether
        that is worth another try.
        """
        while True:
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error) or (self.size == 1 and not last_resort()):
                    raise
            # Outside the handler: the error's traceback would keep the failed try's tensors in memory.
            self.size = math.ceil(self.size / 2)
            _release()

    def differentiable(self, graph: WithGraph, plain: Callable[[slice], Tensor]) -> tuple[Tensor, Pullback]:
        """The value of all rows, and its pullback, from a gradient with respect to the value to one with respect to
        what it was made from.

        One graph serves all rows; in chunks, whose graphs would not fit together, each is computed again for the
        gradient. graph: value and pullback of a chunk. plain: the value alone, without a graph.
        """
        if self.whole:
            return graph(slice(None))
        return self.joined(plain), lambda gradient: self._back(graph, gradient)

    def differentiable_retried(
        self, graph: WithGraph, plain: Callable[[slice], Tensor], last_resort: Callable[[], bool] = lambda: False
    ) -> tuple[Tensor, Pullback]:
        """`differentiable`, with half as many rows at once wherever memory runs out, on the way there or back. A graph
        must not outlive the call of its pullback."""
        value, first = self.retried(lambda: self.differentiable(graph, plain), last_resort)
        unused = [first]

        def back(gradient: Tensor) -> Any:
            return unused.pop()(gradient) if unused else self._back(graph, gradient)

        return value, lambda gradient: self.retried(lambda: back(gradient), last_resort)

    def _back(self, graph: WithGraph, gradient: Tensor) -> Any:
        return self.joined(lambda rows: graph(rows)[1](gradient[rows]))


def _release() -> None:
    """Gives memory back: what a failed try has left in the cache, and what it has fetched of a model ahead of its use,
    which newer versions of ComfyUI do."""
    prefetch = sys.modules.get("comfy.model_prefetch")
    if prefetch is not None:
        prefetch.cleanup_prefetch_queues()
    comfy.model_management.soft_empty_cache()


class Batch(Chunks):
    """The images of a run, with the guider's conditioning cut to those of a chunk."""

    def __init__(self, guider: comfy.samplers.CFGGuider, count: int, size: int = -1) -> None:
        super().__init__(count, size)
        self._guider = guider

    def guider(self, rows: slice) -> comfy.samplers.CFGGuider:
        """The guider with the conditioning of these images only; the run's own when they are all of them. Raises
        ValueError for conditioning that cannot be cut."""
        if self.whole:
            return self._guider
        guider = copy.copy(self._guider)
        guider.conds = conditioning_rows(guider.conds, range(self.count)[rows])
        return guider

    def rows(self, tensor: Tensor | None, rows: slice) -> Tensor | None:
        """The rows of a tensor that has one for each image; one that serves all images as it is."""
        return rows_of(tensor, rows, self.count)


def rows_of(tensor: Tensor | None, rows: slice, count: int) -> Tensor | None:
    """The rows of a tensor that has one for each of `count` images; one that serves all images as it is."""
    return tensor[rows] if tensor is not None and len(tensor) == count else tensor


def load_for_gradients(patcher: ModelPatcher, parts: Sequence[InChunks], count: int) -> None:
    """Loads a model, and makes room for a gradient of `count` rows through its parts, one after the other.

    Asks for no more than the model leaves of the device, unless one row alone needs more: ComfyUI would move the model
    itself out to make that room. What does not fit goes through in fewer rows at once.
    """
    beside = comfy.model_management.get_total_memory(patcher.load_device) - patcher.model_size()
    all_rows, one_row = (max(part.memory(rows) for part in parts) for rows in (count, 1))
    needed = max(min(all_rows, int(_SHARE_BESIDE * beside)), one_row)
    comfy.model_management.load_models_gpu([patcher], memory_required=needed)


class InChunks:
    """A differentiable function of rows through a model, as many rows at once as memory allows: gives vectors and
    their pullback. A subclass has `module`, `patcher`, `device`, and the two methods at the end.

    Row k of the result depends on row k of the input alone, and so not on the chunks.
    """

    module: Any
    patcher: ModelPatcher
    chunk: int = 0  # rows at once, once memory has not allowed all of them; 0 is all

    @property
    def device(self) -> torch.device:
        raise NotImplementedError

    def __call__(self, rows: Tensor) -> tuple[Tensor, Pullback]:
        """Vectors `[N, E]` of rows `[N, ...]`, and their pullback. Call it inside `gradients()`."""
        with self._chunks(len(rows)) as chunks:
            vectors, back = chunks.differentiable_retried(
                lambda some: self._with_graph(rows[some]), lambda some: self._interruptible(self._plain, rows[some])
            )

        def pull_back(gradient: Tensor) -> Tensor:
            with self._remembered(chunks):
                return back(gradient)

        return vectors, pull_back

    def vectors(self, rows: Tensor) -> Tensor:
        """Vectors `[N, E]` of rows `[N, ...]`, without a gradient. Raises ComfyUI's interrupt on Cancel."""
        with self._chunks(len(rows)) as chunks:
            return chunks.each(lambda some: self._interruptible(self._plain, rows[some]))

    def forward_only(self, rows: Tensor) -> Tensor:
        """As `vectors`, in ComfyUI's own mode: what serves gradients is left out, and may be what does not work."""
        with self._chunks(len(rows)) as chunks, torch.inference_mode():
            found = chunks.each(lambda some: self._interruptible(self._vectors, rows[some].detach()))
        return found.clone()

    def memory(self, count: int) -> int:
        """Bytes that a gradient of `count` rows at once takes, about."""
        return count * self._bytes_per_row()

    def _chunks(self, count: int) -> contextlib.AbstractContextManager[Chunks]:
        return self._remembered(Chunks(count, self.chunk or self._chunk_for(count)))

    @contextlib.contextmanager
    def _remembered(self, chunks: Chunks) -> Iterator[Chunks]:
        """What memory allows is kept for the next time. A few rows that went through whole say nothing about more."""
        try:
            yield chunks
        finally:
            if not chunks.whole:
                self.chunk = chunks.size

    def _interruptible(self, work: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return work(rows)

    def _with_graph(self, rows: Tensor) -> tuple[Tensor, Pullback]:
        variable = rows.detach().clone().requires_grad_()
        with gradients(self.module):
            graph = [self._vectors(variable)]

        def pull_back(gradient: Tensor) -> Tensor:
            with gradients(self.module):
                vectors = graph.pop()  # kept no longer than it takes
                return torch.autograd.grad(vectors, variable, gradient.to(vectors))[0]

        return graph[0].detach(), pull_back

    def _plain(self, rows: Tensor) -> Tensor:
        with gradients(self.module), torch.no_grad():
            return self._vectors(rows.detach()).clone()

    def _chunk_for(self, count: int) -> int:
        # Newer versions of ComfyUI give back, when it is asked for, what other models only keep in place.
        free = getattr(self.patcher, "get_free_memory", comfy.model_management.get_free_memory)(self.device)
        return max(1, bisect.bisect_right(range(1, count + 1), 0.5 * free, key=self.memory))

    def _vectors(self, rows: Tensor, /) -> Tensor:
        """Vectors `[N, E]` of rows `[N, ...]`; differentiable."""
        raise NotImplementedError

    def _bytes_per_row(self) -> int:
        """Of what autograd keeps for one row."""
        raise NotImplementedError
