"""More seeds: images one by one, each with a seed of its own; of several times as many those that differ most."""

from __future__ import annotations

import torch
from torch import Tensor

from ..job import Change, Job
from ..peers import most_different


def more_seeds(times: int = 1) -> Change:
    """`times` as many finished images, of which a patient user keeps those that look least like each other (here: by
    their latents). With 1 it is what everybody does, and nothing is chosen."""

    def sample(job: Job) -> Tensor:
        generator = job.generator("more seeds")
        found = []
        for _ in range(times):
            job.noise = torch.randn(job.noise.shape, generator=generator)
            found.append(job.plain())
        images = torch.cat(found)
        flat = images.flatten(1)
        return images[most_different(flat - flat.mean(0), job.images)] if times > 1 else images

    def change(job: Job) -> None:
        job.sample = sample

    return change
