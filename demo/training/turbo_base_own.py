"""The last phase of the demo's Z-Image base model: sound images, from its own steps as starts.

What it learned before, the MMDiT's velocities, says nothing about the states that its own steps lead to. So its own
sampling, without and with guidance, is followed, the world draws every image again with what its caption states, and
from the half-finished states it learns the way there, as the MMDiT did (`own_steps`, `rare_words`). Half of the batches
are the MMDiT's velocities as before: what its images are *of*, and how much guidance narrows that, stays as it is.
What it then draws worst is looked for once more, with new captions, and counts for more.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip

from ..loader import TURBO_BASE_FILE
from .distil import sampling_levels
from .loop import Schedule, train
from .own_steps import CFGS, EMPTY, STEPS, Runs
from .pairs import Make, made_pairs, with_the_worst_again
from .places import continued
from .rare_words import captions_of_rare_runs
from .redraw import Redrawn
from .turbo import ByLength, Contexts, build, loss_of_targets
from .turbo_base_more import BATCH
from .turbo_crisp import velocity_at
from .turbo_targets import make_more_targets

RUNS, AGAIN = 2_048, 1_536  # images sampled, in the first round and in the second
FIRST = 4  # the first of the steps that is learned from: what an image is of is decided before
SIGMAS = sampling_levels(STEPS)
SCHEDULE = Schedule(1_600, 1e-3, warmup=30, average=0.995)
AGAIN_SCHEDULE = Schedule(2_200, 1e-3, warmup=30, average=0.997)
_SEEDS, _AGAIN_SEEDS = (425, 426), (525, 526)  # of captions and noises
_CHUNK = 32


def make_runs(folder: Path) -> Runs:
    return _runs(folder / "turbo_base_own.safetensors", RUNS, *_SEEDS)


def make_runs_again(folder: Path) -> Runs:
    """Others, by the weights that learned from the first."""
    return _runs(folder / "turbo_base_own_again.safetensors", AGAIN, *_AGAIN_SEEDS)


def _runs(path: Path, count: int, caption_seed: int, seed: int) -> Runs:
    # Sorted, so that a chunk needs few batches: in use, nothing is padded.
    captions = sorted(captions_of_rare_runs(caption_seed, count), key=lambda text: (len(text.split()), text))
    scales = torch.tensor([CFGS[k % len(CFGS)] for k in range(count)], device=DEVICE)

    def teacher() -> Make:
        model, contexts, redrawn = continued(build(), TURBO_BASE_FILE).eval(), Contexts(), Redrawn()
        contexts.learn([*captions, ""])

        def make(noise: Tensor, own: slice) -> dict[str, Tensor]:
            texts = captions[own]
            states = torch.empty(len(noise), STEPS - FIRST, *noise.shape[1:])
            made = torch.empty_like(noise)
            empty = contexts[""].float().to(DEVICE)
            for part, context in contexts.together(texts):
                states[part], made[part] = followed(model, noise[part], context, empty, scales[own][part])
            clean = redrawn(made, texts)
            return {"states": states.half(), "clean": clean.half(), "error": (made - clean).square().mean((1, 2, 3))}

        return make

    found = made_pairs(path, count, _CHUNK, seed, teacher)
    return Runs(captions, *(found[name] for name in ("noise", "states", "clean", "error")))


def followed(model: nn.Module, x: Tensor, context: Tensor, empty: Tensor, cfg: Tensor) -> tuple[Tensor, Tensor]:
    """The latents before each step that is learned from, `[N, STEPS - FIRST, 16, 16, 16]`, and the finished ones, by
    Euler steps from the noises `x` with guidance of scale `cfg` `[N]`. context: `[N, L, D]`. empty: `[M, D]`."""
    guided, states = cfg != 1, []
    scale = cfg[guided, None, None, None]
    with_prompt, without = velocity_at(model, context), velocity_at(model, empty.expand(int(guided.sum()), -1, -1))
    for k, (sigma, following) in enumerate(pairwise(SIGMAS)):
        if k >= FIRST:
            states.append(x)
        velocity = with_prompt(x, sigma)
        if len(scale):
            base = without(x[guided], sigma)
            velocity[guided] = base + scale * (velocity[guided] - base)
        x = x + (following - sigma) * velocity
    return torch.stack(states, 1), x


def train_turbo_base_own(folder: Path) -> nn.Module:
    torch.manual_seed(427)
    return _trained("turbo_base_own", folder, with_the_worst_again(make_runs(folder)), SCHEDULE, seed=428)


def train_turbo_base_own_again(folder: Path) -> nn.Module:
    torch.manual_seed(527)
    runs = [make_runs(folder), *with_the_worst_again(make_runs_again(folder))]
    return _trained("turbo_base_own_again", folder, runs, AGAIN_SCHEDULE, seed=528)


def _trained(name: str, folder: Path, runs: list[Runs], schedule: Schedule, seed: int) -> nn.Module:
    """The model after a schedule on its own runs and, by turns, on the MMDiT's velocities."""
    velocities = loss_of_targets(make_more_targets(folder), BATCH)
    contexts, captions = Contexts(), [text for part in runs for text in part.captions]
    contexts.learn([""])
    samples = ByLength(captions, contexts)
    states, cleans = torch.cat([part.states for part in runs]), torch.cat([part.cleans for part in runs])

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        if step % 2:
            return velocities(model, step, rng)
        chosen, context = samples.batch(rng, BATCH)
        if rng.random() < EMPTY:
            context = contexts[""].float().to(DEVICE).expand(BATCH, -1, -1)
        return own_loss(model, states[chosen], cleans[chosen], context, rng)

    return train(name, continued(build(), TURBO_BASE_FILE), loss_at, schedule, folder, seed)


def own_loss(model: nn.Module, states: Tensor, cleans: Tensor, context: Tensor, rng: np.random.Generator) -> Tensor:
    """Mean squared error of the clean latents `[N, 16, 16, 16]` that are estimated from one each of the `states`
    `[N, STEPS - FIRST, 16, 16, 16]`."""
    at = torch.from_numpy(rng.integers(states.shape[1], size=len(states)))
    state, clean = (part.float().to(DEVICE) for part in (states[torch.arange(len(states)), at], cleans))
    sigma = torch.tensor(SIGMAS)[FIRST + at].to(DEVICE)
    with autocast():
        velocity = model(state, sigma, context=context, num_tokens=context.shape[1]).float()
    return (state - sigma.view(-1, 1, 1, 1) * velocity - clean).square().mean()
