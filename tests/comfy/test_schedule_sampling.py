"""Scheduled conditioning in real sampling runs: how much of each side the model sees at every single call."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import numpy as np
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import DisableNoise, FlipSigmas, RandomNoise, SamplerCustomAdvanced
from comfyui_diversity.core.drivers.schedule import PAYLOAD
from comfyui_diversity.core.hooks.carried import payloads
from comfyui_diversity.core.hooks.noise_levels import percent_of
from comfyui_diversity.nodes.cno import DiverseNoise
from comfyui_diversity.nodes.schedule import ScheduleConditioning
from small.models import FAMILIES, WIDTH, conditioning, random_latent, small_model
from torch import Tensor

stock = importlib.import_module("nodes")  # ComfyUI's, not the pack's

BATCH, CFG, SEED = 3, 3.0, 5
both_kinds = pytest.mark.parametrize("family", [pytest.param("eps", marks=pytest.mark.fast), "sd3"])


def constant(value: float, family: str, rows: int = 1) -> list:
    """A CONDITIONING in which every number is `value`, so that a blend shows its weight."""
    extra: dict[str, Any] = {}
    pooled = FAMILIES[family].pooled
    if pooled is not None:
        extra["pooled_output"] = torch.full((rows, pooled), value)
    return [[torch.full((rows, 20, WIDTH), value), extra]]


def schedule(first: list, second: list, ratio: float = 0.4, **changed: Any) -> list:
    options = {"start_percent": 0.0, "easing": "linear", "perturbed_steps": 0, "clock": "steps", **changed}
    return ScheduleConditioning.execute(first, second, ratio, **options).args[0]


@dataclass
class Call:
    """What one call of the model saw on its positive side."""

    sigma: float
    text: Tensor
    pooled: Tensor | None
    sides: int


def watched(model: Any, calls: list[Call]) -> Any:
    """A clone of the model that notes every call."""

    def note(executor: Any, x: Tensor, t: Tensor, concat: Any, text: Any, control: Any, options: Any, **named: Any):
        sides = options["cond_or_uncond"]
        if 0 in sides:
            at = slice(sides.index(0) * BATCH, (sides.index(0) + 1) * BATCH)
            pooled = named.get("y")
            calls.append(
                Call(
                    float(options["sigmas"][0]),
                    text[at].clone(),
                    None if pooled is None else pooled[at].clone(),
                    len(sides),
                )
            )
        return executor(x, t, concat, text, control, options, **named)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", note)
    return clone


def sample(model: Any, family: str, positive: list, negative: list, sampler: str = "euler", steps: int = 4, **more):
    """What KSampler gives."""
    noise = random_latent(family, BATCH, SEED)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, more.pop("cfg", CFG), sampler, more.pop("scheduler", "simple"), positive, negative,
            torch.zeros_like(noise), disable_pbar=True, seed=SEED, **more,
        )  # fmt: skip


def sigmas_of(model: Any, steps: int, scheduler: str = "simple") -> np.ndarray:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps).double().numpy()


def expected_weight(sigma: float, sigmas: np.ndarray, ratio: float) -> float:
    """Straight from the definition: 1 at the first step, 0 at this share of the steps, linear in between."""
    steps = len(sigmas) - 1
    progress = np.interp(-sigma, -sigmas, np.arange(steps + 1)) / steps
    if ratio < 0:
        progress = max(1 - 1 / steps - progress, 0)
    return max(0.0, 1 - progress / abs(ratio))


# --- exact weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "sampler", "steps", "ratio"),
    [
        pytest.param("eps", "heun", 4, 0.4, marks=pytest.mark.fast),
        ("eps", "dpmpp_2m", 20, -0.4),
        ("sd3", "euler", 4, -0.4),
        ("sd3", "heun", 20, 0.4),
    ],
)
def test_weight_at_every_call(family: str, sampler: str, steps: int, ratio: float) -> None:
    """Also where a sampler asks the model twice a step; text and pooled vector alike."""
    calls: list[Call] = []
    model = watched(small_model(family), calls)
    first, second = constant(1.0, family), constant(0.0, family)
    sample(model, family, schedule(first, second, ratio), constant(0.5, family), sampler, steps)
    sigmas = sigmas_of(model, steps)
    assert len(calls) == (2 * steps - 1 if sampler == "heun" else steps)
    for call in calls:
        weight = expected_weight(call.sigma, sigmas, ratio)
        assert torch.allclose(call.text, torch.full_like(call.text, weight), atol=2e-4), call.sigma
        if call.pooled is not None:
            assert torch.allclose(call.pooled, torch.full_like(call.pooled, weight), atol=2e-4)
        assert call.sides == 2, "prompt and negative prompt must go through the model together"


def test_between_steps() -> None:
    """DPM2 asks at noise levels between two steps."""
    family = "eps"
    calls: list[Call] = []
    model = watched(small_model(family), calls)
    sample(model, family, schedule(constant(1.0, family), constant(0.0, family), 1.0), constant(0.5, family), "dpm_2")
    sigmas = np.delete(sigmas_of(model, 5), -2)  # ComfyUI leaves the last but one out for this sampler
    assert len(calls) == 7
    assert sum(bool(np.isclose(sigmas, call.sigma, rtol=1e-4).any()) for call in calls) == 4
    for call in calls:
        assert float(call.text.mean()) == pytest.approx(expected_weight(call.sigma, sigmas, 1.0), abs=2e-4)


@pytest.mark.parametrize(("scheduler", "perturbed"), [("simple", 1), ("beta", 2)])
def test_perturbed_steps_are_exact_on_few_step_models(scheduler: str, perturbed: int) -> None:
    """No tie and no gap: so many steps with a share of the first side, the others with none."""
    calls: list[Call] = []
    model = watched(small_model("sd3"), calls)
    both = schedule(constant(1.0, "sd3"), constant(0.0, "sd3"), 0.4, perturbed_steps=perturbed)
    sample(model, "sd3", both, constant(0.5, "sd3"), "euler", 4, scheduler=scheduler, cfg=1.0)
    weights = [float(call.text.mean()) for call in calls]
    assert weights == pytest.approx([max(0, 1 - k / perturbed) for k in range(4)], abs=1e-4)
    assert all(call.text.eq(0).all() for call in calls[perturbed:])


@pytest.mark.parametrize("clock", ["steps", "noise"])
def test_two_samplers_in_a_row(clock: str) -> None:
    """By noise they share one window; by steps KSampler (Advanced) counts those of its own part."""
    calls: list[Call] = []
    model = watched(small_model("eps"), calls)
    both = schedule(constant(1.0, "eps"), constant(0.0, "eps"), 0.5, clock=clock)
    plain = constant(0.5, "eps")
    sample(model, "eps", both, plain, "euler", 8, start_step=0, last_step=2)
    sample(model, "eps", both, plain, "euler", 8, start_step=2, last_step=8, disable_noise=True)
    weights = [float(call.text.mean()) for call in calls]
    if clock == "noise":
        sampling = model.get_model_object("model_sampling")
        expected = [max(0.0, 1 - percent_of(sampling, call.sigma) / 0.5) for call in calls]
        assert weights == pytest.approx(expected, abs=1e-3)
        assert weights == sorted(weights, reverse=True)
    else:
        assert weights[0] == weights[2] == 1.0


def test_rising_noise_levels() -> None:
    """An image is turned into its noise: the weight falls over the steps of that run."""
    calls: list[Call] = []
    model = watched(small_model("eps"), calls)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(schedule(constant(1.0, "eps"), constant(0.0, "eps"), 0.5), constant(0.5, "eps"))
    guider.set_cfg(1.0)
    rising = FlipSigmas.execute(torch.from_numpy(sigmas_of(model, 4))).args[0].float()
    latent = {"samples": random_latent("eps", BATCH, SEED)}
    with torch.inference_mode():
        euler = comfy.samplers.sampler_object("euler")
        SamplerCustomAdvanced.execute(DisableNoise.execute().args[0], guider, euler, rising, latent)
    assert [float(call.text.mean()) for call in calls] == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=1e-4)


# --- bitwise ---------------------------------------------------------------------------------------------------------


@both_kinds
def test_weight_0_is_the_second_conditioning_bitwise(family: str) -> None:
    model = small_model(family)
    first, second, negative = (conditioning(family, seed=k) for k in range(3))
    assert torch.equal(
        sample(model, family, schedule(first, second, 0.0), negative), sample(model, family, second, negative)
    )
    calls: list[Call] = []
    sample(watched(model, calls), family, schedule(first, second, 0.4), negative, steps=10)
    plain: list[Call] = []
    sample(watched(model, plain), family, second, negative, steps=10)
    for scheduled_call, plain_call in zip(calls[4:], plain[4:], strict=True):
        assert torch.equal(scheduled_call.text, plain_call.text)


def test_from_a_conditioning_to_itself_is_that_conditioning() -> None:
    family = "sd3"
    model = small_model(family)
    first, negative = conditioning(family), conditioning(family, seed=1)
    images = sample(model, family, schedule(first, first, 0.7), negative)
    assert torch.equal(images, sample(model, family, first, negative))


def test_a_second_run_gives_the_same_and_nothing_stays_on_the_model() -> None:
    model = small_model("eps")
    both, negative = schedule(conditioning("eps"), conditioning("eps", seed=1)), conditioning("eps", seed=2)
    before = (both[0][0].clone(), dict(both[0][1]), len(model.wrappers))
    first = sample(model, "eps", both, negative)
    assert torch.equal(sample(model, "eps", both, negative), first)
    assert torch.equal(both[0][0], before[0])
    assert both[0][1] == before[1]
    assert len(model.wrappers) == before[2]
    assert not model.model_options["transformer_options"].get("wrappers")
    plain = sample(model, "eps", conditioning("eps"), negative)
    assert torch.equal(plain, sample(small_model("eps"), "eps", conditioning("eps"), negative))


# --- rows, both sides, lengths ---------------------------------------------------------------------------------------


def test_row_k_belongs_to_image_k() -> None:
    """Text and pooled vector."""
    family = "sd3"
    calls: list[Call] = []
    rows = constant(0.0, family, BATCH)
    for k in range(BATCH):
        rows[0][0][k] = k + 1.0
        if "pooled_output" in rows[0][1]:
            rows[0][1]["pooled_output"][k] = k + 1.0
    sample(watched(small_model(family), calls), family, schedule(rows, constant(0.0, family), 0.5), constant(0, family))
    for call, weight in zip(calls, [1, 0.5, 0, 0], strict=True):
        assert call.text.mean((1, 2)).tolist() == pytest.approx([weight * (k + 1) for k in range(BATCH)])
        if call.pooled is not None:
            assert call.pooled.mean(1).tolist() == pytest.approx([weight * (k + 1) for k in range(BATCH)])


def test_both_sides_scheduled() -> None:
    model = small_model("eps")
    conds = [conditioning("eps", seed=k) for k in range(4)]
    positive, negative = schedule(conds[0], conds[1], 0.5), schedule(conds[2], conds[3], 0.5)
    calls: list[Call] = []
    both = sample(watched(model, calls), "eps", positive, negative)
    assert [call.sides for call in calls] == [2] * 4
    assert not torch.equal(both, sample(model, "eps", positive, conds[3]))
    assert not torch.equal(both, sample(model, "eps", conds[1], negative))
    nothing = sample(model, "eps", schedule(conds[0], conds[1], 0.0), schedule(conds[2], conds[3], 0.0))
    assert torch.equal(nothing, sample(model, "eps", conds[1], conds[3]))


def test_combined_conditionings_keep_their_own_schedules() -> None:
    model = small_model("eps")
    conds = [conditioning("eps", seed=k) for k in range(4)]
    [combined] = stock.ConditioningCombine().combine(
        schedule(conds[0], conds[1], 0.0), schedule(conds[2], conds[3], 0.0)
    )
    [plain] = stock.ConditioningCombine().combine(conds[1], conds[3])
    assert torch.equal(sample(model, "eps", combined, conds[0]), sample(model, "eps", plain, conds[0]))


def test_texts_of_different_length() -> None:
    """154 tokens and 77, as ComfyUI itself brings them together; lengths that do not fit are named."""
    model, negative = small_model("eps"), conditioning("eps", tokens=77)
    long, short = conditioning("eps", tokens=154), conditioning("eps", seed=1, tokens=77)
    assert torch.isfinite(sample(model, "eps", schedule(long, short, 0.5), negative)).all()
    assert torch.isfinite(sample(model, "eps", schedule(short, long, 0.5), negative)).all()
    with pytest.raises(ValueError, match="conditioning_from has 20 tokens and conditioning_to 77"):
        schedule(conditioning("eps", tokens=20), short)


@pytest.mark.parametrize("family", ["flux", "wan"])
def test_other_families(family: str) -> None:
    model = small_model(family)
    first, second, negative = (conditioning(family, BATCH, seed=k) for k in range(3))
    blended = sample(model, family, schedule(first, second, 0.5), negative)
    assert torch.isfinite(blended).all()
    assert not torch.equal(blended, sample(model, family, second, negative))
    assert torch.equal(
        sample(model, family, schedule(first, second, 0.0), negative), sample(model, family, second, negative)
    )


def test_guiders_of_custom_sampling() -> None:
    model = small_model("eps")
    both, negative = schedule(conditioning("eps"), conditioning("eps", seed=1)), conditioning("eps", seed=2)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(both, negative)
    guider.set_cfg(CFG)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    noise = RandomNoise.execute(SEED).args[0]
    latent = {"samples": torch.zeros(BATCH, *FAMILIES["eps"].latent)}
    with torch.inference_mode():
        custom = SamplerCustomAdvanced.execute(
            noise, guider, comfy.samplers.sampler_object("euler"), sigmas, latent
        ).args[0]["samples"]  # fmt: skip
        expected = comfy.sample.sample(
            model, noise.generate_noise(latent), 4, CFG, "euler", "simple", both, negative, latent["samples"],
            disable_pbar=True, seed=SEED,
        )  # fmt: skip
    assert torch.equal(custom, expected)


def test_together_with_diverse_noise() -> None:
    """Noise optimisation asks the model before the sampler does, and sees the schedule's first moment."""
    model = small_model("eps")
    calls: list[Call] = []
    patched = DiverseNoise.execute(watched(model, calls), strength=0.5, iterations=2, mode="recommended").args[0]
    sample(patched, "eps", schedule(constant(1.0, "eps"), constant(0.0, "eps"), 0.5), constant(0.5, "eps"))
    weights = [float(call.text.mean()) for call in calls]
    assert weights[-4:] == pytest.approx([1, 0.5, 0, 0], abs=1e-4)
    assert all(weight == 1 for weight in weights[:-4])
    assert len(weights) > 4


