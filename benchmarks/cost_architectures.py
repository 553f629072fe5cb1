"""Diffusion models and text encoders of the size that people run, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .minority_memory import SD15, full_unet  # isort: skip - this makes ComfyUI and the pack importable

import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.z_image
import torch
from comfy.model_patcher import ModelPatcher
from comfyui_diversity.core.hooks.gradients import with_differentiable_attention
from torch import nn

from .tpso_speed import full_clip_l

_SDXL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 1, 1, 1, 1],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1], "transformer_depth_middle": 1,
    "use_spatial_transformer": True, "use_linear_in_transformer": True, "context_dim": 2048, "num_head_channels": 64,
    "num_heads": -1, "num_classes": "sequential", "adm_in_channels": 2816, "legacy": False, "use_checkpoint": False,
    "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
_Z_IMAGE = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 2,
    "n_refiner_layers": 1, "qk_norm": True, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True,
    "time_scale": 1000.0,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A diffusion model and the encoder of its prompts (None: prompts are random embeddings)."""

    name: str
    model: ModelPatcher
    clip: Any
    cfg: float
    width: int
    pooled: int = 0


@torch.inference_mode()
def _built(config: Any) -> ModelPatcher:
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    randomised(model.diffusion_model)
    device = torch.device("cpu")
    patcher = ModelPatcher(model, load_device=device, offload_device=device)
    patcher.model_options = with_differentiable_attention(patcher.model_options)
    return patcher


@torch.no_grad()
def randomised(module: nn.Module) -> None:
    """Normal weights, as large as keeps activations at about one; norms at 1 and biases at 0."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def qwen3(layers: int = 3) -> comfy.sd.CLIP:
    """Z-Image's text encoder, Qwen3-4B, with so many of its 36 layers: 3 or more, since the last but one is read."""
    target = comfy.supported_models_base.ClipTarget(
        comfy.text_encoders.z_image.ZImageTokenizer, comfy.text_encoders.z_image.te()
    )
    sizes = {"qwen3_4b_model_config": {"num_hidden_layers": layers}}
    clip = comfy.sd.CLIP(target, model_options={**sizes, "dtype": torch.float32})
    randomised(clip.cond_stage_model)
    return clip


def sd15() -> Architecture:
    return Architecture("SD1.5", full_unet(), full_clip_l(), 7.0, 768)


def tiny() -> Architecture:
    """SD1.5 with one block of 32 channels, whose steps take next to no time themselves."""
    sizes = {
        "model_channels": 32, "num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [1],
        "transformer_depth_output": [1, 1], "num_heads": 1,
    }  # fmt: skip
    model = _built(comfy.supported_models.SD15({**SD15, **sizes}))
    return Architecture("SD1.5, one block of 32 channels", model, full_clip_l(), 7.0, 768)


def sdxl() -> Architecture:
    model = _built(comfy.supported_models.SDXL(dict(_SDXL)))
    return Architecture("SDXL, 1 transformer layer for 2 and 10", model, None, 7.0, 2048, 1280)


def z_image() -> Architecture:
    model = _built(comfy.supported_models.ZImage(dict(_Z_IMAGE)))
    return Architecture("Z-Image, 2 of 30 layers, with 3 of Qwen3-4B's 36", model, qwen3(), 1.0, 2560)


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {"SD1.5": sd15, "SDXL": sdxl, "Z-Image": z_image}
