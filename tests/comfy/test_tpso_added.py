"""Diverse Prompts with tokens added behind the prompt: what they change, what they leave, and how they fade."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_diversity.core.drivers.schedule import PAYLOAD
from comfyui_diversity.core.hooks.carried import payloads
from comfyui_diversity.core.hooks.text import prompt_encoders
from small.encoders import small_encoder
from small.models import random_latent, small_model

from .test_tpso_nodes import VARIANTS, run, sample

ADDED = 4


def words(clip: Any, text: str) -> int:
    """How many positions of the first chunk the prompt takes up to its last word."""
    return next(e for e in prompt_encoders(clip, clip.tokenize(text), "all")).sections[0].last


@pytest.mark.parametrize("kind", [pytest.param("sdxl", marks=pytest.mark.fast), "qwen3"])
def test_the_prompts_own_words_stay_as_they_are(kind: str) -> None:
    """These encoders are causal: what comes later cannot change what the words became."""
    clip, text = small_encoder(kind), "a red fish"
    positive, _, plain, *_ = run(clip, text, added_tokens=ADDED)
    own = words(clip, text)
    assert torch.allclose(positive[0][0][:, :own], plain[0][0][:, :own].expand(VARIANTS, -1, -1), atol=1e-4)
    added = positive[0][0][:, own : own + ADDED]
    assert (added[0] - added[1]).abs().max() > 1e-2
    varied = run(clip, text, added_tokens=0)[0][0][0]
    assert (varied[:, :own] - plain[0][0][:, :own]).abs().max() > 1e-3


def test_encoders_that_are_not_varied_read_the_plain_prompt() -> None:
    """SD3's T5 beside its two CLIPs: no word more."""
    clip = small_encoder("sd3")
    positive, _, plain, _, report = run(clip, added_tokens=ADDED)
    assert "t5xxl: as it is" in report
    assert report.count("as it is") == 1
    of_t5 = slice(77, None)
    assert torch.equal(positive[0][0][0, of_t5], plain[0][0][0, of_t5])
    assert not torch.equal(positive[0][0][0, :77], plain[0][0][0, :77])


def test_a_blank_prompt_has_only_the_added_tokens() -> None:
    positive, *_, report = run(small_encoder("sd1"), "", added_tokens=ADDED, steps=60)
    assert "NOT" not in report
    assert not torch.equal(positive[0][0][0], positive[0][0][1])


def test_texts_of_another_length_fade_too_and_end_at_the_plain_prompt() -> None:
    """Qwen fills texts up to no common length: a prompt with more tokens cannot be blended with the prompt."""
    clip = small_encoder("qwen3")
    positive, _, plain, *_ = run(clip, added_tokens=ADDED, ratio=0.6)
    longer, shorter = positive[0][0].shape[1], plain[0][0].shape[1]
    assert longer == shorter + ADDED
    schedule = payloads(positive[0][1])[PAYLOAD]
    assert schedule.cond.shape[1] == shorter
    assert schedule.between[0].shape[1] == longer


def test_images_differ_and_ratio_0_gives_the_plain_ones() -> None:
    clip, model, noise = small_encoder("qwen3"), small_model("eps"), random_latent("eps", VARIANTS)
    positive, negative, plain, *_ = run(clip, added_tokens=ADDED, ratio=0.6)
    without = sample(model, noise, plain, negative)
    assert (sample(model, noise, positive, negative) - without).abs().max() > 1e-2
    never = run(clip, added_tokens=ADDED, ratio=0.0)[0]
    assert torch.equal(sample(model, noise, never, negative), without)
