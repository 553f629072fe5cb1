"""Small models of the same families as released ones, whole: diffusion model, text encoder and decoder.

Call `devtools.pack.load_comfyui()` before importing this module.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any
from unittest import mock

import comfy.ldm.chroma.model
import comfy.ops
import comfy.supported_models
import comfy.text_encoders.flux
import comfy.text_encoders.qwen_image
import torch
from comfy.ldm.flux.model import FluxParams
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from . import encoders, models
from .models import CPU, WIDTH

# Of the decoder: channels of the latent, pixels of an image for each of its places.
_SD, _SIXTEEN, _FLUX2 = (4, 8), (16, 8), (128, 16)


class SmallDecoder:
    """Stands for a VAE: each pixel is a fixed mixture of the latent's channels. steepness: above 0 it makes small
    changes of the latent visible, at the price of images that look like noise."""

    def __init__(self, channels: int, factor: int, steepness: float = 0.0) -> None:
        self.factor, self.steepness = factor, steepness
        generator = torch.Generator().manual_seed(0)
        self.mixture = torch.randn(channels, 3, generator=generator) / channels**0.5

    def encode(self, images: Tensor) -> Tensor:
        """`[N, H, W, 3]` to latents `[N, C, H / factor, W / factor]`."""
        means = nn.functional.avg_pool2d(images.movedim(-1, 1).float(), self.factor)
        return torch.einsum("nrhw,cr->nchw", 2 * means - 1, self.mixture)

    def decode(self, latent: Tensor) -> Tensor:
        """`[N, C, H, W]`, or with a time of 1 before H, to images `[N, H, W, 3]` in 0 to 1."""
        flat = latent.squeeze(2) if latent.ndim == 5 else latent
        mixed = torch.einsum("nchw,cr->nhwr", flat.float(), self.mixture)
        images = 0.5 + 0.5 * torch.sin(self.steepness * mixed) if self.steepness else torch.sigmoid(mixed)
        return images.repeat_interleave(self.factor, 1).repeat_interleave(self.factor, 2)


# Of Lumina 2's class, which Z-Image and NewBie have, too.
LUMINA: dict[str, Any] = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 256,  # the least that its time embedding fits
    "cap_feat_dim": WIDTH,
    "n_layers": 2,
    "qk_norm": True,
    "n_heads": 2,
    "axes_dims": [32, 48, 48],
    "axes_lens": [300, 512, 512],
}


def _checked(clip: Any) -> Any:
    """Its weights drawn, its vision tower (hundreds of millions of weights that no text reaches) gone."""
    for module in list(clip.cond_stage_model.modules()):
        if hasattr(module, "visual"):
            module.visual = nn.Module()
    encoders._randomise(clip.cond_stage_model, 0)
    return clip


def _encoder(model: Any, tokenizer: Any, sizes: dict[str, Any], data: dict[str, Any] | None = None) -> Any:
    """A CLIP, see `encoders.empty_encoder`, with random weights."""
    return _checked(encoders.empty_encoder(model, tokenizer, sizes, data))


def _model(config: str, sizes: dict[str, Any]) -> ModelPatcher:
    network = models._supported(getattr(comfy.supported_models, config), sizes)
    models._randomise(network.diffusion_model, 0)
    return ModelPatcher(network, load_device=CPU, offload_device=CPU)


def _qwen(layers: int) -> dict[str, Any]:
    return {**encoders._QWEN, "num_hidden_layers": layers}


def _sd35() -> tuple[Any, Any]:
    encoder = encoders.empty_encoder(*encoders._KINDS["sd3"]())
    # Its T5 must be as wide as the released one: most of half a gigabyte are token embeddings. Drawing them takes
    # seconds, repeating some of them does not.
    table = encoder.cond_stage_model.t5xxl.transformer.shared
    width = table.weight.shape[1]
    some = torch.randn(997, width, generator=torch.Generator().manual_seed(1)) * 0.08
    rows = table.weight.shape[0]
    table.weight = nn.Parameter(torch.empty(0), requires_grad=False)  # else they would be drawn after all
    encoders._randomise(encoder.cond_stage_model, 0)
    table.weight = nn.Parameter(some[torch.arange(rows) % len(some)], requires_grad=False)
    return models.small_sd35(width, 64 + 96), encoder


def _flux(guidance: bool) -> tuple[Any, Any]:
    return models.small_flux(guidance), encoders.small_encoder("flux")


def _flux2(guidance: bool) -> Any:
    sizes = {
        "image_model": "flux2",
        "in_channels": 128,
        "out_channels": 128,
        "hidden_size": 64,
        "num_heads": 2,
        "axes_dim": [8, 8, 8, 8],
        "context_in_dim": 3 * WIDTH,
        "vec_in_dim": None,
        "depth": 1,
        "depth_single_blocks": 1,
        "mlp_ratio": 3.0,
        "theta": 2000,
        "patch_size": 1,
        "qkv_bias": False,
        "guidance_embed": guidance,
        "global_modulation": True,
        "mlp_silu_act": True,
        "ops_bias": False,
        "default_ref_method": "index",
        "ref_index_scale": 10.0,
        "txt_ids_dims": [3],
    }
    known = {field.name for field in fields(FluxParams)} | {"image_model"}
    return _model("Flux2", {name: value for name, value in sizes.items() if name in known})


def _tekken() -> dict[str, Any]:
    """A tokenizer file of Mistral's kind, in which every byte is a token."""
    special = [{"rank": k, "token_str": text} for k, text in enumerate(_MARKS)]
    vocab = [{"rank": k, "token_bytes": base64.b64encode(bytes([k])).decode()} for k in range(256)]
    count = len(special) + len(vocab)
    config = {"default_vocab_size": count, "default_num_special_tokens": len(special)}
    text = json.dumps({"config": config, "special_tokens": special, "vocab": vocab})
    return {"tekken_model": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}


