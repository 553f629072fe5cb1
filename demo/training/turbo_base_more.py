"""The demo's Z-Image base model once more, from what the turbo model has learned to read and the MMDiT to draw.

Its first 2,300 small batches taught it what the prompts name, not to draw that soundly. The turbo model that was made
from it went on to learn rare words, and the MMDiT its own steps. So it goes on from the turbo model's weights, with the
velocities of the MMDiT as it is now, along three times as many of that model's runs: what a model for eight steps knows
of one image for each noise turns into the mean of all that could be, which guidance needs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..loader import TURBO_FILE
from .loop import Schedule, train
from .places import continued
from .turbo import build, loss_of_targets
from .turbo_targets import make_more_targets

BATCH = 32
SCHEDULE = Schedule(3_600, 2e-3, warmup=100, average=0.998)


def train_turbo_base_more(folder: Path) -> nn.Module:
    torch.manual_seed(325)
    loss_at = loss_of_targets(make_more_targets(folder), BATCH)
    return train("turbo_base_more", continued(build(), TURBO_FILE), loss_at, SCHEDULE, folder, seed=326)
