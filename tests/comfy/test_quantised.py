"""Quantised text encoders as people have them: gradients pass where they can, and variants are searched elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_diversity.core.drivers import tpso_search
from comfyui_diversity.core.drivers.tpso import RECOMMENDED_START, recommended, vary_prompt
from comfyui_diversity.core.hooks.gradient_check import missing_gradient
from comfyui_diversity.core.hooks.text import prompt_encoders
from comfyui_diversity.core.methods.tpso import initial_offsets
from small.encoders import small_encoder
from small.quantised import FORMATS, pack, quantised_encoder

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
