"""The demo's Z-Image inside ComfyUI: its encoder knows what prompts say, stock nodes sample it, it does as told."""

from __future__ import annotations

import importlib

import comfy.model_base
import comfy.sd
import comfy.utils
import numpy as np
import pytest
import torch
from comfyui_diversity.core.hooks.text import prompt_encoders
from comfyui_diversity.demo import loader
from comfyui_diversity.demo.scorer import Scorer, satisfies
from comfyui_diversity.demo.turbo import load_turbo, load_turbo_clip
from comfyui_diversity.demo.world.attributes import VALUES, sample_uniform_scene
from comfyui_diversity.demo.world.captions import OPTIONAL, caption
from comfyui_diversity.demo.world.prompts import TUNE_PROMPTS
from torch.nn import functional as F

from benchmarks.tpso_cosines import make_case

FLOOR = 0.6  # of the images that show what their prompt states; one in ten to one in twenty by chance

stock = importlib.import_module("nodes")  # ComfyUI's, not the pack's
sampling = importlib.import_module("comfy_extras.nodes_model_advanced")


@pytest.fixture(scope="module")
def clip() -> comfy.sd.CLIP:
    return load_turbo_clip()


@torch.inference_mode()
def test_every_attribute_can_be_read_off_the_last_token_linearly(clip: comfy.sd.CLIP) -> None:
    """Stated or left open: fitted by least squares on some captions, right on others."""
    rng = np.random.default_rng(3)
    states, stated = [], []
    for _ in range(300):
        scene, names = sample_uniform_scene(rng), {"object", *(name for name in OPTIONAL if rng.random() < 0.5)}
        hidden = clip.encode_from_tokens(clip.tokenize(caption(scene, names - {"object"}, rng)))
        states.append(F.rms_norm(hidden[0, -1], hidden.shape[-1:]))  # as the transformer normalises them
        stated.append({name: getattr(scene, name) for name in names})
    inputs = F.pad(torch.stack(states), (0, 1), value=1.0)
    fit, held_out = slice(0, 220), slice(220, None)
    ridge = inputs[fit].T @ inputs[fit] + 0.1 * torch.eye(inputs.shape[1])
    for name, values in VALUES.items():
        truth = torch.tensor([values.index(one[name]) if name in one else len(values) for one in stated])
        target = F.one_hot(truth, len(values) + 1).float()
        reader = torch.linalg.solve(ridge, inputs[fit].T @ target[fit])
        right = ((inputs[held_out] @ reader).argmax(1) == truth[held_out]).float().mean()
        assert right >= 0.95, name


@torch.inference_mode()
def test_a_paraphrase_is_nearer_than_a_prompt_with_another_word(clip: comfy.sd.CLIP) -> None:
    """By the vector that Diverse Prompts takes for a language model's."""
    rng = np.random.default_rng(4)
    for case in (make_case(rng) for _ in range(2)):
        [own] = prompt_encoders(clip, clip.tokenize(case.text))
        nearness = {
            kind: F.cosine_similarity(prompt_encoders(clip, clip.tokenize(text))[0].reference(), own.reference(), dim=0)
            for kind, text in case.others.items()
        }
        assert max(nearness, key=lambda kind: nearness[kind]) == "paraphrase"
        assert min(nearness, key=lambda kind: nearness[kind]) == "unrelated"
        [section] = own.sections
        tail = [token for token, _ in clip.tokenize(case.text)["qwen3_4b"][0]][slice(*section.summary)]
        assert clip.tokenizer.qwen3_4b.tokenizer.decode(tail) == "<|im_end|>\n<|im_start|>assistant\n"


@torch.inference_mode()
def test_the_prompt_is_read_as_z_image_reads_it(clip: comfy.sd.CLIP) -> None:
    """Chat template around the words, the last layer but one, no padding, and a mask that lets all through."""
    tokens = clip.tokenize("a red house")
    row = [token for token, _ in tokens["qwen3_4b"][0]]
    decoded = clip.tokenizer.qwen3_4b.tokenizer.decode(row)
    assert decoded == "<|im_start|>user\na red house<|im_end|>\n<|im_start|>assistant\n"
    [[hidden, extras]] = clip.encode_from_tokens_scheduled(tokens)
    assert hidden.shape == (1, len(row), 128)
    assert extras["attention_mask"].bool().all()
    model = clip.cond_stage_model.qwen3_4b.transformer.model
    embeds = model.embed_tokens(torch.tensor([row]))
    layers = len(model.layers)
    expected = model(None, embeds=embeds.float(), intermediate_output=layers - 2, final_layer_norm_intermediate=False)
    assert torch.allclose(hidden, expected[1], atol=1e-4)


def test_words_outside_the_captions_share_few_embeddings(clip: comfy.sd.CLIP) -> None:
    table = clip.cond_stage_model.qwen3_4b.transformer.get_input_embeddings().weight
    assert table.shape == (151_936, 128)
    assert torch.equal(table[100_000], table[100_016])
    assert not torch.equal(table[100_000], table[100_001])


@pytest.mark.parametrize("file", [loader.TURBO_FILE, loader.TURBO_BASE_FILE])
def test_it_is_a_z_image_model(file: str) -> None:
    model = load_turbo(file)
    assert isinstance(model.model, comfy.model_base.Lumina2)
    # What the official template sets with ModelSamplingAuraFlow is what the model has.
    patched = sampling.ModelSamplingAuraFlow().patch_aura(model, 3.0)[0]
    sigmas = [one.get_model_object("model_sampling").sigmas for one in (model, patched)]
    assert torch.allclose(*sigmas)


@torch.inference_mode()
def test_turbo_does_as_it_is_told(clip: comfy.sd.CLIP) -> None:
    """By the nodes and settings of the official Z-Image Turbo template."""
    model = sampling.ModelSamplingAuraFlow().patch_aura(load_turbo(loader.TURBO_FILE), 3.0)[0]
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(loader.WEIGHTS / loader.VAE_FILE)))
    told = []
    for seed, prompt in enumerate(TUNE_PROMPTS[:4]):
        positive = stock.CLIPTextEncode().encode(clip, prompt.text)[0]
        negative = stock.ConditioningZeroOut().zero_out(positive)[0]
        start = {"samples": torch.zeros(4, 16, 16, 16)}
        [latent] = stock.KSampler().sample(model, seed, 8, 1.0, "res_multistep", "simple", positive, negative, start)
        images = (255 * vae.decode(latent["samples"])).clamp(0, 255).numpy().astype(np.uint8)
        told += [satisfies(attributes, prompt) for attributes in Scorer.load().read(images)]
    assert np.mean(told) >= FLOOR
