"""The same initial noise for every image of a batch, so that images differ by their prompt alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_sampling
import comfy.nested_tensor
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..hooks.noise import Noise
from ..require import require

logger = logging.getLogger("ComfyUI-Diversity")

KEY = "diversity_shared_noise"
# Samplers that continue from the clean estimate alone, and so lose noise added after a step, or have no fixed steps.
_WITHOUT_STEP_NOISE = {
    "sample_lcm": "lcm",
    "sample_gradient_estimation_cfg_pp": "gradient_estimation_cfg_pp",
    "dpm_fast_function": "dpm_fast",
    "dpm_adaptive_function": "dpm_adaptive",
}
_SEED_OFFSET = 0x9E3779B97F4A7C15  # otherwise the noise of the first step would repeat the initial noise

Callback = Callable[[int, Tensor, Tensor, int], None]


class SharedNoise:
    """The noise that another NOISE has for image 0, for every image of a latent."""

    def __init__(self, noise: Noise) -> None:
        self.seed = noise.seed
        self._noise = noise

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Noise of the latent's shape; `batch_index` does not matter."""
        samples = input_latent["samples"]
        if samples.is_nested:
            first = comfy.nested_tensor.NestedTensor([tensor[:1] for tensor in samples.unbind()])
            noise = self._noise.generate_noise({**input_latent, "samples": first, "batch_index": [0]})
            shared = [_for_all(part, len(whole)) for part, whole in zip(noise.unbind(), samples.unbind(), strict=True)]
            return comfy.nested_tensor.NestedTensor(shared)
        noise = self._noise.generate_noise({**input_latent, "samples": samples[:1], "batch_index": [0]})
        return _for_all(noise, len(samples))


def with_shared_noise(model: ModelPatcher, per_step: float = 0.0, last: bool = False) -> ModelPatcher:
    """A clone of the model with which every sampler starts all images from the noise of the batch's first one.

    per_step: after every step but the last, every image gets Gaussian noise of its own with this standard deviation.
        For flow-matching models, whose latents have about unit variance at every step.
    last: after the last step too, where it stays in the image, as TPSO's release has it for SD3.5.

    Raises ValueError for `per_step` below 0, and above 0 on a model that is not flow-matching.
    """
    require(per_step >= 0, "noise_per_step", per_step, "0 or more")
    if per_step > 0 and not isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
        raise ValueError(
            f"noise_per_step is {per_step}, but this is not a flow-matching model (SD3, FLUX, Qwen-Image ...); it must "
            "be 0 here."
        )

    def wrapper(
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callback | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        shared = _for_all(noise[:1], len(noise))
        if torch.count_nonzero(noise) == 0:
            logger.warning("Shared noise: this sampler adds no noise, so there is none to share.")
        if per_step == 0:
            return executor(guider, sigmas, extra_args, callback, shared, latent_image, denoise_mask, *rest, **named)
        _refuse_unsuited(executor.class_obj, per_step)
        generator = torch.Generator().manual_seed(((extra_args.get("seed") or 0) + _SEED_OFFSET) % 2**64)
        callback = _with_step_noise(callback, per_step, sigmas, generator)
        found = executor(guider, sigmas, extra_args, callback, shared, latent_image, denoise_mask, *rest, **named)
        if not last or sigmas[-1] > 0:
            return found
        added = per_step * torch.randn(found.shape, generator=generator).to(found)
        return found + (added if denoise_mask is None else added * denoise_mask)

    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, wrapper)
    return patched


def _for_all(noise: Tensor, count: int) -> Tensor:
    return noise.repeat(count, *[1] * (noise.ndim - 1))


def _refuse_unsuited(sampler: Any, per_step: float) -> None:
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    if name in _WITHOUT_STEP_NOISE:
        raise ValueError(
            f"noise_per_step is {per_step}, but the sampler {_WITHOUT_STEP_NOISE[name]} would lose it, or has no fixed "
            "steps. Choose another sampler, or 0."
        )


def _with_step_noise(
    callback: Callback | None, per_step: float, sigmas: Tensor, generator: torch.Generator
) -> Callback:
    """A sampler's callback that also adds noise to the sampler's own tensor, in place, before the step is taken.

    For Euler this equals adding it after the step; samplers that rescale it within a step rescale the noise too.
    """

    def with_noise(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        if callback is not None:
            callback(step, denoised, x, total)
        # Noise after the last step would stay in the image.
        if step + 1 < len(sigmas) and sigmas[step + 1] > 0:
            x.add_(per_step * torch.randn(x.shape, generator=generator).to(x))

    return with_noise
