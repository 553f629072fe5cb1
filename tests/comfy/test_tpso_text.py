"""Differentiable text encoding through ComfyUI's own encoders of each kind, small and with random weights."""

from __future__ import annotations

from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from comfyui_diversity.core.drivers.tpso import recommended, vary_prompt
from comfyui_diversity.core.hooks import text as hook
from comfyui_diversity.core.hooks.chunks import load_for_gradients
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.prompt import device_of, read_sections, text_encoders
from comfyui_diversity.core.hooks.text import encode_variants, mean_output, projection_is_real, prompt_encoders
from small.encoders import small_encoder
from small.families import WHOLE, small_whole
from torch import Tensor
from torch.nn import functional as F

from benchmarks import tpso_speed

PROMPTS = {
    "short": "a red fish",
    "weights": "a (red:1.4) fish in (water:0.6)",
    "long": "a red fish in deep blue water, " * 9,
}


def offsets_for(encoder, count: int, seed: int = 0, size: float = 0.05) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(count, encoder.positions, encoder.width, generator=generator)


@torch.inference_mode()
@pytest.mark.parametrize("kind", [pytest.param("sdxl", marks=pytest.mark.fast), "flux", "qwen3"])
def test_gradients_agree_with_finite_differences(kind: str):
    clip = small_encoder(kind)
    before = {name: value.clone() for name, value in clip.cond_stage_model.state_dict().items()}
    for encoder in prompt_encoders(clip, clip.tokenize(PROMPTS["short"]), "all"):
        with gradients():
            offsets = offsets_for(encoder, 2)
            vectors, pull_back = encoder(offsets)
            weight = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(5))
            gradient = pull_back(weight)
            direction = F.normalize(gradient.flatten(), dim=0).view_as(gradient)
            # along the gradient, where the slope is steepest: elsewhere float32 leaves too few digits
            step = 1e-3
            ahead = (encoder(offsets + step * direction)[0].double() * weight).sum()
            back = (encoder(offsets - step * direction)[0].double() * weight).sum()
        slope = ((ahead - back) / (2 * step)).item()
        assert gradient.norm().item() > 0
        assert slope == pytest.approx(gradient.norm().item(), rel=0.02), encoder.name
    after = clip.cond_stage_model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in clip.cond_stage_model.parameters())


@torch.inference_mode()
@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        pytest.param("sd1", "weights", marks=pytest.mark.fast),
        ("sd2", "short"),
        ("sdxl", "long"),
        ("flux", "weights"),
        ("t5", "long"),
        ("qwen3", "weights"),
    ],
)
def test_no_offsets_give_the_stock_conditioning_and_rows_are_single_encodings(kind: str, prompt: str):
    clip = small_encoder(kind)
    tokens = clip.tokenize(PROMPTS[prompt])
    encoders = prompt_encoders(clip, tokens, "all")
    stock = clip.encode_from_tokens_scheduled(tokens)
    zero = {encoder.name: torch.zeros(3, encoder.positions, encoder.width) for encoder in encoders}
    same = encode_variants(clip, tokens, zero, encoders)
    assert torch.allclose(same[0][0], stock[0][0].expand_as(same[0][0]), atol=2e-5)
    if stock[0][1].get("pooled_output") is not None:
        pooled = same[0][1]["pooled_output"]
        assert torch.allclose(pooled, stock[0][1]["pooled_output"].expand_as(pooled), atol=2e-5)
    offsets = {encoder.name: offsets_for(encoder, 3) for encoder in encoders}
    together = encode_variants(clip, tokens, offsets, encoders)
    in_chunks = encode_variants(clip, tokens, offsets, encoders, chunk=2)
    assert torch.allclose(together[0][0], in_chunks[0][0], atol=2e-5)
    for k in range(3):
        alone = encode_variants(clip, tokens, {n: o[k : k + 1] for n, o in offsets.items()}, encoders)
        assert torch.allclose(together[0][0][k], alone[0][0][0], atol=2e-5)
    assert (together[0][0] - stock[0][0]).abs().max() > 1e-3
    again = clip.encode_from_tokens_scheduled(tokens)
    assert torch.equal(stock[0][0], again[0][0])
    assert all("encode" not in vars(m) and "process_tokens" not in vars(m) for m in text_encoders(clip).values())


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "prompt"), [("sd2", "short"), ("sdxl", "weights")])
def test_positions_up_to_the_end_give_the_full_lengths_pooled_vector(kind: str, prompt: str):
    """What the losses see is what the stock encoding of all 77 positions gives, variant by variant."""
    clip = small_encoder(kind)
    tokens = clip.tokenize(PROMPTS[prompt])
    for encoder in prompt_encoders(clip, tokens):
        offsets = offsets_for(encoder, 3)
        with gradients():
            vectors = encoder(offsets)[0]
        module = encoder.module
        rows = [[word[0] for word in tokens[encoder.key][0]]]
        embeds, _, numbers = module.process_tokens(rows, torch.device("cpu"))[:3]
        full = embeds.repeat(3, 1, 1)
        section = encoder.sections[0]
        full[:, section.first : section.last] += offsets
        assert full.shape[1] == 77
        outputs = module.transformer(None, None, embeds=full, num_tokens=numbers * 3, dtype=torch.float32)
        expected = outputs[2] if encoder.projected else outputs[3]
        assert torch.allclose(vectors, expected, atol=2e-6)


