"""Tokens through ComfyUI's own vision towers: gradients, complete outputs, and which towers and texts fit."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import comfy.clip_vision
import comfy.model_management
import pytest
import torch
from comfyui_diversity.core.drivers.ovi import CONSTRAINTS, conditioning_targets, invert_text, text_target
from comfyui_diversity.core.hooks import vision as tower_hook
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.prompt import text_encoders
from comfyui_diversity.core.hooks.vision import VisionTower
from comfyui_diversity.core.methods.image_bank import ImageBank
from comfyui_diversity.core.methods.ovi import Settings, initial_tokens
from comfyui_diversity.demo import loader
from small.encoders import small_encoder
from small.models import WIDTH
from small.vision import small_vision
from torch import Tensor
from torch.nn import functional as F

FIELDS = ("image_embeds", "last_hidden_state", "penultimate_hidden_states")


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(vision: Any, before: dict[str, Tensor]) -> None:
    after = vision.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in vision.model.parameters())
    assert all("forward" not in vars(module) for module in vision.model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vision.model.modules())


def random_images(count: int, size: int = 40, seed: int = 0) -> Tensor:
    return torch.rand(count, size, size, 3, generator=torch.Generator().manual_seed(seed))


def make_bank(tower: VisionTower, count: int = 6) -> ImageBank:
    embeddings = tower.encode_images(random_images(count), True)
    return ImageBank(embeddings, tower.negative.image_embeds[0].cpu())


@pytest.fixture(autouse=True)
def as_nodes_run() -> Iterator[None]:
    with torch.inference_mode():
        yield


# --- the tower -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param("small", marks=pytest.mark.fast), "demo"])
def test_gradients_agree_with_finite_differences(name: str) -> None:
    vision = small_vision() if name == "small" else loader.load_clip_vision()
    before = weights_of(vision.model)
    tower = VisionTower(vision)
    with gradients():
        tokens = 0.5 * initial_tokens(2, 3, tower.token_width, 0) / 0.02
        embeddings, pull_back = tower(tokens)
        weight = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(5))
        gradient = pull_back(weight)
        direction = F.normalize(gradient.flatten(), dim=0).view_as(gradient)
        step = 3e-3
        ahead = (tower(tokens + step * direction)[0].double() * weight).sum()
        back = (tower(tokens - step * direction)[0].double() * weight).sum()
    slope = ((ahead - back) / (2 * step)).item()
    assert gradient.norm().item() > 0
    assert slope == pytest.approx(gradient.norm().item(), rel=0.02)
    assert_untouched(vision, before)


@pytest.mark.parametrize("llava", [False, True])
def test_an_images_own_patches_give_encode_images_output(llava: bool) -> None:
    vision = small_vision(projector_type="llava3" if llava else None)
    tower = VisionTower(vision)
    image = random_images(1, size=61)
    stock = vision.encode_image(image)
    pixels = comfy.clip_vision.clip_preprocess(image, size=vision.image_size)
    patches = vision.model.vision_model.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    output = tower.output(patches[0])
    assert set(vars(output)) == set(vars(stock))
    for name in FIELDS:
        assert torch.allclose(output[name], stock[name], atol=1e-5), name
    if llava:
        assert torch.allclose(output.mm_projected, stock.mm_projected, atol=1e-4)
    else:
        assert output.mm_projected is None
    with gradients():
        embeddings, _ = tower(patches.clone())
    assert torch.allclose(embeddings, stock.image_embeds, atol=1e-5)


def test_tokens_are_repeated_nearest() -> None:
    tower = VisionTower(small_vision())
    tokens = torch.randn(3, tower.token_width, generator=torch.Generator().manual_seed(1))
    spread = torch.stack([tokens[k * 3 // 25] for k in range(25)])
    assert torch.allclose(tower.output(tokens).image_embeds, tower.output(spread).image_embeds, atol=1e-6)


def test_the_negative_is_that_of_a_zero_input() -> None:
    vision = small_vision()
    before = weights_of(vision.model)
    negative = VisionTower(vision).negative
    last, penultimate, projected, _ = vision.model(pixel_values=torch.zeros(1, 3, 40, 40), intermediate_output=-2)
    assert torch.equal(negative.image_embeds, projected)
    assert torch.equal(negative.last_hidden_state, last)
    assert torch.equal(negative.penultimate_hidden_states, penultimate)
    assert_untouched(vision, before)


def test_large_towers_compute_their_layers_again_to_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    vision = small_vision()
    before = weights_of(vision.model)
    tower = VisionTower(vision)
    found, needed = [], []
    for large in (2**28, 0):
        monkeypatch.setattr(tower_hook, "_LARGE", large)
        needed.append(tower.memory(1))
        with gradients():
            embeddings, pull_back = tower(initial_tokens(2, 3, tower.token_width, 0))
            found.append((embeddings, pull_back(torch.ones_like(embeddings))))
    assert needed[1] < needed[0]
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
    assert found[1][1].abs().max() > 0
    assert_untouched(vision, before)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    target = text_target(small_encoder("sd1"), "a red fish", WIDTH)
    found = []
    for chunk in (5, 2):
        monkeypatch.setattr(VisionTower, "_chunk_for", lambda self, count, chunk=chunk: min(count, chunk))
        tower = VisionTower(small_vision())
        outcome = invert_text(tower, target, 5, 3, 0, Settings(steps=20))
        found.append(torch.cat([output.image_embeds for output in outcome.outputs]))
    assert torch.allclose(found[1], found[0], atol=2e-3 * found[0].abs().max().item())


def test_running_out_of_memory_halves_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    class OutOfMemory(Exception):
        pass

    monkeypatch.setattr(comfy.model_management, "OOM_EXCEPTION", OutOfMemory)
    tower = VisionTower(small_vision())
    whole = VisionTower._vectors

    def vectors(self: VisionTower, tokens: Tensor) -> Tensor:
        if len(tokens) > 2:
            raise OutOfMemory
        return whole(self, tokens)

    with gradients():
        tokens = initial_tokens(4, 3, tower.token_width, 0)
        embeddings, pull_back = tower(tokens)
        gradient = pull_back(torch.ones_like(embeddings))
        monkeypatch.setattr(VisionTower, "_vectors", vectors)
        again, pull_back = tower(tokens)
        assert torch.allclose(again, embeddings, atol=1e-5)
        assert torch.allclose(pull_back(torch.ones_like(embeddings)), gradient, atol=1e-4)
    assert tower.chunk == 2


def test_towers_that_no_text_can_lead() -> None:
    with pytest.raises(ValueError, match=r"clip_vision is SigLIP's.*Pairs that work"):
        VisionTower(small_vision(model_type="siglip_vision_model", projection_dim=None))
    with pytest.raises(ValueError, match=r"has no projection to the space of texts"):
        VisionTower(small_vision(projection_dim=None))
    with pytest.raises(ValueError, match="clip_vision is empty"):
        VisionTower(None)
    dino = SimpleNamespace(model=comfy.clip_vision.IMAGE_ENCODERS["dinov2"].__new__(torch.nn.Module))
    with pytest.raises(ValueError, match="DINO"):
        VisionTower(dino)
    unloaded = small_vision()
    unloaded.model.visual_projection.weight.zero_()
    with pytest.raises(ValueError, match="was never loaded: its file holds none"):
        VisionTower(unloaded)


# --- the text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "width", "name"), [("sd1", 64, "clip_l"), ("sdxl", 96, "clip_g"), ("sd2", 64, "")])
def test_the_encoder_of_the_towers_width(kind: str, width: int, name: str) -> None:
    target = text_target(small_encoder(kind), "a red fish", width)
    assert target.vectors.shape == (1, width)
    assert name in target.source
    if kind == "sdxl":
        clip = small_encoder(kind)
        stock = clip.encode_from_tokens(clip.tokenize("a red fish"), return_pooled=True)[1]
        assert torch.allclose(target.vectors, stock, atol=1e-4)


def test_pairs_that_do_not_work() -> None:
    with pytest.raises(ValueError, match=r"not of one CLIP: .* 80 wide, .*clip_g: 96, clip_l: 64.*Pairs that work"):
        text_target(small_encoder("sdxl"), "a fish", 80)
    with pytest.raises(ValueError, match="no text encoder of the CLIP kind"):
        text_target(small_encoder("t5"), "a fish", 64)
    with pytest.raises(ValueError, match="clip is empty"):
        text_target(None, "a fish", 64)
    clip = small_encoder("sd1")
    text_encoders(clip)["clip_l"].transformer.text_projection.weight.zero_()
    with pytest.raises(ValueError, match=r"never loaded: SD1\.5 and SDXL checkpoints hold none.*stand-alone clip_l"):
        text_target(clip, "a fish", 64)


def test_a_long_text_is_read_whole() -> None:
    clip = small_encoder("sd1")
    long = text_target(clip, "a red fish in deep blue water, " * 15, 64)
    assert "mean of" in long.source
    other = text_target(clip, "a red fish in deep blue water, " * 14 + "two trees", 64)
    assert F.cosine_similarity(long.vectors, other.vectors).item() < 0.9999


def test_prompts_rows_are_targets() -> None:
    """Projected where the conditioning's own are not."""
    for kind, width in (("sdxl", 96), ("sd1", 64)):
        clip = small_encoder(kind)
        plain = clip.encode_from_tokens_scheduled(clip.tokenize("a red fish"))
        other = clip.encode_from_tokens_scheduled(clip.tokenize("two trees"))
        both = conditioning_targets(clip, "a red fish", [*plain, *other], width)
        assert torch.allclose(both.vectors[:1], text_target(clip, "a red fish", width).vectors, atol=1e-3)
        assert torch.allclose(both.vectors[1:], text_target(clip, "two trees", width).vectors, atol=1e-3)
    clip = small_encoder("sdxl")
    plain = clip.encode_from_tokens_scheduled(clip.tokenize("a red fish"))
    with pytest.raises(ValueError, match="96 wide, the embeddings of clip_vision 64"):
        conditioning_targets(clip, "a red fish", plain, 64)
    with pytest.raises(ValueError, match="prompts has no pooled vectors"):
        conditioning_targets(clip, "a red fish", [[plain[0][0], {}]], 96)


