"""Small models of many families, whole: diffusion model and text encoder, which fit each other.

Call `devtools.pack.load_comfyui()` before importing this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import comfy.latent_formats
import comfy.ldm.chroma_radiance.model
import comfy.ldm.hunyuan_video.model
import comfy.model_base
import comfy.sdxl_clip
import comfy.text_encoders.cosmos
import comfy.text_encoders.genmo
import comfy.text_encoders.hidream
import comfy.text_encoders.hunyuan_image
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.hydit
import comfy.text_encoders.lt
import comfy.text_encoders.lumina2
import comfy.text_encoders.omnigen2
import torch
from comfy.model_patcher import ModelPatcher

from . import encoders, models, newer, released, vision
from .models import CPU, WIDTH


@dataclass(frozen=True)
class Whole:
    """make: diffusion model and text encoder. side: of its latents, which have `time` places where they have a time.
    missing_in: versions of ComfyUI that do not know the family."""

    make: Callable[[], tuple[ModelPatcher, Any]]
    side: int = 8
    time: int = 1
    missing_in: tuple[str, ...] = ()


def small_whole(name: str) -> tuple[ModelPatcher, Any]:
    """Diffusion model and text encoder of one of `WHOLE`."""
    with torch.inference_mode():
        return WHOLE[name].make()


def latent_shape(name: str, model: ModelPatcher) -> tuple[int, ...]:
    """Of a latent of the family, without the batch."""
    kind, own = model.model.latent_format, WHOLE[name]
    time = (own.time,) if kind.latent_dimensions == 3 else ()
    return (kind.latent_channels, *time, own.side, own.side)


def _pair(family: str, encoder: str) -> Callable[[], tuple[Any, Any]]:
    return lambda: (models.small_model(family), encoders.small_encoder(encoder))


def _released(title: str, **own: Any) -> Whole:
    return Whole(released._WHOLE[title][0], **own)


def _cascade() -> tuple[Any, Any]:
    clip = comfy.sdxl_clip
    sizes = {"clip_g_model_config": {**encoders._CLIP_G, "hidden_size": WIDTH}}
    return vision.small_cascade(EMBEDDING), released._encoder(
        clip.StableCascadeClipModel, clip.StableCascadeTokenizer, sizes
    )


def _refiner() -> tuple[Any, Any]:
    """SDXL's, which reads CLIP-G alone, and five sizes beside its pooled vector."""
    clip, width = comfy.sdxl_clip, encoders._CLIP_G["hidden_size"]
    config = models._unet_config(
        comfy.latent_formats.SDXL, context_dim=width, num_classes="sequential", adm_in_channels=width + 5 * 256
    )
    model = comfy.model_base.SDXLRefiner(config, device=CPU)
    models._randomise(model.diffusion_model, 0)
    sizes = {"clip_g_model_config": encoders._CLIP_G}
    encoder = released._encoder(clip.SDXLRefinerClipModel, clip.SDXLTokenizer, sizes)
    return ModelPatcher(model, load_device=CPU, offload_device=CPU), encoder


def _radiance() -> tuple[Any, Any]:
    sizes = {
        "image_model": "chroma_radiance",
        "in_channels": 3,
        "out_channels": 3,
        "context_in_dim": WIDTH,
        "hidden_size": 64,
        "num_heads": 2,
        "mlp_ratio": 4.0,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [8, 12, 12],
        "theta": 10000,
        "patch_size": 16,
        "qkv_bias": True,
        "in_dim": 64,
        "out_dim": 64,
        "hidden_dim": 64,
        "n_layers": 2,
        "txt_ids_dims": [],
        "vec_in_dim": None,
        "nerf_hidden_size": 16,
        "nerf_mlp_ratio": 2,
        "nerf_depth": 1,
        "nerf_max_freqs": 4,
        "nerf_tile_size": 0,
        "nerf_final_head_type": "conv",
        "nerf_embedder_dtype": torch.float32,
        "use_x0": True,
        "use_sequential_txt_ids": False,
    }
    known = {field.name for field in fields(comfy.ldm.chroma_radiance.model.ChromaRadianceParams)} | {"image_model"}
    sizes = {name: value for name, value in sizes.items() if name in known}
    return released._model("ChromaRadiance", sizes), encoders.small_encoder("t5")


def _lumina() -> tuple[Any, Any]:
    lumina, data = comfy.text_encoders.lumina2, {"spiece_model": encoders.spiece()}
    encoder = released._encoder(lumina.te(), lumina.LuminaTokenizer, {"gemma2_2b_model_config": encoders._QWEN}, data)
    return released._model("Lumina2", {**released.LUMINA, "n_kv_heads": 1}), encoder


