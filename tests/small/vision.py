"""Small CLIP vision towers and models that read image embeddings, from ComfyUI's own classes, with random weights.

Call `devtools.pack.load_comfyui()` before importing this module.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_base
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from torch import nn

from .models import CPU, WIDTH, _randomise

SIZES: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "hidden_act": "quick_gelu",
    "image_size": 40,
    "patch_size": 8,
    "num_channels": 3,
    "projection_dim": WIDTH,
}


def small_vision(inference: bool = True, seed: int = 0, **changed: Any) -> comfy.clip_vision.ClipVisionModel:
    """A tower of 5 x 5 patches; `changed` takes the place of what is in `SIZES`, None leaves it out.

    inference: its weights are inference tensors, as ComfyUI's loader nodes make them.
    """
    sizes = {name: value for name, value in {**SIZES, **changed}.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(inference):
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(sizes), encoding="utf-8")
        vision = comfy.clip_vision.ClipVisionModel(str(file))
        _randomise_tower(vision.model, seed)
    return vision


def small_unclip(width: int = WIDTH, inference: bool = True, seed: int = 0) -> ModelPatcher:
    """A UNet that reads image embeddings of this width as SD2.1 unCLIP does; latents of 4 x 16 x 16."""

    class Config(comfy.supported_models_base.BASE):
        unet_extra_config = {"num_heads": 4, "num_head_channels": -1}
        latent_format = comfy.latent_formats.SD15
        memory_usage_factor = 1.0

    config = Config(
        {
            "use_checkpoint": False,
            "image_size": 32,
            "use_spatial_transformer": True,
            "legacy": False,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 32,
            "num_res_blocks": [1, 1],
            "transformer_depth": [1, 1],
            "transformer_depth_output": [1, 1, 1, 1],
            "channel_mult": [1, 2],
            "transformer_depth_middle": 1,
            "use_linear_in_transformer": True,
            "context_dim": WIDTH,
            "use_temporal_resblock": False,
            "use_temporal_attention": False,
            "num_classes": "sequential",
            "adm_in_channels": 2 * width,
        }
    )
    config.set_inference_dtype(torch.float32, None)
    schedule = {"timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
    with torch.inference_mode(inference):
        noise = {"noise_schedule_config": schedule, "timestep_dim": width}
        model = comfy.model_base.SD21UNCLIP(config, noise, ModelType.EPS, device=CPU)
        _randomise(model.diffusion_model, seed)
    return ModelPatcher(model, load_device=CPU, offload_device=CPU)


def small_cascade(width: int = WIDTH, inference: bool = True, seed: int = 0) -> ModelPatcher:
    """Stable Cascade's stage C for image embeddings of this width; latents of 16 x 8 x 8."""
    sizes = {
        "stable_cascade_stage": "c",
        "c_cond": 64,
        "c_hidden": [64, 64],
        "nhead": [2, 2],
        "blocks": [[1, 1], [1, 1]],
        "c_clip_text": WIDTH,
        "c_clip_text_pooled": WIDTH,
        "c_clip_img": width,
    }
    config = comfy.supported_models.Stable_Cascade_C(sizes)
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(inference):
        model = config.get_model({}, "", device=CPU)
        _randomise(model.diffusion_model, seed)
    return ModelPatcher(model, load_device=CPU, offload_device=CPU)


def _randomise_tower(network: nn.Module, seed: int) -> None:
    """Normal weights of deviation 0.15, so that tokens matter; norms at one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
