"""How well Rarest First ranks: against what is known to be rare in the demo world, within the images of a prompt.

    python -m benchmarks.rarest_first                       # on the prompts for choosing
    python -m benchmarks.rarest_first --report              # on those that figures are published on

Spearman's rank correlation of each value with two truths that an attribute classifier reads off the images: how many
of the attributes that the prompt leaves open are rare (fewer than a tenth of such scenes have them), and how unlikely
they are together, -log p. Mean over prompts and its standard error; 0 is chance. "rare, first 3" is the rare share of
the three images that come first, beside that of all. A prompt whose images are all equally rare is left out of a
column. "far from the mean" is a rival without a model: the distance to the mean of the batch's latents.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from .rows import BATCH, FIRST_SEED, SETS  # isort: skip - this makes ComfyUI and the pack importable

import numpy as np
import torch
from comfyui_diversity.core.drivers.rarity import rarity_of
from comfyui_diversity.demo.scorer import Scorer
from comfyui_diversity.demo.world.attributes import distribution, rare_values
from comfyui_diversity.demo.world.prompts import Prompt
from torch import Tensor

from .results import SCRATCH, PrintedTable
from .world import RECIPES, World

FIRST = 3
HEAD = ["values", "with rare share", "with -log p", f"rare, first {FIRST}", "rare, all"]
# World, conditioning and finished latents to values.
Ranking = Callable[[World, list, Tensor], Tensor]


def by_looks(renoise: float, looks: int) -> Ranking:
    return lambda world, positive, latents: rarity_of(
        world.model, positive, {"samples": latents}, 0, renoise=renoise, noises=looks
    )


def far_from_the_mean(_world: World, _positive: list, latents: Tensor) -> Tensor:
    return (latents - latents.mean(0)).flatten(1).norm(dim=1)


RANKINGS: dict[str, Ranking] = {
    "far from the mean": far_from_the_mean,
    **{f"renoise {share}": by_looks(share, 4) for share in (0.25, 0.5, 0.75, 0.9)},
    "renoise 0.5, one look": by_looks(0.5, 1),
    "renoise 0.75, one look": by_looks(0.75, 1),
}


def truths(prompt: Prompt, attributes: dict[str, str]) -> tuple[float, float]:
    """Rare share and -log p of what the prompt leaves open."""
    uncommon = rare_values(prompt.object)
    rare = fmean(attributes[name] in uncommon[name] for name in prompt.unstated)
    return rare, -sum(math.log(distribution(name, prompt.object)[attributes[name]]) for name in prompt.unstated)


def rank_correlation(values: Sequence[float], truth: Sequence[float]) -> float | None:
    """Spearman's, ties at their mean rank; None where all are alike."""
    if len(set(values)) < 2 or len(set(truth)) < 2:
        return None
    return float(np.corrcoef(_ranks(values), _ranks(truth))[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values)
    return (found[:, None] > found).sum(1) + ((found[:, None] == found).sum(1) - 1) / 2


def line(name: str, found: list[tuple[list[float], list[float], list[float]]]) -> list[str]:
    """One row of the table from values, rare shares and -log p of each prompt's images."""
    shares, unlikely = ([rank_correlation(one[0], one[k]) for one in found] for k in (1, 2))
    first = [fmean(rare[k] for k in np.argsort(values)[::-1][:FIRST]) for values, rare, _ in found]
    whole = [fmean(rare) for _, rare, _ in found]
    return [name, _mean(shares), _mean(unlikely), f"{fmean(first):.3f}", f"{fmean(whole):.3f}"]


def _mean(correlations: Sequence[float | None]) -> str:
    known = [one for one in correlations if one is not None]
    return f"{fmean(known):.2f} ± {stdev(known) / math.sqrt(len(known)):.2f} ({len(known)})"


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(RECIPES), default="unet")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--only", nargs="*", choices=list(RANKINGS), default=list(RANKINGS))
    parser.add_argument("--prompts", type=int, default=0, help="only the first so many prompts")
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    world, scorer = World(options.model), Scorer.load()
    found: dict[str, list[Any]] = {name: [] for name in options.only}
    kind = "report" if options.report else "tune"
    for k, prompt in enumerate(SETS[kind][: options.prompts or None]):
        latents = world.latents(prompt.text, FIRST_SEED[kind] + k, BATCH)
        rare, unlikely = zip(*(truths(prompt, a) for a in scorer.read(world.images(latents))), strict=True)
        for name in options.only:
            values = RANKINGS[name](world, world.conditioning(prompt.text), latents)
            found[name].append((values.tolist(), list(rare), list(unlikely)))
    command = f"python -m benchmarks.rarest_first --model {options.model}{' --report' if options.report else ''}"
    command += f" --prompts {options.prompts}" if options.prompts else ""
    table = PrintedTable(options.out / f"rarest_first_{options.model}_{kind}.json", command, HEAD)
    for name, one in found.items():
        table.add(line(name, one))


if __name__ == "__main__":
    main()
