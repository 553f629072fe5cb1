"""DAVE: attenuation of the spatial mean (DC) of image tokens in early steps (ICML 2026, arXiv 2606.06813)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..job import Change, Job, share_done
from .blocks import replace_blocks


def attenuated(tokens: Tensor, strength: float) -> Tensor:
    """Tokens `[B, L, D]` less `strength` times their mean over L."""
    return tokens - strength * tokens.mean(1, keepdim=True)


def dave(strength: float, end: float = 0.1, blocks: int = 2) -> Change:
    """In the first `blocks` blocks, over the share `end` of the steps (the paper's tau, at most .15)."""

    def after(out: dict[str, Tensor | None], options: dict[str, Any]) -> None:
        image = out["img"]
        if image is not None and share_done(options, options["sigmas"]) < end - 1e-6:
            out["img"] = attenuated(image, strength)

    def change(job: Job) -> None:
        replace_blocks(job, range(blocks), after)

    return change
