"""The demo's Z-Image: ComfyUI's own classes at a small size, which its loaders cannot detect."""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import TimestepEmbedder
from comfy.text_encoders import z_image
from torch import Tensor

from .architectures import QWEN, QWEN_VOCABULARY, TURBO
from .loader import TURBO_TEXT_FILE, load_all, read


def load_turbo_clip(embedding_directory: list[str] | None = None) -> comfy.sd.CLIP:
    """The language model as a CLIP of Z-Image's kind: chat template, last layer but one, width 128.

    `embedding_directory` lists the folders that `embedding:name` in a prompt is looked up in.
    """
    target = comfy.supported_models_base.ClipTarget(_Tokenizer, z_image.te())
    sizes = {"qwen3_4b_model_config": QWEN}
    clip = comfy.sd.CLIP(target, embedding_directory=embedding_directory, model_options=sizes)
    text = read(TURBO_TEXT_FILE)
    ids, rows, others = (text.pop(f"embed_tokens.{part}") for part in ("ids", "rows", "others"))
    # Words that captions do not have share a few embeddings.
    table = others[torch.arange(QWEN_VOCABULARY) % len(others)]
    table[ids] = rows
    load_all(clip.cond_stage_model.qwen3_4b.transformer.model, {**text, "embed_tokens.weight": table}, TURBO_TEXT_FILE)
    return clip


def load_turbo(file: str) -> comfy.model_patcher.ModelPatcher:
    """The transformer of one of the two files: distilled for eight steps at CFG 1, or its teacher."""
    weights = read(file)
    config = _DemoZImage({**TURBO})
    device = comfy.model_management.get_torch_device()
    size = comfy.utils.calculate_parameters(weights)
    dtype = comfy.model_management.unet_dtype(
        model_params=size,
        weight_dtype=comfy.utils.weight_dtype(weights),
        supported_dtypes=config.supported_inference_dtypes,
    )
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device))
    model = config.get_model(weights, "", device=comfy.model_management.unet_inital_load_device(size, dtype))
    if not hasattr(model.diffusion_model, "norm_final"):  # unused; newer versions of the class have it no more
        weights.pop("norm_final.weight", None)
    load_all(model.diffusion_model, weights, file)
    offload = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


class SmallNextDiT(NextDiT):
    """Z-Image's transformer, whose class fixes the width of its time embedding at 256, wider than this whole model."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        placed = {name: sizes.get(name) for name in ("dtype", "device", "operations")}
        self.t_embedder = TimestepEmbedder(sizes["dim"], output_size=sizes["dim"], **placed)


class _ZImage(comfy.model_base.Lumina2):
    def __init__(self, model_config: Any, device: Any = None) -> None:
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=SmallNextDiT
        )


class _DemoZImage(comfy.supported_models.ZImage):
    latent_format = comfy.latent_formats.SD3  # with which the demo VAE's latents have unit variance

    def get_model(self, state_dict: dict[str, Tensor], prefix: str = "", device: Any = None) -> _ZImage:
        return _ZImage(self, device=device)


class _Tokenizer(z_image.ZImageTokenizer):
    """Qwen's own tokenizer; `embedding:` files must have the small model's width."""

    def __init__(self, embedding_directory: list[str] | None = None, tokenizer_data: dict | None = None) -> None:
        super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {})
        tokenizer: Any = self.qwen3_4b
        tokenizer.embedding_size = QWEN["hidden_size"]
