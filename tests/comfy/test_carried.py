"""What a conditioning carries stays with the prompt it belongs to, whatever nodes and ComfyUI itself do on the way."""

from __future__ import annotations

import importlib
from typing import Any

import comfy.clip_vision
import comfy.controlnet
import comfy.hooks
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_flux import FluxGuidance
from comfy_extras.nodes_hooks import ConditioningSetDefaultAndCombine, ConditioningSetProperties
from comfyui_diversity.core.drivers.minority import to_learn, with_learning
from comfyui_diversity.core.drivers.minority_learning import Learning
from comfyui_diversity.core.drivers.schedule import scheduled
from comfyui_diversity.core.drivers.unclip import per_image
from comfyui_diversity.core.methods.minority import Settings
from comfyui_diversity.core.methods.schedule import Window
from small.encoders import small_encoder
from small.models import WIDTH, conditioning, random_latent, small_model
from small.vision import small_unclip
from torch import Tensor

stock = importlib.import_module("nodes")  # ComfyUI's, not the pack's
STEPS = 4


def constant(value: float) -> list:
    """A CONDITIONING in which every number is `value`, so that a blend shows its weight."""
    return [[torch.full((1, 20, WIDTH), value), {}]]


def fading(first: float = 1.0, second: float = 0.0) -> list:
    return scheduled(constant(first), constant(second), Window(1.0))


def output(seed: int = 0) -> comfy.clip_vision.Output:
    made = comfy.clip_vision.Output()
    made["image_embeds"] = 3 * torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed))
    return made


def stock_attach(text: list, one: Any) -> list:
    return stock.unCLIPConditioning().apply_adm(text, one, 1.0, 0.0)[0]


class Seen:
    """What the model saw on either side at every call, and how many calls there were."""

    def __init__(self) -> None:
        self.positive: list[float] = []
        self.negative: list[float] = []
        self.calls = 0

    def on(self, model: ModelPatcher) -> ModelPatcher:
        def note(executor: Any, x: Tensor, t: Tensor, concat: Any, text: Tensor, *rest: Any, **named: Any) -> Tensor:
            options = rest[1]
            self.calls += 1
            for side, part in zip(options["cond_or_uncond"], text.chunk(len(options["cond_or_uncond"])), strict=True):
                (self.negative if side else self.positive).append(round(float(part.mean()), 3))
            return executor(x, t, concat, text, *rest, **named)

        clone = model.clone()
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "seen", note)
        return clone


def sample(model: Any, positive: list, negative: list, batch: int = 1, steps: int = STEPS) -> Tensor:
    noise = random_latent("eps", batch, 5)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, 6.0, "euler", "simple", positive, negative, torch.zeros_like(noise),
            disable_pbar=True, seed=5,
        )  # fmt: skip


def area(conds: list, width: int = 128) -> list:
    return stock.ConditioningSetArea().append(conds, width, width, 0, 0, 1.0)[0]


def mask_bounds(conds: list) -> list:
    mask = torch.zeros(1, 128, 128)
    mask[:, :64] = 1
    return stock.ConditioningSetMask().append(conds, mask, "mask bounds", 1.0)[0]


# --- the negative stays the negative ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [pytest.param(area, marks=pytest.mark.fast), mask_bounds])
def test_an_area_of_a_schedule_leaves_the_negative_alone(cut: Any) -> None:
    seen = Seen()
    sample(seen.on(small_model("eps")), [*constant(5.0), *cut(fading())], constant(9.0))
    assert set(seen.negative) == {9.0}
    assert {value for value in seen.positive if value != 5.0} == {1.0, 0.75, 0.5, 0.25}


def test_the_whole_image_as_area_is_the_stock_result() -> None:
    model, background, negative = small_model("eps"), conditioning("eps"), conditioning("eps", seed=2)
    own = scheduled(conditioning("eps", seed=3), conditioning("eps", seed=1), Window(0.0))
    found = sample(model, [*background, *area(own)], negative)
    assert torch.equal(found, sample(model, [*background, *area(conditioning("eps", seed=1))], negative))


def test_an_area_opposite_a_scheduled_negative_gets_the_negatives_schedule() -> None:
    seen = Seen()
    sample(seen.on(small_model("eps")), [*constant(5.0), *area(fading(3.0, 2.0))], fading(9.0, 8.0))
    assert sorted(seen.negative, reverse=True) == [9.0, 9.0, 8.75, 8.75, 8.5, 8.5, 8.25, 8.25]


@torch.inference_mode()
def test_an_area_of_a_prompt_that_learns_leaves_the_negative_alone() -> None:
    clip, seen = small_encoder("sd1"), Seen()
    marked = to_learn(Learning(clip, "a red fish", Settings(1, 0.5), keep_until=1.0))
    sample(seen.on(with_learning(small_model("eps"))), [*constant(5.0), *area(marked)], constant(9.0), steps=2)
    assert set(seen.negative) == {9.0}


@torch.inference_mode()
def test_an_area_of_image_embeddings_leaves_the_negative_alone() -> None:
    model, negative, background = small_unclip(), conditioning("eps", seed=1), conditioning("eps", seed=2)
    one = output(seed=4)
    own = per_image(conditioning("eps"), [one])
    expected = [*background, *area(stock_attach(conditioning("eps"), one))]
    found = sample(model, [*background, *area(own)], negative)
    assert torch.allclose(found, sample(model, expected, negative), atol=1e-4)


# --- no hook ---------------------------------------------------------------------------------------------------------


