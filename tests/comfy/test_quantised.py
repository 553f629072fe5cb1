"""Quantised text encoders as people have them: gradients pass where they can, and variants are searched elsewhere."""

from __future__ import annotations

from typing import Any

import comfy.ops
import pytest
import torch
from comfyui_diversity.core.drivers import tpso_search
from comfyui_diversity.core.drivers.tpso import RECOMMENDED_START, recommended, vary_prompt
from comfyui_diversity.core.hooks.gradient_check import missing_gradient
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.text import prompt_encoders
from comfyui_diversity.core.methods.tpso import initial_offsets
from small.encoders import small_encoder
from small.models import small_model
from small.quantised import FORMATS, pack, quantised_encoder, quantised_model
from torch import Tensor

from .test_without_gradients import few_candidates

TEXT, VARIANTS, KIND = "a red fish in deep water", 2, "qwen3"
FORMS = ("float8_e4m3fn", "int8_tensorwise", "asym_w4a8_int8")
NO_BACKWARD = ("asym_w4a8_int8",)  # its kernel has no product for a backward pass


def encoder(form: str) -> Any:
    if form == "gguf":
        clip = small_encoder(KIND)
        assert pack(clip.cond_stage_model) > 0
        return clip
    if form in ("float16", "bfloat16"):
        return small_encoder(KIND, options={"dtype": getattr(torch, form)})
    if form not in FORMATS:
        pytest.skip(f"this ComfyUI has no {form}")
    return quantised_encoder(KIND, form)


@torch.inference_mode()
@pytest.mark.parametrize("form", [*FORMS, "gguf", "float16", "bfloat16"])
def test_prompts_are_varied(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check finds no fault where there is none, every variant reaches the aim, and the encoder is as it was."""
    monkeypatch.setattr(tpso_search, "candidates_for", few_candidates)
    clip = encoder(form)
    plain = clip.encode_from_tokens(clip.tokenize(TEXT)).clone()
    [one] = prompt_encoders(clip, clip.tokenize(TEXT))
    start = initial_offsets(1, one.positions, one.width, 0, RECOMMENDED_START * one.deviation)
    assert (missing_gradient(one, start) is not None) == (form in NO_BACKWARD)
    found, [outcome] = vary_prompt(clip, TEXT, VARIANTS, 0, recommended(steps=6, added_tokens=0))
    assert (outcome.searched is not None) == (form in NO_BACKWARD)
    assert outcome.missed == 0
    assert float((found[0][0] - plain).abs().amax(dim=(1, 2)).min()) > 1e-2
    assert torch.equal(clip.encode_from_tokens(clip.tokenize(TEXT)), plain)


@torch.inference_mode()
@pytest.mark.parametrize("form", [*FORMS, "gguf", "float16", "float32"])
def test_a_graph_keeps_no_second_copy_of_the_weights(form: str) -> None:
    """Layers whose weights are cast for the call are computed again in the pass back, and give the same gradient."""
    clip = small_encoder(KIND) if form == "float32" else encoder(form)
    [one] = prompt_encoders(clip, clip.tokenize(TEXT))
    offsets = initial_offsets(2, one.positions, one.width, 0, one.deviation)
    layers, calls = one.module.transformer.model.layers, 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def gradient() -> Tensor:
        with gradients():
            vectors, pull_back = one(offsets)
            return pull_back(torch.linspace(-1, 1, vectors.numel()).view_as(vectors))

    assert one._casts_weights == (form != "float32")
    if form in NO_BACKWARD:
        return
    one.reference()  # what is measured once
    watched = layers[0].mlp.register_forward_pre_hook(count)
    found = gradient()
    assert calls == (1 if form == "float32" else 2)
    watched.remove()
    vars(one)["_casts_weights"] = False
    assert torch.allclose(found, gradient(), atol=1e-6 * float(found.abs().max()))


@pytest.mark.parametrize("form", ["float8_e4m3fn", "nvfp4", "mxfp8"])
def test_a_gradient_passes_layers_that_round_activations(form: str) -> None:
    """As GPUs that compute in these formats run them: ComfyUI's gradient keeps the weight, of inference mode."""
    if form not in FORMATS:
        pytest.skip(f"this ComfyUI has no {form}")
    network = quantised_model(lambda: small_model("eps"), form, native=True).model.diffusion_model
    layers: list[Any] = [part for part in network.modules() if getattr(part, "layout_type", None)]
    stock = comfy.ops.QuantLinearFunc
    with torch.inference_mode():
        x = torch.randn(3, layers[0].in_features, generator=torch.Generator().manual_seed(0))
        with gradients(network):
            variable = x.clone().requires_grad_()
            [found] = torch.autograd.grad(layers[0](variable).sum(), variable)
        weight: Tensor = layers[0].weight.dequantize()
    assert torch.allclose(found, weight.sum(0).expand_as(found), atol=1e-3 * float(found.abs().max()))
    assert comfy.ops.QuantLinearFunc is stock
