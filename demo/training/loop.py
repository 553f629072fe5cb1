"""One training loop for every model: seeded, resumable, with a moving average of the weights."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

_CHECKPOINT_SECONDS = 120


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: linear warm-up, then a cosine down to a hundredth of the peak rate."""

    steps: int
    rate: float
    warmup: int = 200
    weight_decay: float = 0.01
    average: float = 0.999  # decay of the moving average

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def train(
    name: str,
    model: nn.Module,
    loss_at: Callable[[nn.Module, int, np.random.Generator], Tensor],
    schedule: Schedule,
    folder: Path,
    seed: int,
    stop: int | None = None,
) -> nn.Module:
    """Minimise `loss_at(model, step, rng)` and return the averaged model.

    Every random number of step k comes from `rng`, which depends on (seed, k) alone, so a run that was stopped and
    resumed sees the same data as one that was not. The state is written to `folder` every two minutes. `stop` ends the
    run after that many steps of the schedule, for another phase to go on from there.
    """
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=schedule.rate, betas=(0.9, 0.99), weight_decay=schedule.weight_decay
    )
    checkpoint = folder / f"{name}.checkpoint.pt"
    start = _resume(checkpoint, model, averaged, optimiser)
    last = schedule.steps if stop is None else stop
    bar = tqdm(range(start, last), initial=start, total=last, desc=name, mininterval=5)
    saved, smooth = time.monotonic(), None
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate_at(step)
        model.train()
        loss = loss_at(model, step, np.random.default_rng([seed, step]))
        value = loss.item()
        if not math.isfinite(value):
            raise SystemExit(f"{name}: the loss became {value} at step {step}; start again from {checkpoint}.")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        _average(averaged, model, min(schedule.average, (step + 1) / (step + 10)))
        smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if time.monotonic() - saved > _CHECKPOINT_SECONDS or step + 1 == last:
            _save(checkpoint, step + 1, model, averaged, optimiser)
            saved = time.monotonic()
    return averaged


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    old = [p for p in averaged.parameters()]
    new = [p.detach() for p in model.parameters()]
    torch._foreach_lerp_(old, new, 1 - decay)
    for kept, current in zip(averaged.buffers(), model.buffers(), strict=True):
        kept.copy_(current)


def _save(path: Path, step: int, model: nn.Module, averaged: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    state = {
        "step": step,
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _resume(path: Path, model: nn.Module, averaged: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    averaged.load_state_dict(state["averaged"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"]
