"""Diverse noise under real samplers: what changes, what must not, what it costs, and what Cancel leaves behind."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management
import comfy.nested_tensor
import comfy.sample
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from small.diverse_noise import STEPS, diverse, sample, started_from
from small.models import FAMILIES, Counter, random_latent, small_model
from torch import Tensor

# --- what changes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.fast if name in ("eps", "sd3") else ()) for name in FAMILIES]
)
def test_every_family_samples_to_the_end(family: str) -> None:
    model = small_model(family)
    images = sample(diverse(model), family)
    assert torch.isfinite(images).all()
    assert not torch.equal(images, sample(model, family))


@pytest.mark.parametrize(
    ("sampler", "scheduler"), [("heun", "karras"), ("dpmpp_sde", "beta"), ("uni_pc", "ddim_uniform")]
)
def test_any_sampler_and_scheduler(sampler: str, scheduler: str) -> None:
    model = small_model("eps")
    images = sample(diverse(model), sampler_name=sampler, scheduler=scheduler)
    assert torch.isfinite(images).all()
    assert not torch.equal(images, sample(model, sampler_name=sampler, scheduler=scheduler))


def test_image_to_image_keeps_the_image() -> None:
    model, latent = small_model("sd3"), random_latent("sd3", 3, seed=5)
    moved = started_from(diverse(model), family="sd3", latent_image=latent, denoise=0.3, steps=6)
    assert not torch.equal(moved, random_latent("sd3", 3))
    assert torch.equal(latent, random_latent("sd3", 3, seed=5))


@pytest.mark.parametrize("gradient", ["stop", "full"])
def test_inpainting_moves_only_the_masked_part(gradient: str) -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    latent, noise = random_latent("eps", 3, seed=5), random_latent("eps", 3)
    moved = started_from(diverse(small_model("eps"), gradient=gradient), latent_image=latent, noise_mask=mask)
    assert torch.equal(moved[..., 8:], noise[..., 8:])
    assert (moved[..., :8] != noise[..., :8]).float().mean() > 0.9
    for before, after in zip(noise[..., :8], moved[..., :8], strict=True):
        assert after.norm().item() == pytest.approx(before.norm().item(), rel=1e-5)


# --- what must not change --------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_switched_off_is_bitwise_the_unpatched_model() -> None:
    model, counter = small_model("sd3"), Counter()
    assert torch.equal(sample(counter.on(diverse(model, strength=0.0)), "sd3"), sample(model, "sd3"))
    assert len(counter.sizes) == STEPS


def test_same_seed_same_image_also_with_another_run_in_between() -> None:
    model = diverse(small_model("eps"), gradient="full")
    first = sample(model)
    other = sample(model, noise=random_latent("eps", 3, seed=9))
    assert torch.equal(first, sample(model))
    assert not torch.equal(first, other)


def test_the_given_model_is_not_touched() -> None:
    model = small_model("eps")
    before = sample(model)
    sample(diverse(model))
    assert model.wrappers == {}
    assert torch.equal(before, sample(model))


def test_the_random_state_that_samplers_rely_on_is_left_alone() -> None:
    torch.manual_seed(3)
    sample(small_model("eps"))
    expected = torch.rand(1)
    torch.manual_seed(3)
    sample(diverse(small_model("eps")))
    assert torch.equal(torch.rand(1), expected)


def test_a_second_one_takes_the_place_of_the_first() -> None:
    model = small_model("eps")
    assert torch.equal(sample(diverse(diverse(model, strength=1.5), strength=0.5)), sample(diverse(model)))


def test_it_stacks_with_the_wrappers_of_others() -> None:
    """One that doubles the noise before it, and one that sees the result."""

    def double(executor: Any, guider: Any, sigmas: Any, extra: Any, callback: Any, noise: Tensor, *rest: Any) -> Any:
        return executor(guider, sigmas, extra, callback, noise * 2, *rest)

    model = small_model("eps").clone()
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "other pack", double)
    moved = started_from(diverse(model))
    doubled = random_latent("eps", 3) * 2
    assert torch.allclose(moved.flatten(1).norm(dim=1), doubled.flatten(1).norm(dim=1), rtol=1e-5)
    assert not torch.equal(moved, doubled)


def test_a_sampler_that_adds_no_noise_is_left_alone_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model, latent = small_model("eps"), random_latent("eps", 3, seed=5)
    options = {"noise": torch.zeros_like(latent), "latent_image": latent, "start_step": 1}
    with caplog.at_level(logging.WARNING):
        images = sample(diverse(model), **options)
    assert torch.equal(images, sample(model, **options))
    assert "adds no noise" in caplog.text


# --- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["stop", "full"])
def test_costs_one_batched_forward_for_each_iteration(gradient: str) -> None:
    """With and without the prompt; the first iteration's estimate is the reference too."""
    counter = Counter()
    sample(counter.on(diverse(small_model("eps"), gradient=gradient)))
    assert counter.sizes == [2 * 3] * (3 + STEPS)


def test_at_cfg_1_the_negative_prompt_costs_nothing() -> None:
    counter = Counter()
    sample(counter.on(diverse(small_model("eps"))), cfg=1.0)
    assert counter.sizes == [3] * (3 + STEPS)


# --- errors and Cancel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gradient", "chunk_size"), [("stop", -1), ("full", 1)])
def test_cancel_in_the_middle_leaves_the_model_as_it_was(gradient: str, chunk_size: int) -> None:
    model, calls = small_model("eps"), []
    weights = {name: weight.clone() for name, weight in model.model.diffusion_model.state_dict().items()}
    plain, patched = sample(model), diverse(model, gradient=gradient, chunk_size=chunk_size)
    uninterrupted = sample(patched)

    def cancel(executor: Any, *rest: Any, **named: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            comfy.model_management.interrupt_current_processing()
        return executor(*rest, **named)

    cancelled = patched.clone()
    cancelled.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cancel", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(cancelled)
    assert len(calls) < (3 if chunk_size == -1 else 9) + STEPS  # before the sampler's own steps
    for name, weight in model.model.diffusion_model.state_dict().items():
        assert torch.equal(weight, weights[name])
    assert all(weight.grad is None for weight in model.model.diffusion_model.parameters())
    assert torch.equal(sample(model), plain)
    assert torch.equal(sample(patched), uninterrupted)


def test_a_batch_of_one_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="Make a batch of 2 or more"):
        sample(diverse(small_model("eps")), batch=1)


def test_nested_latents_are_refused_in_words() -> None:
    parts = [torch.ones(2, 4, 16, 16), torch.ones(2, 4, 8, 8)]
    nested, noise = (comfy.nested_tensor.NestedTensor([part.clone() for part in parts]) for _ in range(2))
    with pytest.raises(ValueError, match=r"latent is \[2, 1, 1280\].*Nested latents"):
        sample(diverse(small_model("eps")), noise=noise, latent_image=nested)
