"""The demo models as ComfyUI's own objects.

ComfyUI's stock loaders read the demo VAE and the two MMDiTs. They know CLIPs and SD1.5-like UNets in the released
sizes only, so these two are built here, from the same classes that the stock loaders use.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from . import architectures
from .packing import unpack
from .unclip import Unclip

WEIGHTS = Path(__file__).parent / "weights"
CLIP_FILE, UNET_FILE = "diversity_demo_clip.safetensors", "diversity_demo_unet.safetensors"
UNCLIP_FILE = "diversity_demo_unclip.safetensors"
TURBO_TEXT_FILE = "diversity_demo_turbo_text.safetensors"
TURBO_FILE, TURBO_BASE_FILE = "diversity_demo_turbo.safetensors", "diversity_demo_turbo_base.safetensors"
# What stock loaders read lies in folders that ComfyUI is told of, named as its own.
STOCK_FOLDERS = ("vae", "diffusion_models")
VAE_FILE = "vae/diversity_demo_vae.safetensors"
MMDIT_FILE = "diffusion_models/diversity_demo_mmdit.safetensors"
DISTILLED_FILE = "diffusion_models/diversity_demo_distilled.safetensors"


def list_stock_models() -> None:
    """Adds the demo VAE and MMDiTs to the lists of ComfyUI's own loaders, so that the templates run as they are."""
    for folder in STOCK_FOLDERS:
        folder_paths.add_model_folder_path(folder, str(WEIGHTS / folder))


def load_clip(embedding_directory: list[str] | None = None) -> comfy.sd.CLIP:
    """The text tower as a CLIP of the SD1.5 kind: 77 tokens, width 128, with a trained text projection.

    `embedding_directory` lists the folders that `embedding:name` in a prompt is looked up in.
    """
    target = comfy.supported_models_base.ClipTarget(_Tokenizer, comfy.sd1_clip.SD1ClipModel)
    target.params = {"clip_model": comfy.sd1_clip.SDClipModel}  # returns the projected pooled vector
    sizes = {"clip_l_model_config": architectures.TEXT}
    clip = comfy.sd.CLIP(target, embedding_directory=embedding_directory, model_options=sizes)
    text = _with_prefix(read(CLIP_FILE), "text.")
    text["text_model.embeddings.token_embedding.weight"] = _full_vocabulary(
        text.pop("token_embedding.rows"), text.pop("token_embedding.ids")
    )
    load_all(clip.cond_stage_model.clip_l.transformer, text, CLIP_FILE)
    return clip


def load_clip_vision() -> comfy.clip_vision.ClipVisionModel:
    """The vision tower of the same CLIP: 128 px, patches of 16 px, projection to the text tower's space."""
    vision = comfy.clip_vision.ClipVisionModel(str(architectures.VISION_CONFIG))
    load_all(vision.model, _with_prefix(read(CLIP_FILE), "vision."), CLIP_FILE)
    return vision


def load_unet() -> comfy.model_patcher.ModelPatcher:
    """The noise-predicting UNet: ComfyUI's SD1.5 model with the demo world's sizes and 16 latent channels."""
    return _unet(_DemoSD15({**architectures.UNET, "adm_in_channels": None}), read(UNET_FILE), UNET_FILE)


def load_unclip() -> comfy.model_patcher.ModelPatcher:
    """The same UNet, led by the embedding of an image: for the stock unCLIPConditioning node, with an empty prompt."""
    # The file holds what was learned for that; all other weights are the UNet's.
    weights = {**read(UNET_FILE), **read(UNCLIP_FILE)}
    return _unet(_DemoUnclip({**architectures.UNCLIP_UNET}), weights, UNCLIP_FILE)


def _unet(config: _DemoSD15, weights: dict[str, Tensor], file: str) -> comfy.model_patcher.ModelPatcher:
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    size = comfy.utils.calculate_parameters(weights)
    dtype = comfy.model_management.unet_dtype(model_params=size, weight_dtype=comfy.utils.weight_dtype(weights))
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device))
    model = config.get_model(weights, "", device=comfy.model_management.unet_inital_load_device(size, dtype))
    load_all(model.diffusion_model, weights, file)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


class _DemoSD15(comfy.supported_models.SD15):
    unet_extra_config: dict = {}
    latent_format = comfy.latent_formats.SD3

    def inpaint_model(self) -> bool:
        return False  # ComfyUI takes more than 4 latent channels for an inpainting model's mask and masked image


class _DemoUnclip(_DemoSD15):
    def get_model(self, state_dict: dict[str, Tensor], prefix: str = "", device: Any = None) -> Unclip:
        return Unclip(self, device=device)


class _Tokenizer(comfy.sd1_clip.SD1Tokenizer):
    """CLIP's own tokenizer; `embedding:` files must have the demo CLIP's width."""

    def __init__(self, embedding_directory: list[str] | None = None, tokenizer_data: dict | None = None) -> None:
        super().__init__(
            embedding_directory=embedding_directory,
            tokenizer_data=tokenizer_data or {},
            tokenizer=partial(comfy.sd1_clip.SDTokenizer, embedding_size=architectures.TEXT["hidden_size"]),
        )


def read(file: str) -> dict[str, Tensor]:
    path = WEIGHTS / file
    if not path.is_file():
        raise ValueError(f"The demo world's weight file {path} is missing. Restore it, for instance by `git checkout`.")
    try:
        return unpack(comfy.utils.load_torch_file(str(path), safe_load=True))
    except Exception as error:
        raise ValueError(f"The demo world's weight file {path} cannot be read ({error}). Restore it.") from error


def _with_prefix(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _full_vocabulary(rows: Tensor, ids: Tensor) -> Tensor:
    """Token embeddings `[49408, D]`: the file holds those of the words that captions use, every other word is the
    average of them and so means nothing in particular."""
    table = rows.float().mean(0).to(rows.dtype).repeat(architectures.VOCABULARY, 1)
    table[ids] = rows
    return table


def load_all(module: torch.nn.Module, weights: dict[str, Tensor], file: str) -> None:
    missing, unexpected = module.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise ValueError(f"{file} does not fit the demo model: missing {missing[:3]}, unexpected {unexpected[:3]}.")
