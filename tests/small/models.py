"""Small diffusion models of many families, from ComfyUI's own classes, with random weights.

Call `devtools.pack.load_comfyui()` before importing this module.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.ldm.flux.model import FluxParams
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

CPU = torch.device("cpu")
WIDTH = 64  # of the text embeddings that the models below read


@dataclass(frozen=True)
class Family:
    """What a family's models are fed: latent shape without the batch, width of text and of the pooled vector (or
    None)."""

    latent: tuple[int, ...]
    pooled: int | None = None


FAMILIES = {
    "eps": Family((4, 16, 16)),
    "v": Family((4, 16, 16)),
    "edm": Family((4, 16, 16)),
    "sd3": Family((16, 16, 16), 2048),
    "flux": Family((16, 16, 16), WIDTH),
    "auraflow": Family((4, 16, 16)),
    "wan": Family((16, 2, 8, 8)),
}


def small_model(family: str, inference: bool = True, seed: int = 0) -> ModelPatcher:
    """A model of one of `FAMILIES`; `inference` makes its weights inference tensors, as ComfyUI's loader nodes do."""
    with torch.inference_mode(inference):
        model = _BUILDERS[family]()
        _randomise(model.diffusion_model, seed)
    return ModelPatcher(model, load_device=CPU, offload_device=CPU)


def conditioning(family: str, rows: int = 1, seed: int = 0, tokens: int = 20) -> list:
    """A CONDITIONING of random embeddings `[rows, tokens, WIDTH]`, with a pooled vector where the family reads one."""
    generator = torch.Generator().manual_seed(seed)
    extra = {}
    pooled = FAMILIES[family].pooled
    if pooled is not None:
        extra["pooled_output"] = torch.randn(rows, pooled, generator=generator)
    return [[torch.randn(rows, tokens, WIDTH, generator=generator), extra]]


def random_latent(family: str, batch: int, seed: int = 0) -> Tensor:
    """Gaussian noise `[batch, C, ...]` of the family's latent shape."""
    return torch.randn(batch, *FAMILIES[family].latent, generator=torch.Generator().manual_seed(seed))


def small_sdxl() -> ModelPatcher:
    """SDXL's own class, for the small encoders of that family: their two texts side by side, and a pooled vector."""
    with torch.inference_mode():
        text, pooled = 64 + 96, 96 + 6 * 256  # CLIP-L beside CLIP-G; the pooled vector and six sizes
        config = _unet_config(
            comfy.latent_formats.SDXL, context_dim=text, num_classes="sequential", adm_in_channels=pooled
        )
        model = comfy.model_base.SDXL(config, device=CPU)
        _randomise(model.diffusion_model, 0)
    return ModelPatcher(model, load_device=CPU, offload_device=CPU)


def small_sd35(width: int, pooled: int) -> ModelPatcher:
    """SD3's own class, for text embeddings and pooled vectors of these widths."""
    return _patcher(_sd3(width, pooled))


def small_flux(guidance: bool) -> ModelPatcher:
    """FLUX.1's own class; `guidance`: it reads a guidance scale, as dev does and schnell does not."""
    return _patcher(_flux(guidance))


def _patcher(model: comfy.model_base.BaseModel) -> ModelPatcher:
    with torch.inference_mode():
        _randomise(model.diffusion_model, 0)
    return ModelPatcher(model, load_device=CPU, offload_device=CPU)


class Counter:
    """Calls of the network, and their batch sizes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def on(self, model: ModelPatcher) -> ModelPatcher:
        """A clone of the model whose calls are counted."""

        def wrapper(executor: Any, x: Tensor, *rest: Any, **named: Any) -> Tensor:
            self.sizes.append(len(x))
            return executor(x, *rest, **named)

        counted = model.clone()
        counted.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "counter", wrapper)
        return counted


def cancelling(model: ModelPatcher) -> ModelPatcher:
    """A clone at whose first call the user presses Cancel."""

    def cancel(executor: Any, *rest: Any, **named: Any) -> Tensor:
        comfy.model_management.interrupt_current_processing()
        return executor(*rest, **named)

    found = model.clone()
    found.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cancel", cancel)
    return found


def _unet(model_type: ModelType) -> comfy.model_base.BaseModel:
    config = _unet_config(comfy.latent_formats.SD15, context_dim=WIDTH, adm_in_channels=None)
    return comfy.model_base.BaseModel(config, model_type=model_type, device=CPU)


def _unet_config(latents: type, **own: Any) -> comfy.supported_models_base.BASE:
    """Two levels, one block each; `own` is what a kind of UNet has to itself."""

    class Config(comfy.supported_models_base.BASE):
        unet_extra_config = {"num_heads": 4, "num_head_channels": -1}
        latent_format = latents
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
            "use_temporal_resblock": False,
            "use_temporal_attention": False,
            **own,
        }
    )
    config.set_inference_dtype(torch.float32, None)
    return config


def _supported(config_class: type, sizes: dict) -> comfy.model_base.BaseModel:
    config = config_class(dict(sizes))
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, "", device=CPU)


def _sd3(width: int = WIDTH, pooled: int = 2048) -> comfy.model_base.BaseModel:
    depth = 2
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": width, "out_features": 64 * depth}}
    sizes = {
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "depth": depth,
        "input_size": None,
        "adm_in_channels": pooled,
        "context_embedder_config": embedder,
        "num_patches": 64,
        "pos_embed_max_size": 8,
        "qk_norm": "rms",
        "pos_embed_scaling_factor": None,
        "x_block_self_attn_layers": [],
    }
    return _supported(comfy.supported_models.SD3, sizes)


def _flux(guidance: bool = True) -> comfy.model_base.BaseModel:
    sizes = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "hidden_size": 64,
        "num_heads": 2,
        "axes_dim": [8, 12, 12],
        "context_in_dim": WIDTH,
        "vec_in_dim": WIDTH,
        "depth": 2,
        "depth_single_blocks": 2,
        "mlp_ratio": 4.0,
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": guidance,
    }
    if "txt_ids_dims" in {field.name for field in fields(FluxParams)}:  # newer versions ask for it
        sizes["txt_ids_dims"] = []
    return _supported(comfy.supported_models.Flux, sizes)


def _auraflow() -> comfy.model_base.BaseModel:
    sizes = {"max_seq": 64, "cond_seq_dim": WIDTH, "n_double_layers": 1, "n_layers": 2, "dim": 128, "n_heads": 2}
    return _supported(comfy.supported_models.AuraFlow, sizes)


WAN: dict[str, Any] = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 128,
    "in_dim": 16,
    "out_dim": 16,
    "text_dim": WIDTH,
    "num_heads": 1,
    "ffn_dim": 256,
    "num_layers": 2,
    "patch_size": (1, 2, 2),
    "freq_dim": 256,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}


def _wan() -> comfy.model_base.BaseModel:
    return _supported(comfy.supported_models.WAN21_T2V, WAN)


_BUILDERS = {
    "eps": lambda: _unet(ModelType.EPS),
    "v": lambda: _unet(ModelType.V_PREDICTION),
    "edm": lambda: _unet(ModelType.EDM),
    "sd3": _sd3,
    "flux": _flux,
    "auraflow": _auraflow,
    "wan": _wan,
}


def _randomise(network: nn.Module, seed: int) -> None:
    """Normal weights of deviation 0.05; norms at one. ComfyUI leaves both weights and some buffers uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0 if name.endswith("weight") or name.endswith("scale") else 0.0)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
        for name, buffer in network.named_buffers():
            if "pos_embed" in name:
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
