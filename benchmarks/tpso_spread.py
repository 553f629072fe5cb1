"""How near to the furthest possible apart the variants of a prompt come, and how many reach the similarity asked for.

    python -m benchmarks.tpso_spread

Ten variants of eighteen prompts of the demo world with its CLIP, in the steps that the node takes by default. The least
mean pairwise cosine that is possible is `least_mean_pairwise`; how far above it a prompt comes is in percent of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from . import world  # noqa: F401 # isort: skip - this makes ComfyUI and the pack importable

import torch
from comfyui_diversity.core.drivers.tpso import Recipe, vary_prompt
from comfyui_diversity.core.methods.tpso import Settings, least_mean_pairwise
from comfyui_diversity.demo import loader
from comfyui_diversity.demo.world.prompts import TUNE_PROMPTS

from .results import SCRATCH, PrintedTable

VARIANTS = 10
PROMPTS = TUNE_PROMPTS[:20]
ROWS = ((0, True), (0, False), (1, False), (2, False), (4, False))  # tokens added, words kept
HEAD = ["tokens", "similarity", "above the least (mean)", "above the least (most)", "variants that miss", "steps", "s"]


@torch.inference_mode()
def line(clip: Any, added: int, keep: bool, kappa: float) -> list[str]:
    """One row of the table: means over prompts, and the worst of them."""
    settings, least = Settings(kappa), least_mean_pairwise(kappa, VARIANTS)
    above, steps, missed, started = [], [], 0, time.perf_counter()
    for seed, prompt in enumerate(PROMPTS):
        _, [outcome] = vary_prompt(clip, prompt.text, VARIANTS, seed, Recipe(settings, added, keep))
        found = outcome.variants
        above.append(found.spreads[-1].item() / least - 1)
        missed += outcome.missed
        steps.append(len(found.cosines) - 1)
    return [
        ("the words" if added == 0 else f"{added} added") + (", kept" if keep else ""),
        f"{kappa:g}",
        f"{fmean(above):.1%}",
        f"{max(above):.1%}",
        f"{missed} of {VARIANTS * len(PROMPTS)}",
        f"{fmean(steps):.0f}",
        f"{(time.perf_counter() - started) / len(PROMPTS):.1f}",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    clip = loader.load_clip()
    table = PrintedTable(options.out / "tpso_spread.json", "python -m benchmarks.tpso_spread", HEAD)
    for added, keep in ROWS:
        for kappa in (0.6, 0.8, 0.95):
            cells = line(clip, added, keep, kappa)
            table.add(cells, f"{cells[0]}, {cells[1]}")


if __name__ == "__main__":
    main()
