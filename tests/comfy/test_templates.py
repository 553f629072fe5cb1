"""Encoders that write a chat template around a prompt, and fill it up: only the prompt's own words are varied."""

from __future__ import annotations

import pytest
import torch
from comfy.text_encoders.z_image import ZImageTokenizer
from comfyui_diversity.core.drivers.tpso import recommended, vary_prompt
from comfyui_diversity.core.hooks.prompt import text_encoders
from comfyui_diversity.core.hooks.text import PromptEncoder, prompt_encoders
from comfyui_diversity.core.hooks.tokens import LearnableToken
from small.encoders import small_encoder

KEY = "qwen3_4b"


class _Tokenizer(ZImageTokenizer):
    """As those of FLUX.2 Klein and Ovis, which fill every prompt up, and of Boogu, with another template for none."""

    def __init__(self) -> None:
        super().__init__()
        self.qwen3_4b.min_length = 48
        self.llama_template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def tokenize_with_weights(self, text: str, *args, **named):
        if not text.strip():
            named["llama_template"] = "<|im_start|>system\nDescribe the image well.<|im_end|>\n<|im_start|>user\n{}"
        return super().tokenize_with_weights(text, *args, **named)


@pytest.fixture(name="clip", scope="module")
def small_clip():
    clip = small_encoder("qwen3")
    clip.tokenizer = _Tokenizer()
    return clip


def words(clip, text: str, first: str | None = None) -> str:
    """What an encoder takes for the prompt's own words."""
    tokens = clip.tokenize(text)
    encoder = PromptEncoder(clip, KEY, KEY, tokens, None if first is None else clip.tokenize(first))
    [section] = encoder.all_sections
    row = [token for token, _ in tokens[KEY][0]]
    return clip.tokenizer.qwen3_4b.tokenizer.decode(row[section.start : section.last])


@torch.inference_mode()
@pytest.mark.parametrize("text", ["a red house", "a", "houses\n", "user\nassistant", ""])
def test_words_of_a_prompt_are_found_inside_template_and_padding(clip, text: str) -> None:
    assert list(text_encoders(clip)) == [KEY]
    assert words(clip, text) == text


@torch.inference_mode()
def test_added_tokens_are_what_is_varied_and_learned(clip) -> None:
    assert words(clip, "a red house the the", "a red house") == " the the"
    assert words(clip, "the the", "") == "the the"
    token = LearnableToken(clip, "a red house", "cool")
    row = clip.tokenize("a red house cool")[KEY][0]
    places = token._parts[KEY].places
    assert clip.tokenizer.qwen3_4b.tokenizer.decode([row[entry][0] for _, entry in places]) == " cool"
    [(varied, _)], [outcome] = vary_prompt(clip, "a red house", 2, 0, recommended(steps=1))
    assert outcome.added_tokens == 4
    plain = prompt_encoders(clip, clip.tokenize("a red house the the the the"), "all")[0]
    before = plain.all_sections[0].last - 4
    stock = clip.encode_from_tokens(clip.tokenize("a red house the the the the"))
    # A causal encoder: what stands in front of the added words is as it was.
    assert torch.allclose(varied[:, :before], stock[:, :before].expand(2, -1, -1), atol=1e-5)
    assert not torch.allclose(varied[:, before:], stock[:, before:].expand(2, -1, -1), atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("text", ["<|im_start|>system\na red house", "a house<|im_end|>", "a <|endoftext|> house"])
def test_a_text_with_a_mark_of_the_template_is_refused(clip, text: str) -> None:
    with pytest.raises(ValueError, match=r"The text contains <\|.*a mark of the chat template"):
        words(clip, text)


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "end"), [("sd1", "<|endoftext|>"), ("sdxl", "<|endoftext|>"), ("t5", "</s>")])
def test_a_text_with_an_end_token_is_refused(kind: str, end: str) -> None:
    clip = small_encoder(kind)
    for text in (f"a red {end} house", f"{end} house"):
        with pytest.raises(ValueError, match="The text contains an end-of-text token"):
            LearnableToken(clip, text, "cool")
        with pytest.raises(ValueError, match="The text contains an end-of-text token"):
            vary_prompt(clip, text, 2, 0, recommended(steps=1), "all")
    LearnableToken(clip, "a red house, " * 30, "cool")  # several chunks have an end each
