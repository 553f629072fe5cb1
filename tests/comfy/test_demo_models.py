"""The demo models inside ComfyUI: read by the right classes, equal to what was trained, fit for their purpose."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import comfy.model_base
import comfy.sample
import comfy.sd
import comfy.utils
import numpy as np
import pytest
import torch
from comfyui_diversity.demo import architectures, loader
from comfyui_diversity.demo.scorer import Scorer
from comfyui_diversity.demo.world.attributes import VALUES, sample_scene, sample_uniform_scene
from comfyui_diversity.demo.world.captions import OPTIONAL, caption
from comfyui_diversity.demo.world.draw import draw
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

WEIGHTS = loader.WEIGHTS
stock = importlib.import_module("nodes")  # ComfyUI's, not the pack's


@pytest.fixture(scope="module")
def clip() -> comfy.sd.CLIP:
    return loader.load_clip()


@pytest.fixture(scope="module")
def scenes_and_images() -> tuple[list, np.ndarray]:
    rng = np.random.default_rng(4711)
    scenes = [sample_scene(rng) for _ in range(64)]
    return scenes, np.stack([draw(scene, rng) for scene in scenes])


def test_text_tower_equals_the_trained_one(clip: comfy.sd.CLIP) -> None:
    stored = comfy.utils.load_torch_file(str(WEIGHTS / loader.CLIP_FILE), safe_load=True)
    text = {name.removeprefix("text."): value.float() for name, value in stored.items() if name.startswith("text.")}
    ids = text.pop("token_embedding.ids").long().tolist()
    text["text_model.embeddings.token_embedding.weight"] = text.pop("token_embedding.rows")
    end = ids.index(49407)
    config = CLIPTextConfig(
        **{**architectures.TEXT, "vocab_size": len(ids), "eos_token_id": end, "bos_token_id": 0, "pad_token_id": end}
    )
    reference = CLIPTextModelWithProjection(config).eval()
    reference.load_state_dict(text)
    tokens = [token for token, _ in clip.tokenize("a small orange star on a navy background")["l"][0]]
    with torch.no_grad():
        expected = reference(torch.tensor([[ids.index(token) for token in tokens]]))
    hidden, pooled = clip.encode_from_tokens(
        clip.tokenize("a small orange star on a navy background"), return_pooled=True
    )
    assert torch.allclose(hidden, expected.last_hidden_state, atol=1e-3)
    assert torch.allclose(pooled, expected.text_embeds, atol=1e-3)


def test_vision_tower_equals_the_trained_one(scenes_and_images) -> None:
    stored = comfy.utils.load_torch_file(str(WEIGHTS / loader.CLIP_FILE), safe_load=True)
    vision = {name.removeprefix("vision."): v.float() for name, v in stored.items() if name.startswith("vision.")}
    reference = CLIPVisionModelWithProjection(CLIPVisionConfig(**architectures.VISION)).eval()
    reference.load_state_dict(vision)
    images = torch.from_numpy(scenes_and_images[1][:4]).float() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    with torch.no_grad():
        expected = reference(((images - mean) / std).movedim(-1, 1)).image_embeds
    found = loader.load_clip_vision().encode_image(images)["image_embeds"]
    assert torch.allclose(found, expected, atol=5e-3)


def test_images_find_their_captions(clip: comfy.sd.CLIP, scenes_and_images) -> None:
    scenes, images = scenes_and_images
    captions = sorted({caption(scene, OPTIONAL) for scene in scenes})
    texts = torch.cat([clip.encode_from_tokens(clip.tokenize(t), return_pooled=True)[1] for t in captions])
    images = loader.load_clip_vision().encode_image(torch.from_numpy(images).float() / 255)["image_embeds"]
    similarity = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    right = [captions.index(caption(scene, OPTIONAL)) for scene in scenes]
    top3 = similarity.topk(3, dim=1).indices
    assert (top3 == torch.tensor(right)[:, None]).any(1).float().mean() >= 0.9


@pytest.fixture(scope="module")
def scenes_and_embeddings() -> tuple[list, torch.Tensor]:
    rng = np.random.default_rng(77)
    scenes = [sample_uniform_scene(rng) for _ in range(40)]
    images = torch.from_numpy(np.stack([draw(scene, rng) for scene in scenes])).float() / 255
    found = loader.load_clip_vision().encode_image(images)["image_embeds"]
    return scenes, torch.nn.functional.normalize(found, dim=1)


@pytest.mark.parametrize("attribute", OPTIONAL)
def test_the_caption_with_the_right_word_is_nearest(
    clip: comfy.sd.CLIP, attribute: str, scenes_and_embeddings: tuple[list, torch.Tensor]
) -> None:
    """Of captions that differ in one attribute's word alone, a fresh image is nearest to its own."""
    scenes, found = scenes_and_embeddings
    known: dict[str, torch.Tensor] = {}
    right = 0
    for scene, embedding in zip(scenes, found, strict=True):
        similarity = {}
        for value in VALUES[attribute]:
            text = caption(replace(scene, **{attribute: value}), OPTIONAL)
            if text not in known:
                pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)[1][0]
                known[text] = torch.nn.functional.normalize(pooled.float(), dim=0)
            similarity[value] = (known[text] @ embedding.float()).item()
        right += max(similarity, key=lambda value: similarity[value]) == getattr(scene, attribute)
    assert right >= 0.9 * len(scenes)


