"""What the demo's Z-Image learns from: the MMDiT's velocities along the MMDiT's own sampling.

Learning from images takes many of them, as each says what one noise happened to be added to. The MMDiT knows the mean
of all that could have been, which is what the new model is to say. Every step of the MMDiT's sampling is such a lesson,
at a state that sampling visits; with guidance, at those that guided sampling visits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from .comfy_boot import DEVICE, autocast  # isort: skip

from ..loader import MMDIT_FILE
from ..world.attributes import sample_scene
from ..world.captions import caption, random_caption
from . import mmdit
from .latents import Conditionings
from .mmdit import SHIFT, SHORT
from .places import continued, evenly_stated_scene

RUNS, MORE_RUNS, STEPS = 1_536, 4_096, 10  # images sampled, the first time and later, and steps of each
GUIDED, CFGS = 3, (2.5, 5.0)  # every third chunk is guided
EMPTY = 0.08  # share of empty captions, and of a guided run's empty prompts that are kept
_SEEDS, _MORE_SEEDS = (130, 131), (330, 331)  # of captions and noises
_CHUNK = 32


@dataclass
class Targets:
    """States `[N, 16, 16, 16]`, their noise levels `[N]`, the velocities there (fp16), and the captions."""

    states: Tensor
    sigmas: Tensor
    velocities: Tensor
    captions: list[str]


def captions_of_runs(seed: int, count: int) -> list[str]:
    """By turns of a scene as the world draws it, or none, and with evenly drawn words in any wording."""
    rng = np.random.default_rng(seed)
    captions = []
    for k in range(count):
        scene, stated = evenly_stated_scene(rng)
        natural = "" if rng.random() < 2 * EMPTY else random_caption(sample_scene(rng), rng)
        captions.append(caption(scene, stated, rng) if k % 2 else natural)
    return captions


def make_targets(folder: Path) -> Targets:
    return make_lessons(folder / "turbo_targets.safetensors", RUNS, *_SEEDS)


def make_more_targets(folder: Path) -> Targets:
    """Others, of what the MMDiT has become since."""
    return make_lessons(folder / "turbo_targets_more.safetensors", MORE_RUNS, *_MORE_SEEDS)


@torch.no_grad()
def make_lessons(path: Path, count: int, caption_seed: int, seed: int) -> Targets:
    """Along so many runs, by the weights in the file; from the file at `path` if there is one."""
    partial = path.with_suffix(".partial")
    captions = captions_of_runs(caption_seed, count)
    parts = load_file(path if path.exists() else partial) if path.exists() or partial.exists() else {}
    done = int(parts["done"]) if parts else 0
    kept = {name: [parts[name]] if parts else [] for name in ("states", "sigmas", "velocities", "runs")}
    if done < count:
        teacher, conditionings = _teacher(), Conditionings()
        for first in tqdm(range(done, count, _CHUNK), initial=done // _CHUNK, total=count // _CHUNK, desc="targets"):
            for name, value in _chunk(teacher, conditionings, captions, first, seed).items():
                kept[name].append(value)
            if (first // _CHUNK) % 8 == 7 or first + _CHUNK >= count:
                kept = {name: [torch.cat(values)] for name, values in kept.items()}
                save_file({**{n: v[0] for n, v in kept.items()}, "done": torch.tensor(first + _CHUNK)}, partial)
        os.replace(partial, path)
    runs = torch.cat(kept["runs"]).long().tolist()
    texts = ["" if run < 0 else captions[run] for run in runs]
    states, sigmas, velocities = (torch.cat(kept[name]) for name in ("states", "sigmas", "velocities"))
    return Targets(states, sigmas, velocities, texts)


def _teacher() -> nn.Module:
    return continued(mmdit.build(), MMDIT_FILE).eval()


def _chunk(
    teacher: nn.Module, conditionings: Conditionings, captions: list[str], first: int, seed: int
) -> dict[str, Tensor]:
    """Lessons of one chunk of runs. A run of -1 stands for an empty prompt."""
    rng = np.random.default_rng([seed, first])
    chunk = first // _CHUNK
    cfg = CFGS[chunk // GUIDED % len(CFGS)] if chunk % GUIDED == 0 else 1.0
    some = captions[first : first + _CHUNK]
    context, pooled = conditionings.encode([*some, ""])
    context = context[:, :SHORT]
    x = torch.from_numpy(rng.standard_normal((len(some), 16, 16, 16), np.float32)).to(DEVICE)
    even = torch.linspace(1, 0, STEPS + 1)
    even[1:-1] += float(rng.uniform(-0.5, 0.5)) / STEPS  # other levels in every chunk
    sigmas = (SHIFT * even / (1 + (SHIFT - 1) * even)).tolist()
    lessons: dict[str, list[Tensor]] = {"states": [], "sigmas": [], "velocities": [], "runs": []}

    def velocity(states: Tensor, sigma: float, ctx: Tensor, y: Tensor) -> Tensor:
        with autocast():
            return teacher(states, torch.full((len(states),), sigma * 1000, device=DEVICE), context=ctx, y=y).float()

    def note(states: Tensor, sigma: float, velocities: Tensor, runs: list[int]) -> None:
        lessons["states"].append(states.half().cpu())
        lessons["sigmas"].append(torch.full((len(states),), sigma))
        lessons["velocities"].append(velocities.half().cpu())
        lessons["runs"].append(torch.tensor(runs, dtype=torch.long))

    for sigma, following in pairwise(sigmas):
        v = velocity(x, sigma, context[:-1], pooled[:-1])
        note(x, sigma, v, list(range(first, first + len(some))))
        if cfg > 1:
            empty = velocity(x, sigma, context[-1:].expand_as(context[:-1]), pooled[-1:].expand_as(pooled[:-1]))
            here = np.flatnonzero(rng.random(len(some)) < 2 * EMPTY)
            note(x[here], sigma, empty[here], [-1] * len(here))
            v = empty + cfg * (v - empty)
        x = x + (following - sigma) * v
    return {name: torch.cat(values) for name, values in lessons.items()}
