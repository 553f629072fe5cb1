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
from comfyui_diversity.nodes.cno import DiverseNoiseModel
from small.models import FAMILIES, Counter, conditioning, random_latent, small_model
from torch import Tensor

OPTIONS: dict[str, Any] = {
    "strength": 0.5,
    "iterations": 3,
    "gradient": "stop",
    "denominator": "all",
    "temperature": 0.1,
    "window": 16,
    "gamma": 0.0,
    "projection": "norm",
    "chunk": 0,
}
STEPS = 3


def diverse(model: Any, **changed: Any) -> Any:
    """The node's model."""
    return DiverseNoiseModel.execute(model, **{**OPTIONS, **changed}).args[0]


def sample(model: Any, family: str = "eps", batch: int = 3, noise: Tensor | None = None, **options: Any) -> Tensor:
    """What KSampler computes."""
    start = random_latent(family, batch) if noise is None else noise
    named: dict[str, Any] = {
        "steps": STEPS,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "positive": conditioning(family),
        "negative": conditioning(family, seed=1),
        "latent_image": torch.zeros_like(start) if "latent_image" not in options else None,
        "disable_pbar": True,
        "seed": 0,
        **options,
    }
    with torch.inference_mode():
        return comfy.sample.sample(model, start, **named)


class NoiseSpy:
    """The noise that the sampler starts from in the end."""

    def __init__(self) -> None:
        self.noise: Tensor | None = None

    def on(self, model: Any) -> Any:
        def wrapper(
            executor: Any, guider: Any, sigmas: Any, extra: Any, callback: Any, noise: Tensor, *rest: Any
        ) -> Any:
            self.noise = noise.clone()
            return executor(guider, sigmas, extra, callback, noise, *rest)

        spied = model.clone()
        spied.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "spy", wrapper)
        return spied


def started_from(model: Any, **options: Any) -> Tensor:
    spy = NoiseSpy()
    sample(spy.on(model), **options)
    assert spy.noise is not None
    return spy.noise


# --- what changes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_samples_to_the_end(family: str) -> None:
    model = small_model(family)
    pictures = sample(diverse(model), family)
    assert torch.isfinite(pictures).all()
    assert not torch.equal(pictures, sample(model, family))


@pytest.mark.parametrize("sampler", ["euler_ancestral", "heun", "dpmpp_2m", "dpmpp_sde", "uni_pc", "ddim", "lcm"])
def test_any_sampler(sampler: str) -> None:
    model = small_model("eps")
    pictures = sample(diverse(model), sampler_name=sampler)
    assert torch.isfinite(pictures).all()
    assert not torch.equal(pictures, sample(model, sampler_name=sampler))


@pytest.mark.parametrize("scheduler", ["normal", "karras", "beta", "sgm_uniform", "ddim_uniform"])
def test_any_scheduler(scheduler: str) -> None:
    assert torch.isfinite(sample(diverse(small_model("eps")), scheduler=scheduler)).all()


@pytest.mark.parametrize("family", ["eps", "sd3"])
def test_image_to_image_keeps_the_picture(family: str) -> None:
    model, latent = small_model(family), random_latent(family, 3, seed=5)
    options = {"latent_image": latent, "denoise": 0.3, "steps": 6}
    moved = started_from(diverse(model), family=family, **options)
    assert not torch.equal(moved, random_latent(family, 3))
    assert torch.equal(latent, random_latent(family, 3, seed=5))


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


def test_each_noise_keeps_its_length() -> None:
    moved, noise = started_from(diverse(small_model("sd3")), family="sd3"), random_latent("sd3", 3)
    assert torch.allclose(moved.flatten(1).norm(dim=1), noise.flatten(1).norm(dim=1), rtol=1e-5)


# --- what must not change --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [{"iterations": 0}, {"strength": 0.0}])
@pytest.mark.parametrize("family", ["eps", "sd3"])
def test_switched_off_is_bitwise_the_unpatched_model(family: str, off: dict[str, Any]) -> None:
    model, counter = small_model(family), Counter()
    assert torch.equal(sample(counter.on(diverse(model, **off)), family), sample(model, family))
    assert len(counter.sizes) == STEPS


@pytest.mark.parametrize("gradient", ["stop", "full"])
def test_same_seed_same_picture_also_with_another_run_in_between(gradient: str) -> None:
    model = diverse(small_model("eps"), gradient=gradient)
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
        pictures = sample(diverse(model), **options)
    assert torch.equal(pictures, sample(model, **options))
    assert "adds no noise" in caplog.text


# --- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 3])
def test_stop_gradient_costs_one_batched_forward_for_each_iteration(iterations: int) -> None:
    """1 for the reference, which is the first iteration's, and iterations - 1 more, each with and without prompt."""
    counter = Counter()
    sample(counter.on(diverse(small_model("eps"), iterations=iterations)))
    assert counter.sizes == [2 * 3] * (1 + (iterations - 1) + STEPS)


def test_at_cfg_1_the_negative_prompt_costs_nothing() -> None:
    counter = Counter()
    sample(counter.on(diverse(small_model("eps"))), cfg=1.0)
    assert counter.sizes == [3] * (3 + STEPS)


def test_full_gradient_runs_the_network_no_oftener() -> None:
    counter = Counter()
    sample(counter.on(diverse(small_model("eps"), gradient="full")))
    assert len(counter.sizes) == 3 + STEPS


# --- errors and Cancel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["stop", "full"])
@pytest.mark.parametrize("chunk", [0, 1])
def test_cancel_in_the_middle_leaves_the_model_as_it_was(gradient: str, chunk: int) -> None:
    model, calls = small_model("eps"), []
    weights = {name: weight.clone() for name, weight in model.model.diffusion_model.state_dict().items()}
    plain, patched = sample(model), diverse(model, gradient=gradient, chunk=chunk)
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
    assert len(calls) < (3 if chunk == 0 else 9) + STEPS  # before the sampler's own steps
    for name, weight in model.model.diffusion_model.state_dict().items():
        assert torch.equal(weight, weights[name])
    assert all(weight.grad is None for weight in model.model.diffusion_model.parameters())
    assert torch.equal(sample(model), plain)
    assert torch.equal(sample(patched), uninterrupted)


def test_an_error_in_the_model_comes_through_and_leaves_it_usable() -> None:
    model, calls = small_model("eps"), []
    patched = diverse(model, gradient="full", chunk=1)
    expected = sample(patched)

    def fail(executor: Any, *rest: Any, **named: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("a broken cable")
        return executor(*rest, **named)

    failing = patched.clone()
    failing.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fail", fail)
    with pytest.raises(RuntimeError, match="a broken cable"):
        sample(failing)
    assert torch.equal(sample(patched), expected)


def test_a_batch_of_one_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="Make a batch of 2 or more"):
        sample(diverse(small_model("eps")), batch=1)


def test_nested_latents_are_refused_in_words() -> None:
    parts = [torch.ones(2, 4, 16, 16), torch.ones(2, 4, 8, 8)]
    nested, noise = (comfy.nested_tensor.NestedTensor([part.clone() for part in parts]) for _ in range(2))
    with pytest.raises(ValueError, match=r"latent is \[2, 1, 1280\].*Nested latents"):
        sample(diverse(small_model("eps")), noise=noise, latent_image=nested)