# --- never silent ----------------------------------------------------------------------------------------------------


def test_zeroed_out_is_zero_throughout() -> None:
    """Flow models often get a zeroed copy of the prompt as their negative."""
    model = small_model("eps")
    both, zero = schedule(conditioning("eps"), conditioning("eps", seed=1)), constant(0.0, "eps")
    [zeroed] = stock.ConditioningZeroOut().zero_out(both)
    assert torch.equal(sample(model, "eps", both, zeroed), sample(model, "eps", both, zero))


def test_embeddings_that_were_changed_afterwards_are_refused() -> None:
    both = schedule(conditioning("eps"), conditioning("eps", seed=1))
    [longer] = stock.ConditioningConcat().concat(both, conditioning("eps", seed=2))
    with pytest.raises(ValueError, match="embeddings of a scheduled conditioning were changed"):
        sample(small_model("eps"), "eps", longer, conditioning("eps"))
    copied = [[both[0][0].clone(), both[0][1]]]
    model = small_model("eps")
    assert torch.equal(
        sample(model, "eps", copied, conditioning("eps")), sample(model, "eps", both, conditioning("eps"))
    )


@contextmanager
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    logger = logging.getLogger("ComfyUI-Diversity")
    logger.addHandler(caplog.handler)
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_batch_of_another_size_than_the_variants_is_logged(rows: int, caplog: pytest.LogCaptureFixture) -> None:
    both = schedule(conditioning("eps", rows), conditioning("eps", seed=1))
    with logged(caplog):
        sample(small_model("eps"), "eps", both, conditioning("eps"))
    assert ("variants and the batch 3 images" in caplog.text) == (rows != 1)