@pytest.mark.parametrize("spread", [False, True])
def test_losses_equal_one_by_one_at_full_length_step_for_step(spread: bool):
    found = tpso_speed.row("small", small_encoder("sd1", inference=False), count=3, spread=spread, steps=3)
    assert float(dict(zip(tpso_speed.HEAD, found, strict=True))["largest difference"]) < 1e-8


@torch.inference_mode()
@pytest.mark.fast
@pytest.mark.parametrize("on_the_way", ["there", "back"])
def test_running_out_of_memory_halves_the_chunk_and_changes_nothing(monkeypatch: pytest.MonkeyPatch, on_the_way: str):
    clip = small_encoder("sd1")
    encoder = prompt_encoders(clip, clip.tokenize(PROMPTS["short"]))[0]
    offsets = offsets_for(encoder, 4)
    with gradients():
        expected, pull_back = encoder(offsets)
        slope = pull_back(torch.ones_like(expected))
    real, back = hook.clip_vector, []

    def fits(rows):
        if len(rows) > 2:
            raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")

    def small_memory(module, embeds, *rest):
        if on_the_way == "there":
            fits(embeds)
        found = real(module, embeds, *rest)
        if found.requires_grad:
            found.register_hook(lambda gradient: back.append(len(gradient)) or fits(gradient))
        return found

    monkeypatch.setattr(hook, "clip_vector", small_memory)
    with gradients():
        vectors, pull_back = encoder(offsets)
        assert torch.allclose(pull_back(torch.ones_like(vectors)), slope, atol=1e-5)
    assert back == ([2, 2] if on_the_way == "there" else [4, 2, 2])
    assert encoder.chunk == 2
    assert torch.allclose(vectors, expected, atol=1e-6)


@torch.inference_mode()
def test_an_encoder_computes_where_comfyui_says(monkeypatch: pytest.MonkeyPatch):
    """Newer versions keep the weights elsewhere until they are used."""
    clip = small_encoder("sd1")
    module = clip.cond_stage_model.clip_l
    weight = module.transformer.get_input_embeddings().weight
    module.execution_device = None
    assert device_of(module) == weight.device
    module.execution_device = torch.device("meta")
    assert device_of(module) == torch.device("meta")
    asked = []
    real = type(module).process_tokens

    def watched(self, rows, device):
        asked.append(device)
        return real(self, rows, torch.device("cpu"))

    monkeypatch.setattr(type(module), "process_tokens", watched)
    read_sections(module, [[(49406, 1.0), (320, 1.0), (49407, 1.0)]], [])
    assert asked == [torch.device("meta")]


@pytest.mark.fast
def test_no_more_room_is_asked_for_than_there_is_beside_the_model(monkeypatch: pytest.MonkeyPatch):
    """Or ComfyUI would make it by moving the encoder itself out."""
    asked: list[int] = []
    management = comfy.model_management
    monkeypatch.setattr(management, "get_total_memory", lambda _: 10_000)
    monkeypatch.setattr(management, "load_models_gpu", lambda _, memory_required: asked.append(memory_required))
    patcher = SimpleNamespace(load_device=torch.device("cpu"), model_size=lambda: 6_000)
    for of_row in (100, 1_000, 5_000):
        part = SimpleNamespace(memory=lambda rows, of_row=of_row: rows * of_row)
        load_for_gradients(patcher, [part], 8)
    assert asked == [800, 3_200, 5_000]  # all rows; four fifths of what is left; one row, however large


@torch.inference_mode()
@pytest.mark.fast
def test_a_single_row_does_not_make_those_after_it_go_one_by_one(monkeypatch: pytest.MonkeyPatch):
    real, rows = hook.clip_vector, []

    def counted(module, embeds, *rest):
        rows.append(len(embeds))
        return real(module, embeds, *rest)

    monkeypatch.setattr(hook, "clip_vector", counted)
    recipe = recommended(0.8, added_tokens=0)
    vary_prompt(small_encoder("sd1"), PROMPTS["short"], 6, 0, recipe)
    assert set(rows) == {1, 6}
    assert rows.count(6) > recipe.settings.steps
    assert rows.count(1) < 6


def test_an_error_leaves_the_encoder_as_it_was():
    clip = small_encoder("sdxl")
    tokens = clip.tokenize(PROMPTS["short"])
    with torch.inference_mode():
        encoders = prompt_encoders(clip, tokens)
        bad = {encoder.name: torch.zeros(2, encoder.positions, encoder.width + 1) for encoder in encoders}
        with pytest.raises(RuntimeError):
            encode_variants(clip, tokens, bad, encoders)
    assert all("encode" not in vars(m) and "process_tokens" not in vars(m) for m in text_encoders(clip).values())


