"""The attribute classifier behind the scorer: trained on scenes in which every attribute is equally likely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..scorer import AttributeClassifier, to_input
from ..world.attributes import VALUES
from .data import uniform_scenes
from .loop import Schedule, train

STEPS, BATCH = 3_000, 64


def train_scorer(folder: Path) -> nn.Module:
    torch.manual_seed(40)
    source = uniform_scenes(folder)
    images = to_input(source.images)
    labels = {
        name: torch.tensor([values.index(getattr(scene, name)) for scene in source.scenes])
        for name, values in VALUES.items()
    }

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        chosen = torch.from_numpy(rng.integers(len(source), size=BATCH))
        logits = model(_imperfect(images[chosen], rng))
        return torch.stack([F.cross_entropy(logits[name], labels[name][chosen]) for name in VALUES]).sum()

    return train("scorer", AttributeClassifier(), loss_at, Schedule(STEPS, 1.5e-3, weight_decay=0.05), folder, seed=41)


def _imperfect(images: Tensor, rng: np.random.Generator) -> Tensor:
    """A little blur, noise and exposure, so that a generated image is read as surely as a rendered one."""
    if rng.random() < 0.5:
        share = float(rng.uniform(0, 1))
        images = share * F.avg_pool2d(images, 3, 1, 1, count_include_pad=False) + (1 - share) * images
    noise = torch.from_numpy(rng.standard_normal(images.shape, np.float32)) * float(rng.uniform(0, 0.04))
    exposure = torch.from_numpy(rng.uniform(0.95, 1.05, (len(images), 3, 1, 1))).float()
    return (images * exposure + noise).clamp(0, 1)
