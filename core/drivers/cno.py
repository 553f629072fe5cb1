"""Contrastive Noise Optimization at run time: the noise of a sampler's run, optimised on the run's own model."""

from __future__ import annotations

from torch import Tensor

from ..hooks.denoise import CleanEstimate
from ..hooks.gradients import gradients
from ..hooks.progress import Progress
from ..hooks.sampling import SamplerRun
from ..methods.cno import Settings, optimise_noise


class ContrastiveNoise:
    """Optimises the noise that a sampler's run starts from. Holds settings only, so one object serves many runs.

    gradient and chunk: see `CleanEstimate`.
    """

    def __init__(self, settings: Settings, gradient: str = "stop", chunk: int = 0) -> None:
        self._settings = settings
        self._gradient = gradient
        self._chunk = chunk

    def __call__(self, run: SamplerRun) -> Tensor:
        """Noise of the shape of `run.noise`; only what the run's mask lets change is changed."""
        if not self._settings.active:
            return run.noise
        progress = Progress(self._settings.iterations)
        with gradients():
            return optimise_noise(
                run.noise.clone(),
                CleanEstimate(run, self._gradient, self._chunk),
                self._settings,
                movable=None if run.denoise_mask is None else run.denoise_mask.clone() > 0,
                after_step=progress.step,
            )
