"""Contrastive Noise Optimization at run time: the noise of a sampler's run, optimised on the run's own model."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..hooks.denoise import CleanEstimate
from ..hooks.gradients import gradients
from ..hooks.noise_levels import training_steps
from ..hooks.progress import Progress, show
from ..hooks.sampling import SamplerRun
from ..methods.cno import PUBLISHED_ITERATIONS, PUBLISHED_RATE, RECOMMENDED, Settings, optimise_noise, published
from ..require import require

logger = logging.getLogger("ComfyUI-Diversity")


class ContrastiveNoise:
    """Optimises the noise that a sampler's run starts from. Holds settings only, so that one object serves many runs.

    gradient, chunk_size, late: see `CleanEstimate`. form: of the published settings, for the report; "" where the
    settings are not published ones. Raises ValueError for a value that is not allowed.
    """

    def __init__(
        self, settings: Settings, gradient: str = "stop", chunk_size: int = -1, late: bool = False, form: str = ""
    ) -> None:
        self._settings = settings
        self._gradient = gradient
        self._chunk_size = chunk_size
        self._late = late
        self._form = form

    @classmethod
    def recommended(
        cls, gradient: str = "stop", chunk_size: int = -1, form: str = "paper", **chosen: Any
    ) -> ContrastiveNoise:
        """With the recommended settings but for what is chosen. Raises ValueError for a published form."""
        require(form == "paper", "form", form, "paper in recommended mode; it chooses between the published forms")
        return cls(replace(RECOMMENDED, **chosen), gradient, chunk_size)

    @classmethod
    def published(
        cls, gradient: str = "stop", chunk_size: int = -1, form: str = "paper", **chosen: Any
    ) -> ContrastiveNoise:
        """With the settings of the paper (the stop-gradient), or of its released code (the full gradient, and alphas
        taken one level late). Raises ValueError for a chosen value that the form does not have."""
        if form == "paper":
            require(gradient == "stop", "gradient", gradient, 'stop in published mode with form "paper"')
            return cls(published(form, **chosen), "stop", chunk_size, form=form)
        return cls(published(form, **chosen), "full", chunk_size, late=True, form=form)

    def __call__(self, run: SamplerRun) -> Tensor:
        """Noise of the shape of `run.noise`; only what the run's mask lets change is changed."""
        if not self._settings.active:
            return run.noise
        if self._form:
            text = self.report(run)
            logger.info(text)
            show(text)
        progress = Progress(self._settings.iterations)
        with gradients():
            return optimise_noise(
                run.noise.clone(),
                CleanEstimate(run, self._gradient, self._chunk_size, self._late),
                self._settings,
                movable=None if run.denoise_mask is None else run.denoise_mask.clone() > 0,
                after_step=progress.step,
            )

    def report(self, run: SamplerRun) -> str:
        """Which published settings are used in this run, and what in them is not the published."""
        settings = self._settings
        rate = settings.strength / settings.iterations
        text = f"Diverse Noise as in the {self._form}: {settings.iterations} iterations at a learning rate of {rate:g}."
        other = []
        if abs(rate - PUBLISHED_RATE) > 1e-9 or settings.iterations != PUBLISHED_ITERATIONS:
            other.append(f"published are {PUBLISHED_ITERATIONS} at {PUBLISHED_RATE}")
        if settings.terms != "both":
            other.append(f"{settings.terms}, an ablation")
        if settings.terms == "no repulsion":
            other.append("attraction alone is at its maximum where it starts, so no noise moves")
        if self._late and training_steps(run.model.model_sampling) is None:
            other.append("this model has no discrete noise levels, so its alphas are not taken one level late")
        return " ".join([text, *(f"{one[0].upper()}{one[1:]}." for one in other)])