class _Dynamic(ModelPatcher):
    """A patcher as with dynamic VRAM, which counts the second copies of its model that are asked for."""

    copies = 0

    def is_dynamic(self) -> bool:
        return True

    def get_non_dynamic_delegate(self) -> ModelPatcher:
        type(self).copies += 1
        return self


@torch.inference_mode()
def test_the_model_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = small_encoder("sd1")
    kinds = [fading(), area(fading()), to_learn(Learning(clip, "a red fish", Settings(1, 0.5)))]
    plain = small_model("eps")
    model = _Dynamic(plain.model, plain.load_device, plain.offload_device)
    monkeypatch.setattr(_Dynamic, "copies", 0)
    for positive in kinds:
        assert all("hooks" not in extras and "control" not in extras for _, extras in positive)
        guider = comfy.samplers.CFGGuider(with_learning(model))
        guider.set_conds(positive, fading(2.0, 3.0))
    sample(model, fading(), constant(9.0))
    assert _Dynamic.copies == 0
    if hasattr(comfy.sampler_helpers, "cond_has_hooks"):  # the patcher does count where ComfyUI asks
        comfy.samplers.CFGGuider(model).set_conds([[kinds[0][0][0], {"hooks": comfy.hooks.HookGroup()}]], [])
        assert _Dynamic.copies == 1


def hooked(conds: list, group: comfy.hooks.HookGroup) -> list:
    return comfy.hooks.set_hooks_for_conditioning(conds, group)


def user_hooks() -> comfy.hooks.HookGroup:
    group = comfy.hooks.HookGroup()
    group.add(comfy.hooks.WeightHook())
    group.hooks[0].weights = {}
    return group


@pytest.mark.parametrize("negative", [constant(9.0), fading(9.0, 8.0)])
@pytest.mark.parametrize("hooks_first", [True, False])
def test_hooks_of_others_cost_no_more_than_without_a_schedule(negative: list, hooks_first: bool) -> None:
    group, seen = user_hooks(), Seen()
    if hooks_first:
        positive = scheduled(hooked(constant(1.0), group), hooked(constant(0.0), group), Window(1.0))
        negative = scheduled(hooked(constant(9.0), group), constant(8.0), Window(1.0))
    else:
        positive, negative = hooked(fading(), group), hooked(negative, group)
    sample(seen.on(small_model("eps")), positive, negative)
    assert seen.calls == STEPS
    assert seen.positive == [1.0, 0.75, 0.5, 0.25]


# --- nodes on the way ------------------------------------------------------------------------------------------------

copied: dict[str, Any] = {
    "combine": lambda conds: stock.ConditioningCombine().combine(conds, constant(5.0))[0],
    "area": lambda conds: [*constant(5.0), *area(conds)],
    "strength": lambda conds: stock.ConditioningSetAreaStrength().append(conds, 0.5)[0],
    "mask": lambda conds: stock.ConditioningSetMask().append(conds, torch.ones(1, 128, 128), "default", 1.0)[0],
    "times": lambda conds: stock.ConditioningSetTimestepRange().set_range(conds, 0.0, 1.0)[0],
    "percentages": lambda conds: [
        *constant(5.0),
        *stock.NODE_CLASS_MAPPINGS["ConditioningSetAreaPercentage"]().append(conds, 1.0, 0.5, 0.0, 0.0, 1.0)[0],
    ],
    "guidance": lambda conds: FluxGuidance.execute(conds, 3.5).args[0],
    "reference": lambda conds: ReferenceLatent.execute(conds, {"samples": random_latent("eps", 1)}).args[0],
    "properties": lambda conds: ConditioningSetProperties().set_properties(conds, 1.0, "default")[0],
    "default": lambda conds: ConditioningSetDefaultAndCombine().set_default_and_combine(
        mask_bounds(constant(5.0)), conds
    )[0],
    "unclip": lambda conds: stock_attach(conds, output()),
    "deep copy": lambda conds: [[cond, type(extras)(extras)] for cond, extras in conds],
}


@pytest.mark.parametrize("node", copied)
def test_a_schedule_survives(node: str) -> None:
    seen = Seen()
    sample(seen.on(small_model("eps")), copied[node](fading()), constant(9.0))
    assert [value for value in seen.positive if value != 5.0] == [1.0, 0.75, 0.5, 0.25]
    assert set(seen.negative) == {9.0}


class _Control(comfy.controlnet.ControlBase):
    """A ControlNet that controls nothing."""

    def copy(self) -> _Control:
        made = _Control()
        self.copy_to(made)
        return made

    def get_control(self, *_: Any) -> None:
        return None


def test_prompt_and_negative_prompt_stay_in_one_call_beside_a_controlnet() -> None:
    seen = Seen()
    both = stock.ControlNetApplyAdvanced().apply_controlnet(
        fading(), constant(9.0), _Control(), torch.zeros(1, 64, 64, 3), 1.0, 0.0, 1.0
    )
    sample(seen.on(small_model("eps")), *both)
    assert seen.calls == STEPS
    assert seen.positive == [1.0, 0.75, 0.5, 0.25]


def test_an_entry_that_was_built_anew_is_refused() -> None:
    seen = Seen()
    anew = [[cond, {**extras}] for cond, extras in fading()]
    with pytest.raises(ValueError, match="a node between it and the sampler has built it anew"):
        sample(seen.on(small_model("eps")), anew, constant(9.0))
    assert seen.calls == 0


def test_what_the_second_conditioning_carries_is_refused() -> None:
    embedded = per_image(conditioning("eps"), [output()])
    with pytest.raises(ValueError, match="conditioning_to carries image embeddings"):
        scheduled(conditioning("eps"), embedded, Window(0.5))
