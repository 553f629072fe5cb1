"""Diverse Conditioning behind every text encode node of ComfyUI that takes more than a text."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

import comfy.ops
import comfy.sample
import pytest
import torch
from comfy.text_encoders.qwen_vl import Qwen2VLVisionTransformer
from comfyui_diversity.nodes.diverse_conditioning import DiverseConditioning
from small import models
from small.families import latent_shape, small_whole
from torch import Tensor

from devtools.comfy_source import release
from devtools.places import HERE
from devtools.released import TESTED

from .test_tpso_nodes import options

TEXT = "a red fish in deep water"
COUNT, STEPS = 2, 3
SIZES = {"width": 64, "height": 64}
XL = {**SIZES, "crop_w": 0, "crop_h": 0, "target_width": 64, "target_height": 64}

# Module, family, and what the node is given besides the CLIP.
NODES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "CLIPTextEncodeFlux": ("nodes_flux", "FLUX.1 dev", {"clip_l": TEXT, "t5xxl": TEXT, "guidance": 3.5}),
    "CLIPTextEncodeSDXL": ("nodes_clip_sdxl", "SDXL", {**XL, "text_g": TEXT, "text_l": TEXT}),
    "CLIPTextEncodeSDXLRefiner": ("nodes_clip_sdxl", "SDXL refiner", {**SIZES, "ascore": 6.0, "text": TEXT}),
    "CLIPTextEncodePixArtAlpha": ("nodes_pixart", "PixArt alpha", {**SIZES, "text": TEXT}),
    "CLIPTextEncodeHiDream": (
        "nodes_hidream", "HiDream-I1", {"clip_l": TEXT, "clip_g": TEXT, "t5xxl": TEXT, "llama": TEXT},
    ),
    "CLIPTextEncodeHunyuanDiT": ("nodes_hunyuan", "HunyuanDiT", {"bert": TEXT, "mt5xl": TEXT}),
    "CLIPTextEncodeLumina2": ("nodes_lumina2", "Lumina 2", {"system_prompt": "superior", "user_prompt": TEXT}),
    "CLIPTextEncodeSD3": (
        "nodes_sd3", "SD3.5", {"clip_l": TEXT, "clip_g": TEXT, "t5xxl": TEXT, "empty_padding": "none"},
    ),
    "CLIPTextEncodeKandinsky5": ("nodes_kandinsky5", "Kandinsky 5", {"clip_l": TEXT, "qwen25_7b": TEXT}),
    "TextEncodeQwenImageEdit": ("nodes_qwen", "Qwen-Image", {"prompt": TEXT}),
    "TextEncodeQwenImageEditPlus": ("nodes_qwen", "Qwen-Image", {"prompt": TEXT}),
    "TextEncodeZImageOmni": ("nodes_zimage", "Z-Image", {"prompt": TEXT}),
    "TextEncodeBooguEdit": ("nodes_boogu", "Boogu", {"prompt": TEXT, "negative_prompt": "", "vae": None}),
    "TextEncodeJoyImageEdit": ("nodes_joyimage", "JoyImage", {"prompt": TEXT}),
    "TextEncodeMageFlowEdit": ("nodes_mage", "MageFlow", {"prompt": TEXT, **SIZES}),
}  # fmt: skip
# Sound; what is given a conditioning; what needs an image's embedding of a vision tower.
OTHERS = (
    "TextEncodeAceStepAudio", "TextEncodeAceStepAudio15", "MiniMaxMusic3TextEncode", "CLIPTextEncodeControlnet",
    "TextEncodeHunyuanVideo_ImageToVideo",
)  # fmt: skip
SLOW = ("CLIPTextEncodeSD3", "CLIPTextEncodeHiDream", "CLIPTextEncodeSDXLRefiner", "CLIPTextEncodePixArtAlpha")


def existing() -> set[str]:
    """The text encode nodes of this ComfyUI, but for the plain one."""
    folder = HERE.comfyui() / "comfy_extras"
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("nodes_*.py"))]
    found = {name for text in texts for name in re.findall(r"^class (\w*TextEncode\w*)\(", text, re.MULTILINE)}
    return {name for name in found if "Loader" not in name}


def test_every_encode_node_is_tried_or_named() -> None:
    assert existing() <= {*NODES, *OTHERS}
    if release(HERE.comfyui()) == TESTED[-1]:
        assert existing() == {*NODES, *OTHERS}


@pytest.mark.parametrize("name", [pytest.param(one, marks=pytest.mark.slow) if one in SLOW else one for one in NODES])
def test_variants_of_what_another_node_made(name: str) -> None:
    module, family, given = NODES[name]
    if name not in existing():
        pytest.skip("this ComfyUI has no such node")
    model, clip = whole(family)
    node = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    with torch.inference_mode():
        conditioning = node.execute(clip, **given).args[0]
        sampled = sampler(model, family, clip)
        plain, found = sampled(conditioning), sampled(varied(conditioning, clip))
    assert torch.isfinite(found).all()
    assert (found - plain).abs().amax(dim=tuple(range(1, found.ndim))).min() > 1e-5
    assert (found[0] - found[1]).abs().max() > 1e-5


def test_beside_an_image_the_words_alone_are_varied() -> None:
    """As Qwen-Image-Edit reads it: a vision tower's tokens stand before the words."""
    _, clip = whole("Qwen-Image")
    with torch.inference_mode():
        tower = Qwen2VLVisionTransformer(
            32, 64, 64, num_heads=2, num_layers=1, dtype=torch.float32, ops=comfy.ops.manual_cast
        )
        models._randomise(tower, 0)
        clip.cond_stage_model.qwen25_7b.transformer.visual = tower
        image = torch.rand(1, 56, 56, 3, generator=torch.Generator().manual_seed(0))
        node = importlib.import_module("comfy_extras.nodes_qwen").TextEncodeQwenImageEditPlus
        [[cond, _]] = given = node.execute(clip, TEXT, image1=image).args[0]
        [[found, _]] = varied(given, clip, "off")
        alone = clip.encode_from_tokens(clip.tokenize(TEXT))
    changed = (found - cond).abs().amax(dim=(0, 2)) > 0
    assert cond.shape[1] > alone.shape[1] + 100  # the image's tokens
    assert changed.any()
    assert not changed[: cond.shape[1] - alone.shape[1]].any()


