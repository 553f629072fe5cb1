"""Prompts longer than ComfyUI gives them to a text encoder: some tokenizers cut what is beyond a length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_diversity.core.drivers.tpso import recommended, unvaried, vary_prompt
from comfyui_diversity.core.hooks.tokens import LearnableToken
from small.encoders import small_encoder
from small.families import WHOLE, small_whole

from devtools.comfy_source import release
from devtools.places import HERE

LONG = " ".join(["fish"] * 700)
NO_ROOM = "too long for one word more: ComfyUI cuts it for the text encoder .* tokens. Shorten the prompt"


def encoder_of(family: str) -> Any:
    if release(HERE.comfyui()) in WHOLE[family].missing_in:
        pytest.skip(f"this ComfyUI has no {family}")
    return small_whole(family)[1]


@torch.inference_mode()
@pytest.mark.parametrize("family", ["PixelDiT", "LongCat"])
def test_where_nothing_can_be_added_the_reason_is_named(family: str) -> None:
    clip = encoder_of(family)
    stock = clip.encode_from_tokens(clip.tokenize(LONG))
    assert torch.equal(stock, clip.encode_from_tokens(clip.tokenize(f"{LONG} and more")))
    with pytest.raises(ValueError, match=NO_ROOM):
        vary_prompt(clip, LONG, 2, 0, recommended(steps=1))
    with pytest.raises(ValueError, match=NO_ROOM):
        unvaried(clip, LONG, "auto", 4)
    for position in ("end", "start"):
        with pytest.raises(ValueError, match=NO_ROOM):
            LearnableToken(clip, LONG, "cool", position)


@torch.inference_mode()
def test_what_is_read_can_be_varied() -> None:
    clip = encoder_of("LongCat")
    stock = clip.encode_from_tokens(clip.tokenize(LONG))
    found, _ = vary_prompt(clip, LONG, 2, 0, recommended(steps=1, added_tokens=0))
    assert float((found[0][0] - stock).abs().amax(dim=(1, 2)).min()) > 1e-3


@torch.inference_mode()
def test_an_encoder_that_is_full_goes_without_the_token() -> None:
    """HiDream-I1's T5 reads 128 tokens, its Llama all."""
    clip = encoder_of("HiDream-I1")
    text = " ".join(["fish"] * 200)
    token = LearnableToken(clip, text, "cool", which="all")
    assert {"t5xxl", "llama"} - set(token.encoders) == {"t5xxl"}
    _, outcomes = vary_prompt(clip, text, 2, 0, recommended(steps=1), "all")
    assert {"t5xxl", "llama"} - {one.encoder for one in outcomes} == {"t5xxl"}


@torch.inference_mode()
@pytest.mark.parametrize("count", [1, 2])
def test_tokens_of_which_the_model_reads_nothing(count: int) -> None:
    """FLUX reads of CLIP the pooled vector of the first 77 tokens alone."""
    clip, text = small_encoder("flux"), " ".join(["fish"] * 90)
    with pytest.raises(ValueError, match="encoders is 'clip', but the model reads nothing of what was varied there"):
        vary_prompt(clip, text, count, 0, recommended(steps=3), "clip")
    vary_prompt(clip, text, count, 0, recommended(steps=3, added_tokens=0), "clip")
    vary_prompt(clip, text, count, 0, recommended(steps=3))