def _omnigen() -> tuple[Any, Any]:
    sizes = {
        "image_model": "omnigen2",
        "hidden_size": 64,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "axes_dim_rope": (8, 12, 12),
        "text_feat_dim": WIDTH,
    }
    omnigen = comfy.text_encoders.omnigen2
    encoder = released._encoder(omnigen.te(), omnigen.Omnigen2Tokenizer, {"qwen25_3b_model_config": encoders._QWEN})
    return newer.louder(released._model("Omnigen2", sizes)), encoder


def _hidream() -> tuple[Any, Any]:
    layers = encoders._QWEN["num_hidden_layers"]
    sizes = {
        "image_model": "hidream",
        "attention_head_dim": 32,
        "axes_dims_rope": [16, 8, 8],
        "caption_channels": [WIDTH, WIDTH],
        "max_resolution": [32, 32],
        "in_channels": 16,
        "out_channels": 16,
        "llama_layers": [*range(layers)][:2],
        "num_attention_heads": 2,
        "num_routed_experts": 2,
        "num_activated_experts": 1,
        "num_layers": 1,
        "num_single_layers": 1,
        "patch_size": 2,
        "text_emb_dim": 64 + 96,
    }
    hidream = comfy.text_encoders.hidream
    encoder = released._encoder(
        hidream.hidream_clip(),
        hidream.HiDreamTokenizer,
        {
            "clip_l_model_config": encoders._CLIP_L,
            "clip_g_model_config": encoders._CLIP_G,
            "t5xxl_model_config": encoders._T5,
            "llama_model_config": encoders._QWEN,
        },
    )
    return released._model("HiDream", sizes), encoder


def _pixart() -> tuple[Any, Any]:
    sizes = {
        "image_model": "pixart_alpha",
        "input_size": 8,
        "hidden_size": 72,
        "depth": 2,
        "num_heads": 2,
        "caption_channels": WIDTH,
        "model_max_length": 120,
        "micro_condition": True,
        "pe_interpolation": 1,
    }
    return released._model("PixArtAlpha", sizes), encoders.small_encoder("t5")


def _hunyuan_dit() -> tuple[Any, Any]:
    sizes = {
        "image_model": "hydit",
        "hidden_size": 64,
        "depth": 2,
        "num_heads": 2,
        "text_states_dim": WIDTH,
        "text_states_dim_t5": WIDTH,
    }
    hydit = comfy.text_encoders.hydit
    encoder = released._encoder(
        hydit.HyditModel,
        hydit.HyditTokenizer,
        {"hydit_clip_model_config": encoders._CLIP_L, "mt5xl_model_config": encoders._T5},
        {"mt5xl.spiece_model": encoders.spiece()},
    )
    return released._model("HunyuanDiT", sizes), encoder


def _hunyuan(config: str, patch: list[int], axes: list[int], pooled: int | None, **own: Any) -> Any:
    channels = own.pop("channels", 16)
    sizes = {
        "image_model": "hunyuan_video",
        "in_channels": channels,
        "out_channels": own.pop("out_channels", channels),
        "patch_size": patch,
        "vec_in_dim": pooled,
        "axes_dim": axes,
        "context_in_dim": WIDTH,
        "hidden_size": 64,
        "mlp_ratio": 4.0,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
        "theta": 256,
        "qkv_bias": True,
        "guidance_embed": False,
        "byt5": False,
        "meanflow": False,
        "meanflow_sum": False,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
        **own,
    }
    known = {field.name for field in fields(comfy.ldm.hunyuan_video.model.HunyuanVideoParams)} | {"image_model"}
    return released._model(config, {name: value for name, value in sizes.items() if name in known})


def _hunyuan_video() -> tuple[Any, Any]:
    text = comfy.text_encoders.hunyuan_video
    sizes = {"clip_l_model_config": encoders._CLIP_L, "llama_model_config": released._qwen(4), "vocab_size": 128512}
    encoder = released._encoder(text.hunyuan_video_clip(), text.HunyuanVideoTokenizer, sizes)
    return _hunyuan("HunyuanVideo", [1, 2, 2], [8, 12, 12], WIDTH, guidance_embed=True), encoder


def _hunyuan_image() -> tuple[Any, Any]:
    text = comfy.text_encoders.hunyuan_image
    sizes = {"qwen25_7b_model_config": released._qwen(4)}
    encoder = released._encoder(text.te(byt5=False), text.HunyuanImageTokenizer, sizes)
    return _hunyuan("HunyuanImage21", [1, 1], [16, 16], None, channels=64), encoder


def _hunyuan_video_15() -> tuple[Any, Any]:
    text = comfy.text_encoders.hunyuan_video
    sizes = {"qwen25_7b_model_config": released._qwen(4)}
    encoder = released._encoder(comfy.text_encoders.hunyuan_image.te(byt5=False), text.HunyuanVideo15Tokenizer, sizes)
    own = {"channels": 65, "out_channels": 32, "use_cond_type_embedding": True, "vision_in_dim": WIDTH}
    return _hunyuan("HunyuanVideo15", [1, 1, 1], [8, 12, 12], None, **own), encoder


