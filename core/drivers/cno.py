"""Contrastive Noise Optimization at run time: the noise of a sampler's run, optimised on the run's own model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..hooks.alike import differ_by_noise_alone
from ..hooks.denoise import CleanEstimate
from ..hooks.gradients import gradients
from ..hooks.noise_levels import training_steps
from ..hooks.progress import Progress, show
from ..hooks.sampling import SamplerRun
from ..methods.cno import (
    PUBLISHED_ITERATIONS,
    PUBLISHED_RATE,
    RECOMMENDED,
    Settings,
    optimise_noise,
    pool,
    published,
    require_several,
)
from ..methods.starts import candidates, most_different, pink, wide
from ..require import require

logger = logging.getLogger("ComfyUI-Diversity")

_OF_START = {"pink": 0.0, "candidates": 1, "wide": 1.0}  # and what is off


def _within(run: SamplerRun, noise: Tensor) -> Tensor:
    """The noise where the run's mask lets change, the run's own elsewhere."""
    return noise if run.denoise_mask is None else torch.where(run.denoise_mask > 0, noise, run.noise)


@dataclass(frozen=True)
class Start:
    """What a run's noise is before it is optimised.

    pink: exponent of its spectrum, 0 for white noise. candidates: so many times as many noises are drawn, of which
    those are kept whose clean estimates differ most: of all of them where the images differ by nothing but their noise,
    else of each image's own. wide: how many times as large its coarsest structure is, 1 for as it was drawn. Raises
    ValueError for a value that is not allowed.
    """

    pink: float = 0.0
    candidates: int = 1
    wide: float = 1.0

    def __post_init__(self) -> None:
        require(math.isfinite(self.pink) and self.pink >= 0, "pink", self.pink, "0 or more")
        require(self.candidates >= 1, "candidates", self.candidates, "1 or more")
        require(math.isfinite(self.wide) and self.wide >= 1, "wide", self.wide, "1 or more")

    def of(self, run: SamplerRun, settings: Settings, chunk_size: int, after_step: Callable[[], None]) -> Tensor:
        """The noise of the run; only what its mask lets change is changed. Call it inside `gradients()`."""
        chosen_from = candidates(run.noise.clone(), self.candidates)
        drawn = [_within(run, wide(pink(one, self.pink), self.wide)) for one in chosen_from]
        if self.candidates == 1:
            return drawn[0]
        require_several(run.noise)
        estimate, found = CleanEstimate(run, "stop", chunk_size), []
        for noise in drawn:
            found.append(pool(estimate(noise)[0].detach().float(), settings.window).flatten(1))
            after_step()
        chosen = most_different(torch.stack(found), differ_by_noise_alone(run))
        return torch.stack([drawn[choice][k] for choice, k in chosen])


class ContrastiveNoise:
    """Optimises the noise that a sampler's run starts from. Holds settings only, so that one object serves many runs.

    gradient, chunk_size, late: see `CleanEstimate`. form: of the published settings, for the report; "" where the
    settings are not published ones. start: what comes before the optimisation. Raises ValueError for a value that is
    not allowed.
    """

    def __init__(
        self,
        settings: Settings,
        gradient: str = "stop",
        chunk_size: int = -1,
        late: bool = False,
        form: str = "",
        start: Start | None = None,
    ) -> None:
        self._settings = settings
        self._start = start or Start()
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
        start = Start(**{name: chosen.pop(name) for name in _OF_START if name in chosen})
        return cls(replace(RECOMMENDED, **chosen), gradient, chunk_size, start=start)

    @classmethod
    def published(
        cls, gradient: str = "stop", chunk_size: int = -1, form: str = "paper", **chosen: Any
    ) -> ContrastiveNoise:
        """With the settings of the paper (the stop-gradient), or of its released code (the full gradient, and alphas
        taken one level late). Raises ValueError for a chosen value that the form does not have."""
        for name, off in _OF_START.items():
            given = chosen.pop(name, off)
            require(given == off, name, given, f"{off} in published mode")
        if form == "paper":
            require(gradient == "stop", "gradient", gradient, 'stop in published mode with form "paper"')
            return cls(published(form, **chosen), "stop", chunk_size, form=form)
        return cls(published(form, **chosen), "full", chunk_size, late=True, form=form)

    def __call__(self, run: SamplerRun) -> Tensor:
        """Noise of the shape of `run.noise`; only what the run's mask lets change is changed."""
        if not self._settings.active and self._start == Start():
            return run.noise
        if self._form:
            text = self.report(run)
            logger.info(text)
            show(text)
        passes = self._settings.iterations if self._settings.active else 0
        passes += self._start.candidates if self._start.candidates > 1 else 0
        progress = Progress(passes)
        with gradients():
            if self._start != Start():
                run = replace(run, noise=self._start.of(run, self._settings, self._chunk_size, progress.step))
            if not self._settings.active:
                return run.noise
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
