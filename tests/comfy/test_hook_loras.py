"""Hook LoRAs write the model's weights between two parts of one call: gradients are still those of that call."""

from __future__ import annotations

from typing import Any

import comfy.hooks
import comfy.samplers
import pytest
import torch
from comfyui_diversity.core.hooks.chunks import Chunks
from comfyui_diversity.core.hooks.denoise import CleanEstimate
from comfyui_diversity.core.hooks.gradients import checkpointed, gradients
from comfyui_diversity.core.hooks.sampling import SamplerRun, changed_noise
from comfyui_diversity.core.hooks.text_estimates import Passes, TextEstimates
from small.attached import hook_lora
from small.models import conditioning, random_latent, small_model
from torch import Tensor

BATCH = 2


def hooked(conds: list, group: comfy.hooks.HookGroup) -> list:
    return comfy.hooks.set_hooks_for_conditioning(conds, group)


def in_a_run(model: Any, positive: list, work: Any) -> Any:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, conditioning("eps", seed=1))
    guider.set_cfg(6.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    noise, found = random_latent("eps", BATCH), []

    def change(run: SamplerRun) -> Tensor:
        found.append(work(run))
        return run.noise

    with torch.inference_mode():
        changed_noise(guider, sigmas, noise, {"samples": torch.zeros_like(noise)}, 0, change)
    return found[0]


def network_part(function: Any, at: Tensor, gradient: Tensor, weight: Tensor, fixed: Tensor) -> tuple[float, float]:
    """How long the network's part of a gradient is, and the slope along it by finite differences: the same where it is
    right. `fixed` is the part that there is with the network's output held fixed, the larger one by far."""
    own = gradient - fixed
    direction = own / own.norm()
    size = 1.0
    ahead, back = (function(at + sign * size * direction).double() for sign in (1, -1))
    slope = float(((ahead - back) * weight).sum() / (2 * size)) - float((fixed.double() * direction).sum())
    return float(own.norm()), slope


@pytest.mark.parametrize("chunk_size", [-1, 1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_full_gradient_of_noise_under_a_lora_on_the_prompt_alone(chunk_size: int, checkpointing: bool) -> None:
    model = small_model("eps")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    weight = torch.randn(BATCH, 4, 16, 16, generator=torch.Generator().manual_seed(4))

    def work(run: SamplerRun) -> tuple[float, float]:
        estimate = CleanEstimate(run, "full", chunk_size)
        with gradients():
            noise = run.noise.clone()
            with checkpointed(*([run.model] if checkpointing else [])):
                pull_back = estimate(noise)[1]
                gradient = pull_back(weight)
            fixed = CleanEstimate(run, "stop")(noise)[1](weight)
            return network_part(lambda at: estimate(at)[0], noise, gradient, weight, fixed)

    length, found = in_a_run(model, hooked(conditioning("eps"), hook_lora(model, 0)), work)
    assert found == pytest.approx(length, rel=0.02)
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_of_an_image_under_two_prompts_with_a_lora_each(checkpointing: bool) -> None:
    """As Minority Prompt asks for it, combined with another prompt."""
    model = small_model("eps")
    weight = torch.randn(BATCH, 4, 16, 16, generator=torch.Generator().manual_seed(4))

    def work(run: SamplerRun) -> tuple[float, float]:
        timestep = run.sigmas[0] * torch.ones(BATCH)
        estimates = TextEstimates(
            run.guider, ("positive",), "none", run.noise, timestep, run.extra_args["model_options"], 0, None, None,
            torch.nn.Identity(), Chunks(BATCH), checkpointing, Passes(),
        )  # fmt: skip

        def function(at: Tensor) -> tuple[Tensor, Any]:
            return estimates.differentiable(lambda rows, x: estimates.estimate(rows, x, timestep[rows]), at)

        with gradients():
            x = run.noise.clone() * run.sigmas[0]
            gradient = function(x)[1](weight)
            return network_part(lambda at: function(at)[0], x, gradient, weight, weight)

    positive = [
        *hooked(conditioning("eps"), hook_lora(model, 0)),
        *hooked(conditioning("eps", seed=3), hook_lora(model, 1)),
    ]
    length, found = in_a_run(model, positive, work)
    assert found == pytest.approx(length, rel=0.02)