# --- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constraint", [name for name in CONSTRAINTS if name != "off"])
def test_constraints_hold_it_near_the_bank(constraint: str) -> None:
    tower = VisionTower(small_vision())
    bank = make_bank(tower)
    target = text_target(small_encoder("sd1"), "a red fish", WIDTH)
    free = invert_text(tower, target, 2, 5, 0, Settings(steps=40), constraint, 0.0, bank)
    held = invert_text(tower, target, 2, 5, 0, Settings(steps=40), constraint, 5.0, bank)
    assert (held.inversion.distances[1] < free.inversion.distances[1]).all()
    assert (held.cosines < free.cosines).all()


def test_banks_that_do_not_fit() -> None:
    tower = VisionTower(small_vision())
    target = text_target(small_encoder("sd1"), "a red fish", WIDTH)
    with pytest.raises(ValueError, match="'nearest neighbour', which needs a bank"):
        invert_text(tower, target, 1, 5, 0, Settings(), "nearest neighbour")
    with pytest.raises(ValueError, match="constraint is 'both'"):
        invert_text(tower, target, 1, 5, 0, Settings(), "both")
    with pytest.raises(ValueError, match="tokens is 26; it must be 1 to 25"):
        invert_text(tower, target, 1, 26, 0, Settings())
    other = make_bank(VisionTower(small_vision(seed=9)))
    with pytest.raises(ValueError, match="another vision tower of the same width"):
        invert_text(tower, target, 1, 5, 0, Settings(), "off", 1.0, other)
    wide = make_bank(VisionTower(small_vision(projection_dim=80)))
    with pytest.raises(ValueError, match="80 wide, those of clip_vision 64"):
        invert_text(tower, target, 1, 5, 0, Settings(), "off", 1.0, wide)


def test_nothing_is_left_behind_by_an_error_or_cancel() -> None:
    vision = small_vision()
    before = weights_of(vision.model)
    tower = VisionTower(vision)
    target = text_target(small_encoder("sd1"), "a red fish", WIDTH)

    def cancel(cosines: Tensor, left: int) -> None:
        raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        invert_text(tower, target, 1, 5, 0, Settings(steps=5), after_step=cancel)
    assert_untouched(vision, before)
    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            invert_text(tower, target, 1, 5, 0, Settings(steps=5))  # in the middle of the tower
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert_untouched(vision, before)
    assert torch.is_inference_mode_enabled()
    invert_text(tower, target, 1, 5, 0, Settings(steps=2))
    assert_untouched(vision, before)