def test_words_outside_the_vocabulary_are_the_average_word(clip: comfy.sd.CLIP) -> None:
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    assert table.shape == (architectures.VOCABULARY, 128)
    unknown = clip.tokenize("zeppelin")["l"][0][1][0]
    known = clip.tokenize("heart")["l"][0][1][0]
    assert torch.equal(table[unknown], table[100])
    assert not torch.equal(table[known], table[unknown])


@pytest.mark.parametrize("name", [loader.MMDIT_FILE, loader.DISTILLED_FILE])
def test_stock_loader_detects_the_mmdit(name: str) -> None:
    model = comfy.sd.load_diffusion_model(str(WEIGHTS / name))
    assert type(model.model) is comfy.model_base.SD3
    assert model.model.latent_format.latent_channels == architectures.LATENT_CHANNELS


def test_stock_loader_reads_the_vae(scenes_and_images) -> None:
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(WEIGHTS / loader.VAE_FILE)))
    images = torch.from_numpy(scenes_and_images[1][:16]).float() / 255
    with torch.inference_mode():
        latents = vae.encode(images)
        decoded = vae.decode(latents)
    assert latents.shape == (16, 16, 16, 16)
    model_latents = (latents - architectures.VAE_SHIFT) * architectures.VAE_SCALE
    assert model_latents.std().item() == pytest.approx(1.0, abs=0.15)
    assert (decoded - images).abs().mean() < 0.02


def test_damaged_and_missing_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match=r"diversity_demo_unet\.safetensors is missing"):
        loader.load_unet()
    (tmp_path / loader.UNET_FILE).write_bytes((WEIGHTS / loader.UNET_FILE).read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read"):
        loader.load_unet()


def test_the_unclip_model_draws_what_an_image_shows() -> None:
    """The embedding of a fresh image, on an empty prompt, leads to the image's attributes again."""
    rng = np.random.default_rng(815)
    scenes = [sample_uniform_scene(rng) for _ in range(6)]
    images = torch.from_numpy(np.stack([draw(scene, rng) for scene in scenes])).float() / 255
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(WEIGHTS / loader.VAE_FILE)))
    model, vision, start = loader.load_unclip(), loader.load_clip_vision(), torch.zeros(1, 16, 16, 16)
    clip = loader.load_clip()
    empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    drawn = []
    with torch.inference_mode():
        for k in range(len(scenes)):
            told = stock.unCLIPConditioning().apply_adm(empty, vision.encode_image(images[k : k + 1]), 1.0, 0.0)[0]
            noise = comfy.sample.prepare_noise(start, k)
            latent = comfy.sample.sample(
                model, noise, 10, 3.0, "euler", "normal", told, empty, start, seed=k, disable_pbar=True
            )
            drawn.append((255 * vae.decode(latent)).clamp(0, 255).numpy().astype(np.uint8))
    read = Scorer.load().read(np.concatenate(drawn))
    right = [found[name] == getattr(scene, name) for found, scene in zip(read, scenes, strict=True) for name in VALUES]
    assert np.mean(right) >= 0.9  # 1 in 4 to 1 in 5 by chance


def test_the_unclip_file_holds_only_what_the_unet_lacks() -> None:
    unet = loader.read(loader.UNET_FILE)
    learned = comfy.utils.load_torch_file(str(WEIGHTS / loader.UNCLIP_FILE), safe_load=True)
    same = [name for name, value in learned.items() if name in unet and torch.equal(value, unet[name])]
    assert not same
    assert any(name not in unet for name in learned)