_MARKS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<{k}>" for k in range(5, 11)), "<pad>"]
_MARKS += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]


def _three_layers(name: str, clip_model: Any) -> Callable[..., Any]:
    """FLUX.2's way with a text encoder, which reads three of its layers: here the first ones, and there are no more."""
    layers = functools.partial(clip_model, layer=[0, 1, 2])
    return functools.partial(comfy.text_encoders.flux.Flux2TEModel, name=name, clip_model=layers)


def _flux2_dev() -> tuple[Any, Any]:
    flux, name = comfy.text_encoders.flux, "mistral3_24b"
    encoder = encoders.empty_encoder(
        _three_layers(name, flux.Mistral3_24BModel), flux.Flux2Tokenizer, {f"{name}_model_config": _qwen(3)}, _tekken()
    )
    return _flux2(True), _checked(encoder)


def _klein() -> tuple[Any, Any]:
    flux, name = comfy.text_encoders.flux, "qwen3_4b"
    encoder = encoders.empty_encoder(
        _three_layers(name, flux.Qwen3_4BModel), flux.KleinTokenizer, {f"{name}_model_config": _qwen(3)}
    )
    return _flux2(False), _checked(encoder)


def _qwen_image() -> tuple[Any, Any]:
    sizes = {
        "image_model": "qwen_image",
        "in_channels": 64,
        "num_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "axes_dims_rope": (8, 12, 12),
    }
    text = comfy.text_encoders.qwen_image
    encoder = encoders.empty_encoder(text.te(), text.QwenImageTokenizer, {"qwen25_7b_model_config": _qwen(3)})
    return _model("QwenImage", sizes), _checked(encoder)


def _z_image() -> tuple[Any, Any]:
    sizes = {
        **LUMINA,
        "n_kv_heads": 2,
        "rope_theta": 256.0,
        "ffn_dim_multiplier": 8 / 3,
        "z_image_modulation": True,
        "time_scale": 1000.0,
        "pad_tokens_multiple": 32,
    }
    return _model("ZImage", sizes), encoders.small_encoder("qwen3")


def _chroma() -> tuple[Any, Any]:
    sizes = {
        "image_model": "chroma",
        "in_channels": 64,
        "out_channels": 64,
        "context_in_dim": WIDTH,
        "hidden_size": 64,
        "num_heads": 2,
        "mlp_ratio": 4.0,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [8, 12, 12],
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "in_dim": 64,
        "out_dim": 64,
        "hidden_dim": 64,
        "n_layers": 2,
        "txt_ids_dims": [],
        "vec_in_dim": None,
    }
    known = {field.name for field in fields(comfy.ldm.chroma.model.ChromaParams)} | {"image_model"}
    sizes = {name: value for name, value in sizes.items() if name in known}
    return _model("Chroma", sizes), encoders.small_encoder("t5")


