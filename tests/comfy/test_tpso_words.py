"""Keeping the prompt's words: which changes of a prompt its variants are held against, and that they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import pytest
import torch
from comfyui_diversity.core.drivers import tpso as driver
from comfyui_diversity.core.drivers.tpso import NEIGHBOURS, NEUTRAL_WORD, changed_prompts, recommended, vary_prompt
from comfyui_diversity.core.hooks.text import PromptEncoder, prompt_encoders
from comfyui_diversity.core.methods.tpso import directions_to_keep
from comfyui_diversity.demo import loader
from small.encoders import small_encoder
from torch import Tensor
from torch.nn import functional as F

from .test_tpso_nodes import PROMPTS, run

PROMPT = "a heart on the right"


@pytest.fixture(scope="module")
def demo_clip() -> Any:
    with torch.inference_mode():
        return loader.load_clip()


def encoder_of(clip: Any, text: str, which: str = "all", plain: str | None = None) -> PromptEncoder:
    before = None if plain is None else clip.tokenize(plain)
    return prompt_encoders(clip, clip.tokenize(text), which, before)[0]


def changes(encoder: PromptEncoder) -> Tensor:
    return changed_prompts(encoder, encoder.embedding(NEUTRAL_WORD))


@torch.inference_mode()
@pytest.mark.parametrize("kind", [pytest.param("sd1", marks=pytest.mark.fast), "qwen3"])
def test_a_change_is_the_prompt_with_another_token(kind: str) -> None:
    """Against the prompt tokenized anew, with a token replaced by hand."""
    clip, text = small_encoder(kind), "a red fish"
    encoder = encoder_of(clip, text)
    found = changes(encoder)
    assert len(found) == (1 + NEIGHBOURS) * encoder.positions
    section = encoder.sections[0]
    table = encoder.module.transformer.get_input_embeddings().weight.float()
    for word in range(encoder.positions):
        own = section.embeds[section.first + word].float()
        order = F.cosine_similarity(table, own[None]).argsort(descending=True)
        nearest = [token for token in order.tolist()[: NEIGHBOURS + 2] if not torch.allclose(table[token], own)]
        for k, token in enumerate(nearest[:2]):
            other = table[token].to(section.embeds)
            embeds = section.embeds.clone()
            embeds[section.first + word] = other
            swapped = encoder_of(clip, text)
            swapped.sections = [replace(section, embeds=embeds)]
            row = found[word * (1 + NEIGHBOURS) + 1 + k]
            assert torch.allclose(row, swapped.reference(), atol=1e-4), (word, k)
    neutral = encoder_of(clip, f"{NEUTRAL_WORD} red fish").reference()
    assert torch.allclose(found[0], neutral, atol=1e-4)


@torch.inference_mode()
def test_only_the_prompts_own_words_are_changed() -> None:
    clip = small_encoder("sd1")
    plain, longer = encoder_of(clip, "a red fish"), encoder_of(clip, "a red fish the the", plain="a red fish")
    assert longer.positions == 2
    assert len(changes(longer)) == len(changes(plain)) == 3 * (1 + NEIGHBOURS)
    for blank in (encoder_of(clip, ""), encoder_of(clip, "the the", plain="")):
        assert changes(blank).shape == (0, len(blank.reference()))


@torch.inference_mode()
def test_among_the_nearest_words_are_a_words_rivals(demo_clip: Any) -> None:
    tokenizer = demo_clip.tokenizer.clip_l.tokenizer
    for text, rival in (("right", "left"), ("red", "orange"), ("fish", "star")):
        encoder = encoder_of(demo_clip, text)
        section = encoder.sections[0]
        near = driver.nearest_tokens(encoder.module, section.embeds[section.first : section.last])[0]
        table = encoder.module.transformer.get_input_embeddings().weight
        ids = [int((table - row).abs().sum(1).argmin()) for row in near]
        assert rival in {tokenizer.decode([token]).strip() for token in ids}


@torch.inference_mode()
@pytest.mark.fast
def test_variants_do_not_turn_into_another_prompt(demo_clip: Any) -> None:
    """How far variants go towards "a heart on the left", on the surface of one cosine: with the words kept, no way."""

    def furthest(keep: bool) -> float:
        recipe = recommended(0.6, added_tokens=0, keep_words=keep)
        _, [outcome] = vary_prompt(demo_clip, PROMPT, 10, 0, recipe)
        prompt, left = (encoder_of(demo_clip, text).reference() for text in (PROMPT, PROMPT.replace("right", "left")))
        way = -directions_to_keep(prompt, left[None])[0]
        assert (outcome.words_kept is not None) == keep
        return (outcome.variants.vectors @ way).max().item()

    assert furthest(keep=False) > 0.25
    assert furthest(keep=True) < 0.1


@pytest.mark.parametrize(("kind", "prompt", "encoders"), [("sdxl", "weights", 2), ("flux", "long", 2)])
def test_every_encoder_can_keep_its_words(kind: str, prompt: str, encoders: int) -> None:
    *_, report = run(small_encoder(kind), PROMPTS[prompt], encoders="all", steps=3, keep_words=True)
    assert report.count("kept away from") == encoders


def test_where_there_is_nothing_to_keep_the_report_says_so() -> None:
    clip = small_encoder("sd1")
    nothing = "keep_words has no effect: there is no word to keep"
    assert nothing in run(clip, "", keep_words=True)[4]
    assert nothing in run(clip, "", added_tokens=2, keep_words=True)[4]
    unkept: tuple[dict[str, Any], ...] = ({}, {"keep_words": True, "steps": 0}, {"keep_words": True, "similarity": 1.0})
    for changed in unkept:
        report = run(clip, **changed)[4]
        assert "keep" not in report
        assert "kept" not in report


@torch.inference_mode()
def test_how_many_prompts_go_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = small_encoder("sd1")
    found = [changes(encoder_of(clip, "a red fish"))]
    monkeypatch.setattr(driver, "_PROMPTS_AT_ONCE", 5)
    monkeypatch.setattr(PromptEncoder, "_chunk_for", lambda self, count: min(count, 2))
    found.append(changes(encoder_of(clip, "a red fish")))
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_cancel_works_while_changes_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = small_encoder("sd1")
    before = {name: value.clone() for name, value in clip.cond_stage_model.state_dict().items()}
    real, calls = driver._offsets, []

    def cancelled(*arguments: Any) -> Tensor:
        calls.append(1)
        comfy.model_management.interrupt_current_processing()
        return real(*arguments)

    monkeypatch.setattr(driver, "_offsets", cancelled)
    monkeypatch.setattr(driver, "_PROMPTS_AT_ONCE", 5)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(clip, keep_words=True)
    assert len(calls) == 1
    after = clip.cond_stage_model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
