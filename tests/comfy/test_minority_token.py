"""A token of any embedding in a prompt, through ComfyUI's own encoders of each kind, small and with random weights."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.prompt import text_encoders
from comfyui_diversity.core.hooks.tokens import Embeddings, LearnableToken, check_embedding_names, save_embedding
from small.encoders import small_encoder
from torch import Tensor
from torch.nn import functional as F

PROMPTS = {
    "short": "a red fish",
    "weights": "a (red:1.4) fish in (water:0.6)",
    "long": "a red fish in deep blue water, " * 9,
    "blank": "",
}


@functools.cache
def encoder(kind: str) -> Any:
    """Shared by the tests of a kind, which all leave it as it was."""
    return small_encoder(kind)


def moved(token: LearnableToken, count: int, size: float = 0.5, seed: int = 0) -> Embeddings:
    """The word's embeddings, and every image's a little elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: start + size * token.deviations[name] * torch.randn(start.shape, generator=generator)
        for name, start in token.start(count, 0).items()
    }


def encode(clip: Any, token: LearnableToken, embeddings: Embeddings) -> dict[str, Any]:
    with gradients(clip.cond_stage_model), torch.no_grad():
        return token.encode(embeddings)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "prompt", "position"),
    [
        pytest.param("sd1", "weights", "end", marks=pytest.mark.fast),
        ("sd1", "long", "start"),
        ("sd2", "short", "end"),
        ("sdxl", "long", "end"),
        ("sdxl", "blank", "start"),
        ("flux", "weights", "start"),
        ("t5", "blank", "end"),
        ("qwen3", "weights", "end"),
        ("qwen3", "blank", "start"),
    ],
)
def test_the_words_own_embeddings_give_the_stock_encoding_of_the_longer_prompt(kind: str, prompt: str, position: str):
    clip, text = encoder(kind), PROMPTS[prompt]
    longer = f"{text.rstrip()} cool" if position == "end" else f"cool {text}"
    stock = clip.encode_from_tokens_scheduled(clip.tokenize(longer.strip()))[0]
    token = LearnableToken(clip, text, "cool", position, "all")
    found = encode(clip, token, token.start(2, 0))
    assert found["cond"].shape[0] == 2
    assert torch.allclose(found["cond"], stock[0].expand_as(found["cond"]), atol=2e-5)
    for name, value in stock[1].items():
        if isinstance(value, Tensor):
            assert torch.allclose(found[name].float(), value.expand_as(found[name]).float(), atol=2e-5), name


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        ("sd1", "long"),
        pytest.param("sdxl", "weights", marks=pytest.mark.fast),
        ("flux", "short"),
        ("qwen3", "short"),
    ],
)
def test_every_image_has_its_own_token_and_rows_are_single_encodings(kind: str, prompt: str):
    clip = encoder(kind)
    token = LearnableToken(clip, PROMPTS[prompt], "cool", "end", "all")
    embeddings = moved(token, 3)
    together = encode(clip, token, embeddings)["cond"]
    for k in range(3):
        alone = encode(clip, token, {name: rows[k : k + 1] for name, rows in embeddings.items()})["cond"]
        assert torch.allclose(together[k], alone[0], atol=2e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3
    assert all("encode" not in vars(module) for module in text_encoders(clip).values())


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "prompt"),
    [pytest.param("sd1", "long", marks=pytest.mark.fast), ("flux", "weights"), ("qwen3", "weights")],
)
def test_gradients_agree_with_finite_differences(kind: str, prompt: str):
    clip = encoder(kind)
    before = {name: value.clone() for name, value in clip.cond_stage_model.state_dict().items()}
    token = LearnableToken(clip, PROMPTS[prompt], "cool", "end", "all")
    with gradients(clip.cond_stage_model):
        leaves = {name: value.clone().requires_grad_() for name, value in moved(token, 2).items()}
        cond = token.encode(leaves)["cond"]
        weight = torch.randn(cond.shape, generator=torch.Generator().manual_seed(5))
        found = torch.autograd.grad((cond * weight).sum(), list(leaves.values()), allow_unused=True)
        for name, gradient in zip(leaves, found, strict=True):
            if gradient is None:  # FLUX reads its CLIP's pooled vector alone
                assert name == "clip_l"
                continue
            direction = F.normalize(gradient.flatten(), dim=0).view_as(gradient)
            step = 1e-2 * token.deviations[name]
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    there = {**leaves, name: leaves[name] + sign * step * direction}
                    values.append((token.encode(there)["cond"].double() * weight).sum())
            slope = ((values[0] - values[1]) / (2 * step)).item()
            assert slope == pytest.approx(gradient.norm().item(), rel=0.03), name
    after = clip.cond_stage_model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in clip.cond_stage_model.parameters())


