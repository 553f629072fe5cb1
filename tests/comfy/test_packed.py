"""Variants of a prompt, read as one sequence with what they share once: the same vectors and gradients, for less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from comfyui_diversity.core.drivers.tpso import changed_prompts
from comfyui_diversity.core.hooks import gradients as gradient_hook
from comfyui_diversity.core.hooks import text as hook
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.packed import Packing, rows_at_once
from comfyui_diversity.core.hooks.text import PromptEncoder, prompt_encoders
from small.encoders import small_encoder
from small.families import WHOLE, small_whole
from torch import Tensor

from devtools.comfy_source import release
from devtools.places import HERE

PROMPT = "a small red fish in deep water at night, seen from far above, beside a wooden boat"
# An encoder of every architecture that reads from left to right, with templates of several kinds.
LEFT_TO_RIGHT = ["sd1", "sd2", "sdxl", "qwen3", "Qwen-Image", "Lumina 2", "FLUX.2 dev", "HiDream-I1", "Krea 2", "Anima"]


def small_clip(kind: str) -> Any:
    if kind not in WHOLE:
        return small_encoder(kind)
    if release(HERE.comfyui()) in WHOLE[kind].missing_in:
        pytest.skip(f"this ComfyUI has no {kind}")
    return small_whole(kind)[1]


def encoders_of(clip: Any, text: str = PROMPT, added: str = " the the the the") -> list[PromptEncoder]:
    return prompt_encoders(clip, clip.tokenize(text + added), "all", clip.tokenize(text) if added else None)


def moved(encoder: PromptEncoder, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return encoder.deviation * torch.randn(count, encoder.positions, encoder.width, generator=generator)


def found(encoder: PromptEncoder, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors, and a gradient in which every value counts."""
    with gradients():
        vectors, pull_back = encoder(offsets)
        weights = torch.linspace(-1, 1, vectors.numel()).view_as(vectors)
        return vectors, pull_back(weights.to(vectors))


@torch.inference_mode()
@pytest.mark.parametrize("kind", LEFT_TO_RIGHT)
def test_vectors_and_gradients_are_those_of_each_row_by_itself(kind: str) -> None:
    packed = 0
    for encoder in encoders_of(small_clip(kind)):
        offsets = moved(encoder)
        vectors, gradient = found(encoder, offsets)
        packed += any(map(encoder._shared, encoder.sections))
        encoder.reads_together = False
        expected, slope = found(encoder, offsets)
        assert torch.allclose(vectors, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
        assert torch.allclose(gradient, slope, atol=1e-5 * float(slope.abs().max()), rtol=0)
        assert torch.allclose(encoder.forward_only(offsets), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert packed


@torch.inference_mode()
@pytest.mark.parametrize("kind", [pytest.param("sd1", marks=pytest.mark.fast), "qwen3"])
def test_the_prompt_is_read_once_for_all_variants(kind: str) -> None:
    [encoder] = encoders_of(small_clip(kind))
    [section] = encoder.sections
    shared = encoder._shared(section)
    assert shared == section.start
    positions: list[int] = []
    inner = encoder.module.transformer
    layers = inner.text_model.encoder.layers if encoder.is_clip else inner.model.layers
    watched = layers[0].self_attn.q_proj.register_forward_hook(
        lambda *given: positions.append(given[2][..., 0].numel())
    )
    try:
        encoder.vectors(moved(encoder, 6))
    finally:
        watched.remove()
    end = encoder._length(section)
    assert positions == [shared + 6 * (end - shared)]
    assert positions[0] < 6 * end / 2


@torch.inference_mode()
def test_an_encoder_that_reads_both_ways_is_read_row_by_row() -> None:
    [encoder] = encoders_of(small_clip("t5"))
    assert encoder._shared(encoder.sections[0]) == 0


@torch.inference_mode()
def test_a_prompt_that_is_shorter_than_what_is_added_is_read_row_by_row() -> None:
    for text, added in (("fish", " the the the the"), (PROMPT, "")):
        [encoder] = encoders_of(small_clip("sd1"), text, added)
        assert encoder._shared(encoder.sections[0]) == 0


@torch.inference_mode()
def test_an_encoder_that_reads_otherwise_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that had no causal mask, or took its positions from somewhere else."""
    [encoder] = encoders_of(small_clip("qwen3"))
    real = hook.mean_output

    def otherwise(module: Any, embeds: Tensor, section: Any, first: int, last: int, shared: int = 0) -> Tensor:
        found = real(module, embeds, section, first, last, shared)
        return found + found.roll(1, 0) if shared else found

    monkeypatch.setattr(hook, "mean_output", otherwise)
    assert encoder._shared(encoder.sections[0]) == 0


@torch.inference_mode()
def test_more_rows_than_one_sequence_takes() -> None:
    [encoder] = encoders_of(small_clip("qwen3"))
    [section] = encoder.sections
    end = encoder._length(section)
    count = rows_at_once(section.start, end) + 3
    assert section.start + count * (end - section.start) > 1024
    vectors = encoder.vectors(moved(encoder, count))
    encoder.reads_together = False
    assert torch.allclose(vectors, encoder.vectors(moved(encoder, count)), atol=1e-5)


@pytest.mark.fast
def test_what_attends_to_what() -> None:
    packing = Packing(count=2, shared=2, length=4)
    rows = torch.tensor([[0, 1, 2, 3], [0, 1, 4, 5]])[..., None].float()
    packed = packing.pack(rows)
    assert packed[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert packing.unpack(packed)[..., 0].tolist() == [[2, 3], [4, 5]]
    assert packing.positions(torch.device("cpu")).tolist() == [0, 1, 2, 3, 2, 3]
    assert packing.allowed(torch.device("cpu")).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["sd1", "qwen3"])
def test_prompts_with_another_word_are_read_in_full(kind: str) -> None:
    """They come from a copy of the encoder, of which the prompt is no longer what all rows share."""
    clip = small_clip(kind)
    [encoder], [apart] = encoders_of(clip), encoders_of(clip)
    apart.reads_together = False
    encoder.memory(1)  # tries how the encoder reads
    found, expected = (changed_prompts(one, one.embedding("the")) for one in (encoder, apart))
    assert encoder._shared(encoder.sections[0])
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    assert len(found.round(decimals=4).unique(dim=0)) > len(found) / 2


@torch.inference_mode()
def test_the_memory_of_a_long_prompt_is_that_of_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rows share is kept once for each sequence, and for one row it is nearly all there is."""
    kept = 0

    @contextmanager
    def counted(fixed: set[int | None]) -> Iterator[None]:
        """As autograd keeps tensors inside `gradients`, whose own hooks are the only ones that are called."""

        def pack(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += 0 if gradient_hook._address(tensor) in fixed else tensor.numel() * tensor.element_size()
            return tensor.clone()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    clip = small_clip("qwen3")
    monkeypatch.setattr(gradient_hook, "_saved_by_value", counted)
    for words, count in ((15, 1), (15, 40), (300, 1), (300, 400)):
        [encoder] = encoders_of(clip, " ".join(["fish"] * words))
        encoder.reference()  # what is measured once
        kept = 0
        with gradients():
            encoder(moved(encoder, count))
        assert 0 < kept < encoder.memory(count)
        assert encoder.memory(count) < 8 * kept
    [encoder] = encoders_of(clip, " ".join(["fish"] * 1100))
    assert encoder._shared(encoder.sections[0]) == 0  # no two rows fit in one sequence
