"""The MMDiT's last phase: it learns to make good what its own earlier steps have done.

In training, a half-finished image is a drawing under noise; in sampling it is whatever the steps before have left, a
heart half red and half pink, and nothing has taught the model what to do with that. So its own sampling, without and
with guidance, is followed through the levels at which the scene is decided but not yet finished, and from there it
learns the way to the finished image as the world draws it again (as in DAgger: Ross, Gordon and Bagnell 2011). Half of
the batches are drawings under noise as before, and levels above stay as they are: what the images are *of*, and how
much guidance narrows that, is not to change.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip

from ..loader import MMDIT_FILE
from . import mmdit
from .distil import sampling_levels
from .latents import Conditionings
from .loop import Schedule, train
from .mmdit import BATCH, SHORT
from .pairs import Make, made_pairs
from .places import EvenlyStated, captions_by_turns, continued
from .redraw import Redrawn

RUNS, STEPS, FIRST = 1_536, 12, 4  # images sampled, steps of each, and the first step that is learned from
CFGS = (1.0, 1.0, 1.5, 2.0, 3.0)  # of the runs, by turns
EMPTY_RUNS, EMPTY = 16, 0.12  # every so many runs, and the share of steps, that read no caption
NATURAL, UNIFORM = 4_000, 4_000  # drawings of each kind for the other batches
SCHEDULE, WHOLE = Schedule(700, 6e-4, warmup=30, average=0.995), 590
_CHUNK = 64


def captions_of_runs() -> list[str]:
    """By turns of a scene as the world draws it, now and then none, and with evenly drawn words."""
    return ["" if k % EMPTY_RUNS == 0 else text for k, text in enumerate(captions_by_turns(160, RUNS))]


def make_runs(folder: Path) -> tuple[Tensor, Tensor]:
    """Half-finished latents `[RUNS, STEPS - FIRST, 16, 16, 16]` and what was meant, `[RUNS, 16, 16, 16]`, fp16."""
    captions = captions_of_runs()

    def teacher() -> Make:
        model, conditionings, redrawn = continued(mmdit.build(), MMDIT_FILE).eval(), Conditionings(), Redrawn()

        def make(noise: Tensor, own: slice) -> dict[str, Tensor]:
            scales = torch.tensor([CFGS[k % len(CFGS)] for k in range(RUNS)[own]], device=DEVICE)
            states, made = _followed(model, noise, captions[own], conditionings, scales)
            return {"states": states.half(), "clean": redrawn(made, captions[own]).half()}

        return make

    found = made_pairs(folder / "own_steps.safetensors", RUNS, _CHUNK, 161, teacher)
    return found["states"], found["clean"]


def _followed(
    model: nn.Module, x: Tensor, captions: list[str], conditionings: Conditionings, cfg: Tensor
) -> tuple[Tensor, Tensor]:
    """The latents before each step from FIRST on, `[N, K, 16, 16, 16]`, and the finished ones, of noises `x`."""
    context, pooled = conditionings.encode(captions)
    empty_context, empty_pooled = conditionings.encode([""])
    guided = cfg != 1
    count, states = int(guided.sum()), []
    contexts = torch.cat([context, empty_context.expand(count, -1, -1)])[:, :SHORT]
    vectors = torch.cat([pooled, empty_pooled.expand(count, -1)])
    for k, (sigma, following) in enumerate(pairwise(sampling_levels(STEPS))):
        if k >= FIRST:
            states.append(x)
        times = torch.full((len(x) + count,), sigma * 1000, device=DEVICE)
        with autocast():
            found = model(torch.cat([x, x[guided]]), times, context=contexts, y=vectors).float()
        velocity, empty = found[: len(x)], found[len(x) :]
        scale = cfg[guided, None, None, None]
        velocity[guided] = empty + scale * (velocity[guided] - empty)
        x = x + (following - sigma) * velocity
    return torch.stack(states, 1), x


def train_mmdit_own_steps(folder: Path) -> nn.Module:
    torch.manual_seed(165)
    states, cleans = make_runs(folder)
    captions, conditionings = captions_of_runs(), Conditionings()
    drawings = EvenlyStated(folder, NATURAL, UNIFORM)
    sigmas = torch.tensor(sampling_levels(STEPS)[FIRST:STEPS], device=DEVICE)

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        whole = step > WHOLE
        if step % 2:
            clean, texts = drawings.batch(rng, BATCH)
            context, pooled = conditionings.encode(texts)
            noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32)).to(DEVICE)
            levels = mmdit.levels(rng, layout=False)
            return mmdit.velocity_loss(model, clean, noise, context, pooled, levels, rng, whole)
        chosen, at = rng.integers(RUNS, size=BATCH), rng.integers(len(sigmas), size=BATCH)
        context, pooled = conditionings.encode(["" if rng.random() < EMPTY else captions[k] for k in chosen])
        state, clean = (part.float().to(DEVICE) for part in (states[chosen, at], cleans[chosen]))
        return mmdit.correction_loss(model, state, clean, sigmas[at], context if whole else context[:, :SHORT], pooled)

    model = continued(mmdit.build(), MMDIT_FILE)
    return train("mmdit_own_steps", model, loss_at, SCHEDULE, folder, seed=166)