def _krea2() -> tuple[Any, Any]:
    from comfy.text_encoders import krea2

    sizes = {
        "image_model": "krea2",
        "features": 64,
        "heads": 2,
        "kvheads": 1,
        "layers": 2,
        "patch": 2,
        "channels": 16,
        "txtlayers": 12,
        "txtdim": WIDTH,
        "txtheads": 2,
        "txtkvheads": 2,
    }
    # The twelve layers that it reads of thirty-six: here there are no others.
    with mock.patch.object(krea2, "KREA2_TAP_LAYERS", list(range(12))):
        encoder = encoders.empty_encoder(krea2.te(), krea2.Krea2Tokenizer, {"qwen3vl_4b_model_config": _qwen(12)})
    return _model("Krea2", sizes), _checked(encoder)


def _cosmos_sizes(image_model: str) -> dict[str, Any]:
    """Of a network of the Cosmos Predict 2 kind."""
    return {
        "image_model": image_model,
        "max_img_h": 240,
        "max_img_w": 240,
        "max_frames": 128,
        "in_channels": 16,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "model_channels": 64,
        "concat_padding_mask": True,
        "crossattn_emb_channels": WIDTH,
        "pos_emb_cls": "rope3d",
        "pos_emb_learnable": True,
        "pos_emb_interpolation": "crop",
        "min_fps": 1,
        "max_fps": 30,
        "use_adaln_lora": True,
        "adaln_lora_dim": 16,
        "num_blocks": 2,
        "num_heads": 2,
        "extra_per_block_abs_pos_emb": False,
        "rope_h_extrapolation_ratio": 4.0,
        "rope_w_extrapolation_ratio": 4.0,
        "rope_t_extrapolation_ratio": 1.0,
    }


def _anima() -> tuple[Any, Any]:
    from comfy.ldm.anima.model import LLMAdapter
    from comfy.text_encoders import anima

    sizes = _cosmos_sizes("anima")
    network = models._supported(comfy.supported_models.Anima, sizes)
    small = {"source_dim": WIDTH, "target_dim": WIDTH, "model_dim": WIDTH, "num_layers": 1, "num_heads": 2}
    # Its own is a hundred million weights, whatever the sizes above.
    network.diffusion_model.llm_adapter = LLMAdapter(
        **small, dtype=torch.float32, device=CPU, operations=comfy.ops.manual_cast
    )
    models._randomise(network.diffusion_model, 0)
    encoder = encoders.empty_encoder(anima.te(), anima.AnimaTokenizer, {"qwen3_06b_model_config": _qwen(3)})
    return ModelPatcher(network, load_device=CPU, offload_device=CPU), _checked(encoder)


_WHOLE: dict[str, tuple[Callable[[], tuple[Any, Any]], tuple[int, int]]] = {
    "SD1.5": (lambda: (models.small_model("eps"), encoders.small_encoder("sd1")), _SD),
    "SDXL": (lambda: (models.small_sdxl(), encoders.small_encoder("sdxl")), _SD),
    "SD3.5 Large": (_sd35, _SIXTEEN),
    "FLUX.1 dev": (lambda: _flux(True), _SIXTEEN),
    "FLUX.1 schnell": (lambda: _flux(False), _SIXTEEN),
    "FLUX.2 dev": (_flux2_dev, _FLUX2),
    "FLUX.2 Klein 4B": (_klein, _FLUX2),
    "Qwen-Image 2512": (_qwen_image, _SIXTEEN),
    "Z-Image Turbo": (_z_image, _SIXTEEN),
    "Krea 2 Turbo": (_krea2, _SIXTEEN),
    "Chroma1 HD": (_chroma, _SIXTEEN),
    "Anima": (_anima, _SIXTEEN),
}
SAME = {"SDXL-Lightning": "SDXL", "FLUX.2 Klein 4B Base": "FLUX.2 Klein 4B"}


def small_released(title: str) -> tuple[ModelPatcher, Any, SmallDecoder]:
    """Diffusion model, text encoder and decoder of the family of `devtools.released.Released.title`."""
    with torch.inference_mode():
        model, clip = _WHOLE[SAME.get(title, title)][0]()
    return model, clip, small_decoder(title)


def small_decoder(title: str) -> SmallDecoder:
    """The decoder alone, which needs nothing of the family's own code."""
    return SmallDecoder(*_WHOLE[SAME.get(title, title)][1])
