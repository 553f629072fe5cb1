"""What it costs in diversity when the variants of a prompt are searched without gradients.

    python -m benchmarks.tpso_search

Ten variants of tuning prompts of the demo world with its CLIP, kappa 0.8, by gradients and by search. "encodings" are
prompts that went through the text encoder forward; the gradient needs as many passes back besides.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from . import world  # noqa: F401 # isort: skip - this makes ComfyUI and the pack importable

import torch
from comfyui_diversity.core.drivers.tpso import recommended, vary_prompt
from comfyui_diversity.core.drivers.tpso_search import GRADIENT, SEARCH
from comfyui_diversity.core.hooks.text import PromptEncoder
from comfyui_diversity.core.methods.tpso import least_mean_pairwise
from comfyui_diversity.demo import loader
from comfyui_diversity.demo.world.prompts import TUNE_PROMPTS
from torch import Tensor

from .results import SCRATCH, PrintedTable

VARIANTS, KAPPA = 10, 0.8
HEAD = ["tokens", "by", "mean pairwise cosine", "most", "lower bound", "variants that miss", "encodings"]


@contextmanager
def counted() -> Iterator[list[int]]:
    """The batch sizes that go through an encoder."""
    sizes: list[int] = []
    real = PromptEncoder._vectors

    def vectors(self: PromptEncoder, offsets: Tensor) -> Tensor:
        sizes.append(len(offsets))
        return real(self, offsets)

    PromptEncoder._vectors = vectors
    try:
        yield sizes
    finally:
        PromptEncoder._vectors = real


@torch.inference_mode()
def line(clip: Any, added: int, optimiser: str, prompts: Sequence[Any]) -> list[str]:
    """One row of the table: means over prompts, and the worst of them."""
    recipe = recommended(KAPPA, added_tokens=added, optimiser=optimiser)
    spreads, missed, encodings = [], 0, []
    for seed, prompt in enumerate(prompts):
        with counted() as sizes:
            _, [outcome] = vary_prompt(clip, prompt.text, VARIANTS, seed, recipe)
        spreads.append(outcome.variants.spreads[-1].item())
        missed += outcome.missed
        encodings.append(sum(sizes))
    return [
        "the words" if added == 0 else f"{added} added",
        optimiser,
        f"{fmean(spreads):.3f}",
        f"{max(spreads):.3f}",
        f"{least_mean_pairwise(KAPPA, VARIANTS):.3f}",
        f"{missed} of {VARIANTS * len(prompts)}",
        f"{fmean(encodings):.0f}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    parser.add_argument("--prompts", type=int, default=8, help="how many of the tuning prompts")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    clip, prompts = loader.load_clip(), TUNE_PROMPTS[: options.prompts]
    command = f"python -m benchmarks.tpso_search --prompts {len(prompts)}"
    table = PrintedTable(options.out / "tpso_search.json", command, HEAD)
    for added in (0, 4):
        for optimiser in (GRADIENT, SEARCH):
            cells = line(clip, added, optimiser, prompts)
            table.add(cells, f"{cells[0]}, {cells[1]}")


if __name__ == "__main__":
    main()
