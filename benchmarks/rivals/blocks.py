"""What comes out of a joint transformer's blocks, changed on its way to the next block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ..job import Job

# `img` [B, L, D] and `txt` [B, T, D] (None behind the last block), to be changed in place of each other; then the run's
# transformer options.
AfterBlock = Callable[[dict[str, "Tensor | None"], dict[str, Any]], None]


def replace_blocks(job: Job, blocks: Iterable[int], after: AfterBlock) -> None:
    """Calls `after` with what each of these blocks gives."""

    def replacement(args: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        out = more["original_block"](args)
        after(out, args["transformer_options"])
        return out

    job.model = job.model.clone()
    for block in blocks:
        job.model.set_model_patch_replace(replacement, "dit", "double_block", block)
