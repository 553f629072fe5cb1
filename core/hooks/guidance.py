"""Classifier-free guidance of a sampler's run: how strong it is, and switching it off for its first and last steps."""

from __future__ import annotations

import math
from typing import Any

import comfy.samplers
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..methods.schedule import step_position

_KEY = "diversity_guidance"


def guidance_of(guider: comfy.samplers.CFGGuider) -> float:
    """The guidance scale (CFG) of a guider, the largest one of a guider that has several; 1 is no guidance."""
    return max(float(getattr(guider, name, 1.0)) for name in ("cfg", "cfg1", "cfg2"))


def is_guided(guider: comfy.samplers.CFGGuider) -> bool:
    """Whether a guider asks the model for the negative prompt too."""
    return not math.isclose(guidance_of(guider), 1.0)


def can_go_unguided(guider: comfy.samplers.CFGGuider) -> bool:
    """Whether guidance is ComfyUI's plain one, which a scale of 1 switches off."""
    return is_guided(guider) and type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise


def guide_between(guider: comfy.samplers.CFGGuider, sigmas: Tensor, first: int, last: int) -> None:
    """In the run that has begun with this guider, guidance is off at its `first` first and `last` last steps, at
    whatever noise levels the sampler asks within them. The guider's options are the run's own copy, and nothing
    outlives the run."""
    levels = [float(sigma) for sigma in sigmas]
    end = len(levels) - 1 - last

    def predict(
        executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        own, model_options = executor.class_obj, {} if model_options is None else model_options
        position = step_position(levels, float(timestep.flatten()[0]))
        if position >= first and (position < end or last == 0):
            return executor(x, timestep, model_options, seed)
        scale, own.cfg = own.cfg, 1.0
        try:
            return executor(x, timestep, model_options, seed)
        finally:
            own.cfg = scale

    wrappers = guider.model_options["transformer_options"].setdefault("wrappers", {})
    wrappers.setdefault(WrappersMP.PREDICT_NOISE, {})[_KEY] = [predict]