def test_bad_inputs_are_named() -> None:
    plain = conditioning("eps")
    with pytest.raises(ValueError, match="carries a schedule already"):
        schedule(schedule(plain, plain), plain)
    with pytest.raises(ValueError, match="conditioning_to carries a schedule already"):
        schedule(plain, schedule(plain, plain))
    with pytest.raises(ValueError, match="different text encoders"):
        schedule([[torch.zeros(1, 20, 32), {}]], plain)
    with pytest.raises(ValueError, match=r"start_percent is 0\.5"):
        schedule(plain, plain, 0.4, start_percent=0.5)
    with pytest.raises(ValueError, match="it must have 1 or as many"):
        schedule(plain, [*plain, *plain])
    with pytest.raises(ValueError, match="nothing to blend"):
        schedule([], plain)
    assert PAYLOAD not in payloads(plain[0][1])


def test_noise_levels_are_not_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each of them would wait for all that was asked of it before."""
    steps, read, iterate = 7, [], Tensor.__iter__

    def counted(self: Tensor) -> Iterator[Tensor]:
        read.append(tuple(self.shape))
        return iterate(self)

    one, other = (constant(value, "eps") for value in (1.0, 0.0))
    sample(small_model("eps"), "eps", other, other, steps=steps)  # what is loaded once
    monkeypatch.setattr(Tensor, "__iter__", counted)
    sample(small_model("eps"), "eps", schedule(one, other), other, steps=steps)
    assert (steps + 1,) not in read
