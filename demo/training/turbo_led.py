"""Z-Image Turbo's phase beside the distilled MMDiT: told at its own states where that model would go from there.

Pairs are dear, and 1,792 are soon learned by heart. The distilled MMDiT answers from any state in one call, so here
every step has new noises and captions: the student goes some of its own steps, and learns the other's velocity there
(on-policy distillation: Agarwal et al. 2024). A third of the batches are redrawn pairs as before: there the distilled
model's own faults are not learned.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip

from ..loader import DISTILLED_FILE, TURBO_FILE
from . import mmdit
from .crisp import own_state
from .latents import Conditionings
from .loop import Schedule, train
from .mmdit import SHORT
from .places import captions_by_turns, continued
from .turbo import ByLength, Contexts, build, velocity_error
from .turbo_crisp import BATCH, STUDENT_STEPS, crisp_loss, make_pairs, velocity_at
from .turbo_distil import captions_of_pairs

CAPTIONS = 6_144
SCHEDULE = Schedule(1_500, 2e-3, warmup=50, average=0.995)


def train_turbo_led(folder: Path) -> nn.Module:
    torch.manual_seed(155)
    pairs, contexts = make_pairs(folder), Contexts()
    captions = captions_by_turns(150, CAPTIONS)
    samples, drawn = ByLength(captions, contexts), ByLength(captions_of_pairs(), contexts)
    teacher, conditionings = continued(mmdit.build(), DISTILLED_FILE).eval().requires_grad_(False), Conditionings()

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        if step % 3 == 2:
            return crisp_loss(model, *pairs, drawn, rng, own=step % 2 == 1)
        chosen, context = samples.batch(rng, BATCH)
        noise = torch.from_numpy(rng.standard_normal((BATCH, 16, 16, 16), np.float32)).to(DEVICE)
        x, sigma = own_state(velocity_at(model, context), noise, rng, STUDENT_STEPS)
        level = torch.full((len(x),), sigma, device=DEVICE)
        states, pooled = conditionings.encode([captions[k] for k in chosen])
        with torch.no_grad(), autocast():
            velocity = teacher(x, 1000 * level, context=states[:, :SHORT], y=pooled).float()
        return velocity_error(model, x, level, context, velocity) * sigma**2

    return train("turbo_led", continued(build(), TURBO_FILE), loss_at, SCHEDULE, folder, seed=156)