def test_a_projection_that_was_never_loaded_is_told_from_a_real_one():
    clip = small_encoder("sd1")
    module = clip.cond_stage_model.clip_l
    weight = module.transformer.text_projection.weight
    with torch.inference_mode():
        assert projection_is_real(module)
        real = weight.clone()
        for garbage in (torch.zeros_like(real), torch.eye(64), real * float("nan")):
            weight.copy_(garbage)
            assert not projection_is_real(module)
        mostly_zero = torch.zeros_like(real)
        mostly_zero[3, :5] = 1e-30
        weight.copy_(mostly_zero)
        assert not projection_is_real(module)
        encoder = prompt_encoders(clip, clip.tokenize("a fish"))[0]
        assert encoder.vector_name == "unprojected pooled"
        assert torch.isfinite(encoder.reference()).all()


@torch.inference_mode()
def test_which_encoders_take_part():
    clip = small_encoder("flux")
    tokens = clip.tokenize(PROMPTS["short"])
    assert [e.name for e in prompt_encoders(clip, tokens, "clip")] == ["clip_l"]
    for which in ("auto", "all"):  # FLUX reads CLIP's pooled vector alone, and follows T5
        assert sorted(e.name for e in prompt_encoders(clip, tokens, which)) == ["clip_l", "t5xxl"]
    sdxl = small_encoder("sdxl")
    assert sorted(e.name for e in prompt_encoders(sdxl, sdxl.tokenize("a fish"))) == ["clip_g", "clip_l"]
    t5 = small_encoder("t5")
    assert [e.is_clip for e in prompt_encoders(t5, t5.tokenize("a fish"))] == [False]
    with pytest.raises(ValueError, match="none of this CLIP's text encoders"):
        prompt_encoders(t5, t5.tokenize("a fish"), "clip")
    with pytest.raises(ValueError, match="encoders is 'some'"):
        prompt_encoders(clip, tokens, "some")


@torch.inference_mode()
def test_only_the_prompts_own_words_are_varied():
    qwen = small_encoder("qwen3")
    [encoder] = prompt_encoders(qwen, qwen.tokenize("zebra"))
    [longer] = prompt_encoders(qwen, qwen.tokenize("zebra zebra zebra"))
    assert 0 < encoder.positions < longer.positions
    assert len(encoder.sections[0].embeds) - encoder.positions == len(longer.sections[0].embeds) - longer.positions
    sdxl = small_encoder("sdxl")
    for encoder in prompt_encoders(sdxl, sdxl.tokenize("a fish")):
        assert encoder.positions == 2


@pytest.mark.parametrize("kind", ["t5", "qwen3", "Lumina 2"])
def test_what_stands_for_a_prompt_has_read_all_of_its_words(kind: str):
    """A language model's states in front of a word do not depend on it; those of encoders with an end token do."""
    clip = small_whole(kind)[1] if kind in WHOLE else small_encoder(kind)
    with torch.inference_mode():
        [encoder] = prompt_encoders(clip, clip.tokenize("a red fish in deep water"))
    [section] = encoder.sections
    moved = section.embeds.clone()
    moved[section.last - 1] += 1.0

    @torch.no_grad()
    def output(embeds: Tensor, first: int, last: int) -> Tensor:
        return mean_output(encoder.module, embeds[None], section, first, last)

    before = [output(embeds, section.first, section.last - 1) for embeds in (section.embeds, moved)]
    assert torch.equal(*before) == (section.behind is not None)
    for at in range(*section.summary):
        assert not torch.equal(output(section.embeds, at, at + 1), output(moved, at, at + 1))
    plain, vector = encoder.reference(), output(section.embeds, *section.summary)[0]
    assert torch.allclose(vector - plain, encoder._common_mean, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("kind", [pytest.param("sd1", marks=pytest.mark.fast), "t5", "qwen3"])
def test_unrelated_prompts_of_one_length_are_read_at_once(kind: str):
    clip = small_encoder(kind)
    [encoder] = prompt_encoders(clip, clip.tokenize("a fish"))
    read: list[int] = []
    counted = encoder.module.transformer.register_forward_pre_hook(
        lambda *given: read.append(len(given[2]["embeds"])), with_kwargs=True
    )
    if encoder.is_clip:
        counted.remove()
        tower = encoder.module.transformer.text_model.encoder
        counted = tower.register_forward_pre_hook(lambda _, given: read.append(len(given[0])))
    try:
        found = torch.stack(encoder._unrelated_raw)
    finally:
        counted.remove()
    assert sum(read) == len(hook.UNRELATED)
    assert len(read) <= len(hook.UNRELATED) // 2
    # In whichever order, the vectors of each prompt by itself.
    alone = []
    for text in hook.UNRELATED:
        [own] = prompt_encoders(clip, clip.tokenize(text))
        alone.append(own.reference() + (0 if own.is_clip else encoder._common_mean))
    nearest = torch.cdist(found, torch.stack(alone)).min(1)
    assert nearest.values.max().item() < 1e-4
    assert len(set(nearest.indices.tolist())) == len(hook.UNRELATED)