def whole(family: str) -> tuple[Any, Any]:
    """Whose language model keeps what its tokens are through the layers, as trained ones do; with random weights they
    do not."""
    model, clip = small_whole(family)
    with torch.inference_mode():
        for module in clip.cond_stage_model.modules():
            if hasattr(module, "mlp") and hasattr(module, "self_attn"):  # a layer
                for weight in module.parameters():
                    if weight.ndim == 2:
                        weight.mul_(0.3)
            if hasattr(module, "post_feedforward_layernorm"):  # Gemma's, which norms what a layer adds, by 1 + weight
                for norm in (module.post_attention_layernorm, module.post_feedforward_layernorm):
                    norm.weight.fill_(-0.9)
    return model, clip


def varied(given: list, clip: Any, schedule: str = "linear") -> list:
    more = options(steps=STEPS, schedule=schedule)
    return DiverseConditioning.execute(given, clip, TEXT, COUNT, 0.8, 1.0, 0, more).args[0]


def sampler(model: Any, family: str, clip: Any) -> Callable[[list], Tensor]:
    latent = torch.zeros(COUNT, *latent_shape(family, model))
    noise = comfy.sample.prepare_noise(latent, 0)[:1].expand_as(latent).clone()
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    return lambda positive: comfy.sample.sample(
        model, noise, 2, 1.0, "euler", "simple", positive, negative, latent, seed=0, disable_pbar=True
    )
