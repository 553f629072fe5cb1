"""Contrastive Noise Optimization at run time: the noise of a sampler's run, optimised on the run's own model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..hooks.denoise import CleanEstimate
from ..hooks.gradients import gradients
from ..hooks.progress import Progress
from ..hooks.sampling import SamplerRun
from ..methods.cno import Settings, optimise_noise, published
from ..require import require


class ContrastiveNoise:
    """Optimises the noise that a sampler's run starts from. Holds settings only, so that one object serves many runs.

    gradient, chunk_size: see `CleanEstimate`. Raises ValueError for a value that is not allowed.
    """

    def __init__(self, settings: Settings, gradient: str = "stop", chunk_size: int = -1) -> None:
        self._settings = settings
        self._gradient = gradient
        self._chunk_size = chunk_size

    @classmethod
    def recommended(cls, gradient: str = "stop", chunk_size: int = -1, **chosen: Any) -> ContrastiveNoise:
        """With the recommended settings but for what is chosen."""
        return cls(Settings(**chosen), gradient, chunk_size)

    @classmethod
    def published(cls, gradient: str = "stop", chunk_size: int = -1, **chosen: Any) -> ContrastiveNoise:
        """With the paper's settings. Raises ValueError for a chosen value that the paper does not have."""
        require(gradient == "stop", "gradient", gradient, "stop in published mode")
        return cls(published(**chosen), gradient, chunk_size)

    def __call__(self, run: SamplerRun) -> Tensor:
        """Noise of the shape of `run.noise`; only what the run's mask lets change is changed."""
        if not self._settings.active:
            return run.noise
        progress = Progress(self._settings.iterations)
        with gradients():
            return optimise_noise(
                run.noise.clone(),
                CleanEstimate(run, self._gradient, self._chunk_size),
                self._settings,
                movable=None if run.denoise_mask is None else run.denoise_mask.clone() > 0,
                after_step=progress.step,
            )
