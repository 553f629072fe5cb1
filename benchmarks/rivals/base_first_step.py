"""The first step of a distilled model by its base model (Gandikota and Bau, arXiv 2503.10637)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

from ..job import Change, Job


@lru_cache(maxsize=2)
def _base(model: str) -> Any:
    from ..world import World

    return World(model).model


def base_first_step(cfg: float = 1.0, steps: int = 1) -> Change:
    """The first `steps` of the distilled model's schedule by the base model at `cfg`, then the distilled one."""

    def sample(job: Job) -> Tensor:
        base = {"distilled": "mmdit", "turbo": "turbo_base"}[job.world.name]
        own = job.cfg
        job.cfg = cfg
        half = job.plain(model=_base(base), last_step=steps)
        job.cfg = own
        return job.plain(noise=half.new_zeros(half.shape), latent_image=half, start_step=steps, disable_noise=True)

    def change(job: Job) -> None:
        job.sample = sample

    return change