def _ltxv() -> tuple[Any, Any]:
    sizes = {
        "image_model": "ltxv",
        "cross_attention_dim": 64,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "caption_channels": WIDTH,
        "num_layers": 2,
    }
    lt = comfy.text_encoders.lt
    encoder = released._encoder(
        comfy.text_encoders.genmo.mochi_te(), lt.LTXVT5Tokenizer, {"t5xxl_model_config": encoders._T5}
    )
    return released._model("LTXV", sizes), encoder


def _cosmos_2() -> tuple[Any, Any]:
    sizes = released._cosmos_sizes("cosmos_predict2")
    text = comfy.text_encoders.cosmos
    encoder = released._encoder(text.te(), text.CosmosT5Tokenizer, {"t5xxl_model_config": encoders._T5})
    return released._model("CosmosT2IPredict2", sizes), encoder


EMBEDDING = 768  # width of the image embedding that ComfyUI gives Stable Cascade where there is none
_OLD = ("0.3.75",)

WHOLE: dict[str, Whole] = {
    "SD1.5": _released("SD1.5"),
    "SD2 (v-prediction)": Whole(_pair("v", "sd2")),
    "EDM": Whole(_pair("edm", "sd1")),
    "SDXL": _released("SDXL"),
    "SDXL refiner": Whole(_refiner),
    "SD3.5": _released("SD3.5 Large"),
    "SD2.1 unCLIP": Whole(lambda: (vision.small_unclip(), encoders.small_encoder("sd2"))),
    "Stable Cascade": Whole(_cascade),
    "FLUX.1 dev": _released("FLUX.1 dev"),
    "FLUX.1 schnell": _released("FLUX.1 schnell"),
    "FLUX.2 dev": _released("FLUX.2 dev"),
    "FLUX.2 Klein": _released("FLUX.2 Klein 4B", missing_in=_OLD),
    "Qwen-Image": _released("Qwen-Image 2512"),
    "Z-Image": _released("Z-Image Turbo"),
    "Krea 2": _released("Krea 2 Turbo", missing_in=_OLD),
    "Chroma": _released("Chroma1 HD"),
    "Chroma Radiance": Whole(_radiance, side=32),
    "Anima": _released("Anima", missing_in=_OLD),
    "AuraFlow": Whole(_pair("auraflow", "t5")),
    "PixArt alpha": Whole(_pixart, side=40),
    "HunyuanDiT": Whole(_hunyuan_dit),
    "HunyuanImage 2.1": Whole(_hunyuan_image),
    "Lumina 2": Whole(_lumina),
    "OmniGen 2": Whole(_omnigen),
    "HiDream-I1": Whole(_hidream),
    "Cosmos Predict 2": Whole(_cosmos_2),
    "HunyuanVideo (video)": Whole(_hunyuan_video, time=2),
    "HunyuanVideo 1.5 (video)": Whole(_hunyuan_video_15, time=2),
    "LTXV (video)": Whole(_ltxv, time=2),
    "Mochi (video)": Whole(newer.mochi, time=2),
    "Wan 2.1 (video)": Whole(_pair("wan", "t5"), time=2),
    "Wan 2.2 5B (video)": Whole(newer.wan_22, time=2),
    "Cosmos 1 (video)": Whole(newer.cosmos, time=2),
    "CogVideoX (video)": Whole(newer.cogvideox, time=2, missing_in=_OLD),
    "Kandinsky 5 (video)": Whole(lambda: newer.kandinsky(True), time=2, missing_in=_OLD),
    "Kandinsky 5": Whole(lambda: newer.kandinsky(False), missing_in=_OLD),
    "Ovis": Whole(newer.ovis, missing_in=_OLD),
    "LongCat": Whole(newer.longcat, missing_in=_OLD),
    "Ernie": Whole(newer.ernie, missing_in=_OLD),
    "Boogu": Whole(newer.boogu, missing_in=_OLD),
    "JoyImage": Whole(newer.joyimage, missing_in=_OLD),
    "MageFlow": Whole(newer.mage_flow, missing_in=_OLD),
    "Ideogram 4": Whole(newer.ideogram, missing_in=_OLD),
    "PixelDiT": Whole(newer.pixeldit, side=32, missing_in=_OLD),
    "Lens": Whole(newer.lens, missing_in=_OLD),
    "NewBie": Whole(newer.newbie, missing_in=_OLD),
    "HiDream-O1": Whole(newer.hidream_o1, side=64, missing_in=_OLD),
}
