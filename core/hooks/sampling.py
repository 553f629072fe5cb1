"""Changing the noise that a sampler starts from, on any sampler node, without touching the model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

logger = logging.getLogger("ComfyUI-Diversity")


@dataclass(frozen=True)
class SamplerRun:
    """A sampler's run just before its first step: the model is loaded and the conditioning is processed.

    noise: `[B, C, H, W]` or `[B, C, T, H, W]`, about unit variance, before it is scaled to the first sigma.
    latent_image: the image to start from, in the model's latent space; zeros for an empty latent.
    denoise_mask: 1 where the image may change, of the noise's shape; None for everywhere.
    """

    guider: comfy.samplers.CFGGuider
    sampler: comfy.samplers.Sampler
    sigmas: Tensor
    extra_args: dict[str, Any]
    noise: Tensor
    latent_image: Tensor
    denoise_mask: Tensor | None

    @property
    def model(self) -> Any:
        """The BaseModel."""
        return self.guider.inner_model


NoiseChange = Callable[[SamplerRun], Tensor]


def with_noise_change(model: ModelPatcher, key: str, change: NoiseChange, any_shape: bool = False) -> ModelPatcher:
    """A clone of the model with which every sampler starts from `change(run)` in place of its own noise.

    Wrappers of other packs stay in place; a change under the same key replaces the earlier one. A sampler that adds no
    noise, such as the second of two KSampler (Advanced) in a row, is left alone, and the log says so.

    any_shape: `change` can do with noise that has no image grid (sound, video and sound together).
    """

    def wrapper(
        executor: Any,
        guider: comfy.samplers.CFGGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        sampler = executor.class_obj
        # `changed_noise` applies its own change; applying this one as well would double the strength.
        if not isinstance(sampler, _Probe):
            if torch.count_nonzero(noise) == 0:
                logger.warning("%s: this sampler adds no noise, so there is none to change.", key)
            else:
                image = torch.zeros_like(noise) if latent_image is None else latent_image
                run = SamplerRun(guider, sampler, sigmas, extra_args, noise, image, denoise_mask)
                if not any_shape:
                    check_shape(noise)
                noise = change(run)
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *rest, **named)

    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, key)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, key, wrapper)
    return patched


def changed_noise(
    guider: comfy.samplers.CFGGuider,
    sigmas: Tensor,
    noise: Tensor,
    latent: dict[str, Any],
    seed: int,
    change: NoiseChange,
) -> Tensor:
    """The noise that a sampler with this guider and these sigmas would start from after `change`, on the CPU.

    Loads the model and processes the conditioning the way sampling does, and samples nothing. `latent` is the LATENT to
    be sampled: `samples`, and `noise_mask` if it has one. Raises ValueError for no sigmas and for zero noise.
    """
    if sigmas.numel() == 0:
        raise ValueError("sigmas is empty (denoise is 0): there is no first step whose noise could be optimised.")
    check_shape(noise)
    if torch.count_nonzero(noise) == 0:
        raise ValueError("The noise is zero everywhere (DisableNoise?): there is nothing to optimise.")
    return at_start(guider, sigmas, noise, latent, seed, change).to("cpu", noise.dtype)


def at_start(
    guider: comfy.samplers.CFGGuider,
    sigmas: Tensor,
    noise: Tensor,
    latent: dict[str, Any],
    seed: int,
    measure: Callable[[SamplerRun], Tensor],
) -> Tensor:
    """`measure(run)` of the run that a sampler with this guider and these sigmas would start.

    Nothing is sampled, and the pack's own patches of the model are not applied.
    """
    probe = _Probe(measure)
    # A copy: a guider stores the state of a run on itself, and this one is shared with the real sampler.
    copy.copy(guider).sample(
        noise, latent["samples"], probe, sigmas, denoise_mask=latent.get("noise_mask"), disable_pbar=True, seed=seed
    )
    assert probe.found is not None
    return probe.found


class _Probe(comfy.samplers.Sampler):
    """A sampler that only measures what a real one would start with, and samples nothing."""

    def __init__(self, measure: Callable[[SamplerRun], Tensor]) -> None:
        self._measure = measure
        self.found: Tensor | None = None

    def sample(
        self,
        model_wrap: comfy.samplers.CFGGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        image = torch.zeros_like(noise) if latent_image is None else latent_image
        self.found = self._measure(SamplerRun(model_wrap, self, sigmas, extra_args, noise, image, denoise_mask))
        return noise


def check_shape(noise: Tensor) -> None:
    """Raises ValueError for noise that is neither of an image nor of a video."""
    # Nested latents (video with sound) reach a sampler packed into one [B, 1, L] tensor.
    if getattr(noise, "is_nested", False) or noise.ndim not in (4, 5):
        shape = "nested" if getattr(noise, "is_nested", False) else list(noise.shape)
        raise ValueError(
            f"The latent is {shape}; this node reads [B, C, H, W] and [B, C, T, H, W]. Nested latents "
            "(video and sound together) and plain sound have no image grid to compare."
        )


def is_probe(sampler: Any) -> bool:
    """Whether this sampler samples nothing: it is the one of `at_start`."""
    return isinstance(sampler, _Probe)
