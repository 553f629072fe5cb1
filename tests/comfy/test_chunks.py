"""The chunker: halves, starts over, and gives up where fewer rows are no remedy."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import pytest
import torch
from comfyui_diversity.core.hooks.chunks import Chunks
from comfyui_diversity.core.hooks.gradient_check import backward_pass
from torch import Tensor

pytestmark = pytest.mark.fast


def doubled(values: Tensor, sizes: list[int], fits: int):
    """Work that runs out of memory beyond so many rows at once; gives a container of tensors."""

    def work(rows: slice) -> dict[str, Tensor]:
        part = values[rows]
        sizes.append(len(part))
        if len(part) > fits:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return {"twice": 2 * part}

    return work


def test_starts_over_with_half_as_many_and_remembers() -> None:
    values, sizes = torch.arange(5.0), []
    chunks = Chunks(5)
    assert torch.equal(chunks.each(doubled(values, sizes, 2))["twice"], 2 * values)
    assert sizes == [5, 3, 2, 2, 1]
    assert (chunks.size, chunks.whole) == (2, False)


def test_one_row_that_does_not_fit_is_the_error_itself_unless_something_else_helps() -> None:
    values, sizes, resorts = torch.arange(2.0), [], []
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        Chunks(2).each(doubled(values, sizes, 0))
    assert sizes == [2, 1]

    def failing() -> None:
        raise comfy.model_management.OOM_EXCEPTION("out of memory")

    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        Chunks(1).retried(failing, lambda: resorts.append(0) or len(resorts) < 3)
    assert len(resorts) == 3


def test_one_row_that_does_not_fit_on_the_way_back_goes_there_and_back_again_once_something_else_helps() -> None:
    calls: list[str] = []

    def graph(rows: slice) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        calls.append("graph")

        def back(gradient: Tensor) -> Tensor:
            if "saved memory" not in calls:
                raise comfy.model_management.OOM_EXCEPTION("out of memory")
            return 2 * gradient

        return 2 * values[rows], back

    values = torch.ones(1)
    _, pull_back = Chunks(1).differentiable_retried(graph, lambda rows: 2 * values[rows], lambda: False)
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        pull_back(values)
    _, pull_back = Chunks(1).differentiable_retried(
        graph, lambda rows: 2 * values[rows], lambda: calls.append("saved memory") is None
    )
    assert pull_back(values).tolist() == [2.0]
    assert calls == ["graph", "graph", "saved memory", "graph"]


def test_what_was_fetched_ahead_is_let_go_before_another_try() -> None:
    prefetch = pytest.importorskip("comfy.model_prefetch", reason="this ComfyUI fetches nothing ahead")
    left: list[int] = []

    def work(rows: slice) -> Tensor:
        left.append(len(prefetch.PREFETCH_QUEUES))
        if len(left) == 1:
            prefetch.PREFETCH_QUEUES.append([None])
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return torch.arange(2.0)[rows]

    Chunks(2).each(work)
    assert left == [0, 0, 0]


def test_real_memory_of_the_cpu() -> None:
    def work(rows: slice) -> Tensor:
        part = torch.arange(8)[rows]
        torch.empty(2 ** (6 * len(part)), dtype=torch.uint8)  # all of them: more than there are addresses
        return part

    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"), backward_pass():
        work(slice(0, 8))
    chunks = Chunks(8)
    assert torch.equal(chunks.each(work), torch.arange(8))
    assert chunks.size == 4


@pytest.mark.skipif(not hasattr(comfy.model_management, "is_oom"), reason="this ComfyUI knows no such error")
def test_an_accelerators_own_error() -> None:
    values, sizes = torch.arange(4.0), []

    def work(rows: slice) -> Tensor:
        sizes.append(len(values[rows]))
        if sizes[-1] > 2:
            raise comfy.model_management.ACCELERATOR_ERROR("CUDA error: out of memory")
        return values[rows]

    assert torch.equal(Chunks(4).each(work), values)
    assert sizes == [4, 2, 2]


@pytest.mark.parametrize(
    "words", ["MPS backend out of memory (allocated: 8 GB)", "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"]
)
def test_errors_that_say_so_in_words(words: str) -> None:
    values, sizes = torch.arange(4.0), []

    def work(rows: slice) -> Tensor:
        sizes.append(len(values[rows]))
        if sizes[-1] > 2:
            raise RuntimeError(words)
        return values[rows]

    with pytest.raises(RuntimeError, match=words[:10]) as caught, backward_pass():
        work(slice(0, 4))
    assert type(caught.value) is RuntimeError  # no word about gradients
    assert torch.equal(Chunks(4).each(work), values)
    assert sizes == [4, 4, 2, 2]


def test_where_pytorch_has_no_such_error_none_is_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfy.model_management, "OOM_EXCEPTION", Exception)
    sizes: list[int] = []
    with pytest.raises(Exception, match="out of memory"):
        Chunks(4).each(doubled(torch.arange(4.0), sizes, 2))
    assert sizes == [4]
