"""The chunker: halves, starts over, and gives up where fewer rows are no remedy."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from comfyui_diversity.core.hooks.chunks import Chunks
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


def test_where_pytorch_has_no_such_error_none_is_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfy.model_management, "OOM_EXCEPTION", Exception)
    sizes: list[int] = []
    with pytest.raises(Exception, match="out of memory"):
        Chunks(4).each(doubled(torch.arange(4.0), sizes, 2))
    assert sizes == [4]