@torch.inference_mode()
def test_two_encoders_have_a_token_each_and_the_pooled_vector_follows():
    clip = small_encoder("sdxl")
    token = LearnableToken(clip, "a red fish", "cool")
    assert sorted(token.encoders) == ["clip_g", "clip_l"]
    assert {name: tuple(start.shape) for name, start in token.start(3, 0).items()} == {
        "clip_g": (3, 1, 96),
        "clip_l": (3, 1, 64),
    }
    found = encode(clip, token, moved(token, 2))
    assert found["pooled_output"].shape[0] == 2
    assert not torch.allclose(found["pooled_output"][0], found["pooled_output"][1], atol=1e-4)


@torch.inference_mode()
def test_encoders_without_the_token_read_the_plain_prompt():
    clip = small_encoder("flux")
    text = "a red fish"
    stock = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0]
    token = LearnableToken(clip, text, "cool", which="clip")
    assert token.encoders == ("clip_l",)
    found = encode(clip, token, moved(token, 2))
    assert torch.allclose(found["cond"], stock[0].expand_as(found["cond"]), atol=2e-5)  # T5
    assert not torch.allclose(found["pooled_output"], stock[1]["pooled_output"].expand(2, -1), atol=1e-3)


@torch.inference_mode()
def test_only_the_chunk_with_the_token_is_encoded_again(monkeypatch: pytest.MonkeyPatch):
    clip = small_encoder("sd1")
    [module] = text_encoders(clip).values()
    token = LearnableToken(clip, PROMPTS["long"] + "and a (heart:1.2)", "cool")
    sizes: list[int] = []
    real = type(module).encode

    def counted(self: Any, rows: list) -> Any:
        sizes.append(len(rows))
        return real(self, rows)

    monkeypatch.setattr(type(module), "encode", counted)
    first = encode(clip, token, moved(token, 3))
    assert first["cond"].shape[1] == 154
    assert sorted(sizes) == [1, 1, 3]  # another chunk, the empty one that weights are measured against, the token's
    sizes.clear()
    encode(clip, token, moved(token, 3, seed=1))
    assert sizes == [3]


@torch.inference_mode()
def test_a_word_of_several_tokens_and_a_start_at_random():
    clip = small_encoder("sd1")
    assert LearnableToken(clip, "a fish", "very cool").start(2, 0)["clip_l"].shape == (2, 2, 64)
    token = LearnableToken(clip, "a fish", "")
    one, two = token.start(2, 7)["clip_l"], token.start(4, 7)["clip_l"]
    assert torch.equal(one, two[:2])
    assert not torch.equal(two[0], two[1])
    assert not torch.equal(one, token.start(2, 8)["clip_l"])
    assert two.std().item() == pytest.approx(token.deviations["clip_l"], rel=0.3)


@torch.inference_mode()
def test_embeddings_by_name_keep_working_and_a_saved_token_is_one(tmp_path: Path):
    """Saved, and read by the stock tokenizer."""
    clip = small_encoder("sdxl")
    for name in ("clip_l", "clip_g"):
        tokenizer = getattr(clip.tokenizer, name)
        tokenizer.embedding_directory, tokenizer.embedding_size = [str(tmp_path)], {"clip_l": 64, "clip_g": 96}[name]
    token = LearnableToken(clip, "a red fish", "cool")
    learned = moved(token, 1)
    keys = check_embedding_names(clip, token.encoders)
    save_embedding(tmp_path / "diversity" / "rare.safetensors", {n: v[0] for n, v in learned.items()}, keys)
    expected = encode(clip, token, learned)
    stock = clip.encode_from_tokens_scheduled(clip.tokenize("a red fish embedding:rare"))[0]
    assert torch.allclose(stock[0], expected["cond"], atol=2e-5)
    assert torch.allclose(stock[1]["pooled_output"], expected["pooled_output"], atol=2e-5)

    again = LearnableToken(clip, "a red fish", "embedding:rare")
    assert all(torch.equal(again.start(1, 0)[name], rows) for name, rows in learned.items())
    within = LearnableToken(clip, "a red embedding:rare fish", "cool")
    stock = clip.encode_from_tokens_scheduled(clip.tokenize("a red embedding:rare fish cool"))[0]
    assert torch.allclose(encode(clip, within, within.start(1, 0))["cond"], stock[0], atol=2e-5)


@torch.inference_mode()
def test_bad_choices_are_named():
    clip = small_encoder("sd1")
    with pytest.raises(ValueError, match="position is 'middle'"):
        LearnableToken(clip, "a fish", "cool", "middle")
    with pytest.raises(ValueError, match="encoders is 'some'"):
        LearnableToken(clip, "a fish", "cool", "end", "some")
    with pytest.raises(ValueError, match="reads no embeddings"):
        check_embedding_names(clip, ["clip_l"])


def test_an_error_leaves_the_encoder_as_it_was():
    clip = small_encoder("sdxl")
    with torch.inference_mode():
        token = LearnableToken(clip, "a fish", "cool")
        with pytest.raises(RuntimeError), gradients(clip.cond_stage_model):
            token.encode({name: torch.zeros(2, 1, 3, 3) for name in token.encoders})
    assert all("encode" not in vars(module) for module in text_encoders(clip).values())
