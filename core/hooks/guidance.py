"""Classifier-free guidance of a sampler's run: how strong it is, and switching it off for its first and last steps."""

from __future__ import annotations

import math
from typing import Any

import comfy.samplers
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..methods.schedule import step_position
from .caches import has_caches

_KEY = "diversity_guidance"


def guidance_of(guider: comfy.samplers.CFGGuider) -> float:
    """The guidance scale (CFG) of a guider, the largest one of a guider that has several; 1 is no guidance."""
    return max((float(getattr(guider, name)) for name in ("cfg", "cfg1", "cfg2") if hasattr(guider, name)), default=1.0)


def is_guided(guider: comfy.samplers.CFGGuider) -> bool:
    """Whether a guider asks the model for the negative prompt too."""
    return not math.isclose(guidance_of(guider), 1.0)


def guidance_stays(guider: comfy.samplers.CFGGuider, sampler: Any) -> str:
    """Why guidance cannot be switched off at single steps of a run by a scale of 1, in words; "" where it can."""
    options = guider.model_options
    if type(guider).predict_noise is not comfy.samplers.CFGGuider.predict_noise:
        return f"{type(guider).__name__} has a guidance of its own"
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "").removeprefix("sample_")
    if "cfg_pp" in name:  # they go along the negative prompt's prediction
        return f"the sampler {name} has a guidance of its own"
    if any(options.get(function) for function in ("sampler_cfg_function", "sampler_pre_cfg_function")):
        return "a node on the model (RescaleCFG, for instance) changes the guidance itself"
    if options.get("disable_cfg1_optimization"):
        return "a node on the model reads the negative prompt at every step"
    if has_caches(options):  # they compare a step with the one before, of both prompts
        return "there is a step cache on the model"
    return ""


def guide_between(guider: comfy.samplers.CFGGuider, sigmas: Tensor, first: int, last: int) -> None:
    """In the run that has begun with this guider, guidance is off at its `first` first and `last` last steps, at
    whatever noise levels the sampler asks within them. The guider's options are the run's own copy, and nothing
    outlives the run."""
    levels = sigmas.tolist()
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
