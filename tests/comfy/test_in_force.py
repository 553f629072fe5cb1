"""Prompts that are in force for a part of the run alone (Conditioning (Set Timestep Range))."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfyui_diversity.core.drivers.cno import ContrastiveNoise
from comfyui_diversity.core.drivers.minority import to_learn, with_learning
from comfyui_diversity.core.drivers.minority_learning import Learning
from comfyui_diversity.core.drivers.minority_run import Run
from comfyui_diversity.core.drivers.rarity import rarity_of
from comfyui_diversity.core.hooks.sampling import with_noise_change
from comfyui_diversity.core.methods.minority import Settings, Steps
from small.encoders import small_encoder
from small.models import conditioning, random_latent, small_model
from torch import Tensor

stock = importlib.import_module("nodes")  # ComfyUI's, not the pack's


def during(conds: list, start: float, end: float) -> list:
    return stock.ConditioningSetTimestepRange().set_range(conds, start, end)[0]


def sample(model: Any, positive: list, steps: int = 5) -> Tensor:
    noise = random_latent("eps", 2, 5)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, 6.0, "euler", "simple", positive, conditioning("eps", seed=1),
            torch.zeros_like(noise), disable_pbar=True, seed=5,
        )  # fmt: skip


@pytest.fixture(name="steps")
def noted_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which a token is learned."""
    found: list[int] = []
    real = Run._learn

    def learn(run: Any, guider: Any, x: Tensor, timestep: Tensor, options: Any, seed: int, step: int) -> None:
        found.append(step)
        real(run, guider, x, timestep, options, seed, step)

    monkeypatch.setattr(Run, "_learn", learn)
    return found


def marked() -> list:
    with torch.inference_mode():
        return to_learn(Learning(small_encoder("sd1"), "a fish", Settings(1, 0.5), Steps(0.0, 0.1), keep_until=1.0))


def test_a_token_is_learned_at_the_first_step_at_which_its_prompt_is_in_force(steps: list[int]) -> None:
    model = with_learning(small_model("eps"))
    images = sample(model, [*during(conditioning("eps"), 0, 0.3), *during(marked(), 0.3, 1)])
    assert steps == [2]
    steps.clear()
    assert torch.isfinite(images).all()
    sample(model, [*during(conditioning("eps"), 0.3, 1), *during(marked(), 0, 0.3)])  # renoised where it is not
    assert steps == [0]


def test_a_prompt_that_is_never_in_force_is_reported(steps: list[int], caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("ComfyUI-Diversity").addHandler(caplog.handler)
    try:
        sample(with_learning(small_model("eps")), [*conditioning("eps"), *during(marked(), 0.9999, 0.99995)])
    finally:
        logging.getLogger("ComfyUI-Diversity").removeHandler(caplog.handler)
    assert steps == []
    assert "Its prompt was in force at no step of this run" in caplog.text


@pytest.mark.parametrize("gradient", ["stop", "full"])
def test_noise_cannot_be_optimised_for_a_prompt_that_is_not_in_force(gradient: str) -> None:
    model = with_noise_change(small_model("eps"), "cno", ContrastiveNoise.recommended(gradient, iterations=1))
    late = during(conditioning("eps"), 0.1, 1)
    with pytest.raises(ValueError, match="positive prompt is not in force at the first step of this run"):
        sample(model, late)
    assert torch.isfinite(sample(model, [*late, *during(conditioning("eps", seed=2), 0, 0.1)])).all()


def test_nothing_is_learned_or_optimised_while_an_image_is_turned_into_noise() -> None:
    model = small_model("eps")
    rising = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4).flip(0)
    noise = with_noise_change(model, "cno", ContrastiveNoise.recommended(iterations=1))
    for patched, positive in ((with_learning(model), marked()), (noise, conditioning("eps"))):
        guider = comfy.samplers.CFGGuider(patched)
        guider.set_conds(positive, [])
        euler, start = comfy.samplers.sampler_object("euler"), random_latent("eps", 2)
        with torch.inference_mode(), pytest.raises(ValueError, match=r"sigmas rise from 0 to 14\.6"):
            guider.sample(start, start, euler, rising, disable_pbar=True, seed=0)


def test_images_cannot_be_compared_for_a_prompt_that_is_not_in_force() -> None:
    latent = {"samples": random_latent("eps", 2)}
    with torch.inference_mode(), pytest.raises(ValueError, match=r"not in force where renoise 0\.75 noises the images"):
        rarity_of(small_model("eps"), during(conditioning("eps"), 0.8, 1), latent, 0)
