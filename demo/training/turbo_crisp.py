"""The last phase of the demo's Z-Image Turbo, as the few-step model's: what was meant, and its own steps as starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip

from ..loader import TURBO_FILE
from .crisp import own_state
from .loop import Schedule, train
from .pairs import Make, made_pairs
from .places import continued
from .redraw import Redrawn
from .turbo import ByLength, Contexts, build, velocity_error
from .turbo_distil import PAIRS, PAIRS_SEED, captions_of_pairs, line_error, make_turbo_pairs

BATCH = 32
SCHEDULE = Schedule(1_200, 2e-3, warmup=50, average=0.995)
STUDENT_STEPS = (6, 8, 8, 10)
_CHUNK = 32


def make_pairs(folder: Path) -> tuple[Tensor, Tensor]:
    """The noises of `turbo_pairs` and the latents of what was meant by them, both `[PAIRS, 16, 16, 16]` fp16."""
    noises, made = make_turbo_pairs(folder)
    path = folder / "turbo_pairs_crisp.safetensors"

    def teacher() -> Make:
        captions, redrawn = captions_of_pairs(), Redrawn()
        return lambda _, own: {"clean": redrawn(made[own].float(), captions[own]).half()}

    return noises, made_pairs(path, PAIRS, _CHUNK, PAIRS_SEED, teacher)["clean"]


def train_turbo_crisp(folder: Path) -> nn.Module:
    torch.manual_seed(145)
    noises, cleans = make_pairs(folder)
    samples = ByLength(captions_of_pairs(), Contexts())

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        return crisp_loss(model, noises, cleans, samples, rng, own=step % 2 == 1)

    return train("turbo_crisp", continued(build(), TURBO_FILE), loss_at, SCHEDULE, folder, seed=146)


def crisp_loss(
    model: nn.Module, noises: Tensor, cleans: Tensor, samples: ByLength, rng: np.random.Generator, own: bool
) -> Tensor:
    """Loss towards the images that were meant: as `crisp.on_policy_loss` if `own`, else along the straight lines."""
    chosen, context = samples.batch(rng, BATCH)
    clean, noise = (part[chosen].float().to(DEVICE) for part in (cleans, noises))
    if not own:
        return line_error(model, clean, noise, context, rng)
    x, sigma = own_state(velocity_at(model, context), noise, rng, STUDENT_STEPS)
    level = torch.full((len(x),), sigma, device=DEVICE)
    return velocity_error(model, x, level, context, (x - clean) / sigma) * sigma**2


def velocity_at(model: nn.Module, context: Tensor) -> Callable[[Tensor, float], Tensor]:
    """The model's velocity `[N, 16, 16, 16]` under contexts `[N, L, D]`, of states and their noise level."""

    def velocity(x: Tensor, sigma: float) -> Tensor:
        with autocast():
            times = torch.full((len(x),), sigma, device=DEVICE)
            return model(x, times, context=context, num_tokens=context.shape[1]).float()

    return velocity
