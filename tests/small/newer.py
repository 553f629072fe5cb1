"""Small models of more families, whole: those that newer versions of ComfyUI have, and more of video.

Their modules are imported where they are used, since older versions have none of them. Call
`devtools.pack.load_comfyui()` before importing this module.
"""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any
from unittest import mock

import comfy.supported_models
import torch
from comfy.ldm.flux.model import FluxParams
from comfy.model_patcher import ModelPatcher

from . import encoders, models, quantised, released
from .models import CPU, WIDTH


def _text(module: str) -> Any:
    return importlib.import_module(f"comfy.text_encoders.{module}")


def louder(model: ModelPatcher) -> ModelPatcher:
    """A model whose gates would let too little of the text through, with larger weights."""
    for weight in model.model.diffusion_model.parameters():
        if weight.ndim == 2:
            weight.mul_(4)
    return model


def _flux(config: str, **own: Any) -> Any:
    """Of FLUX.1's kind, with one text encoder and no pooled vector."""
    sizes = {
        "image_model": "flux",
        "in_channels": 16,
        "out_channels": 16,
        "hidden_size": 64,
        "num_heads": 2,
        "axes_dim": [8, 12, 12],
        "context_in_dim": WIDTH,
        "vec_in_dim": None,
        "depth": 2,
        "depth_single_blocks": 2,
        "mlp_ratio": 4.0,
        "theta": 10000,
        "patch_size": 2,
        "qkv_bias": True,
        "guidance_embed": False,
        "txt_ids_dims": [1, 2],
        **own,
    }
    known = {field.name for field in fields(FluxParams)} | {"image_model"}
    return released._model(config, {name: value for name, value in sizes.items() if name in known})


def ovis() -> tuple[Any, Any]:
    text = _text("ovis")
    encoder = released._encoder(text.te(), text.OvisTokenizer, {"qwen3_2b_model_config": encoders._QWEN})
    return _flux("FluxSchnell", yak_mlp=True, txt_norm=True), encoder


def longcat() -> tuple[Any, Any]:
    text = _text("longcat_image")
    encoder = released._encoder(text.te(), text.LongCatImageTokenizer, {"qwen25_7b_model_config": encoders._QWEN})
    return _flux("LongCatImage"), encoder


def kandinsky(video: bool) -> tuple[Any, Any]:
    sizes = {
        "image_model": "kandinsky5",
        "model_dim": 64,
        "in_text_dim": WIDTH,
        "in_text_dim2": 64,
        "time_dim": 64,
        "ff_dim": 128,
        "visual_embed_dim": 132 if video else 64,  # an image and its mask are joined to a video
        "num_text_blocks": 1,
        "num_visual_blocks": 2,
        "axes_dims": (8, 12, 12),
    }
    text = _text("kandinsky5")
    tokenizer = text.Kandinsky5Tokenizer if video else text.Kandinsky5TokenizerImage
    # The CLIP beside the language model is made with the same options.
    qwen = {"qwen25_7b_model_config": encoders._QWEN}
    with mock.patch.object(text.sd1_clip, "SDClipModel", _small_clip(text.sd1_clip.SDClipModel)):
        encoder = released._encoder(text.te(), tokenizer, qwen)
    return released._model("Kandinsky5" if video else "Kandinsky5Image", sizes), encoder


def _small_clip(real: Any) -> Any:
    def made(*arguments: Any, model_options: dict[str, Any], **named: Any) -> Any:
        options = {**model_options, "model_name": "clip_l", "clip_l_model_config": encoders._CLIP_L}
        return real(*arguments, model_options=options, **named)

    return made


def ernie() -> tuple[Any, Any]:
    sizes = {
        "image_model": "ernie",
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_layers": 2,
        "ffn_hidden_size": 128,
        "text_in_dim": WIDTH,
        "rope_axes_dim": (8, 12, 12),
    }
    text = _text("ernie")
    qwen = {"ministral3_3b_model_config": encoders._QWEN}
    encoder = released._encoder(text.te(), text.ErnieTokenizer, qwen, released._tekken())
    return released._model("ErnieImage", sizes), encoder


def boogu() -> tuple[Any, Any]:
    sizes = {
        "image_model": "boogu",
        "hidden_size": 64,
        "num_layers": 1,
        "num_double_stream_layers": 1,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "num_kv_heads": 1,
        "axes_dim_rope": (8, 12, 12),
        "instruction_feat_dim": WIDTH,
    }
    text = _text("boogu")
    encoder = released._encoder(text.te(), text.BooguTokenizer, {"qwen3vl_8b_model_config": encoders._QWEN})
    return louder(released._model("Boogu", sizes)), encoder


def joyimage() -> tuple[Any, Any]:
    sizes = {
        "image_model": "joyimage",
        "in_channels": 16,
        "hidden_size": 128,  # a head's own, which ComfyUI fixes
        "patch_size": [1, 2, 2],
        "num_layers": 2,
        "num_attention_heads": 1,
        "text_dim": WIDTH,
    }
    text = _text("joyimage")
    encoder = released._encoder(text.te(), text.JoyImageTokenizer, {"qwen3vl_8b_model_config": encoders._QWEN})
    return released._model("JoyImage", sizes), encoder


def mage_flow() -> tuple[Any, Any]:
    sizes = {
        "image_model": "mage_flow",
        "in_channels": 128,
        "num_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "axes_dims_rope": (8, 12, 12),
    }
    text = _text("mage_flow")
    encoder = released._encoder(text.te(), text.MageFlowTokenizer, {"qwen3vl_4b_model_config": encoders._QWEN})
    return released._model("MageFlow", sizes), encoder


def ideogram() -> tuple[Any, Any]:
    text, taps = _text("ideogram4"), 13
    # ComfyUI fixes its sizes, whatever a file has.
    small = {
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "intermediate_size": 128,
        "adaln_dim": 64,
        "llm_features_dim": taps * WIDTH,
        "rope_theta": 5_000_000,
        "mrope_section": [6, 5, 5],
        "norm_eps": 1e-5,
    }
    config = type("Ideogram4", (comfy.supported_models.Ideogram4,), {"unet_extra_config": small})
    network = models._supported(config, {"image_model": "ideogram4", "in_channels": 128, "num_layers": 2})
    models._randomise(network.diffusion_model, 0)
    # The thirteen layers that it reads of thirty-six: here there are no others.
    with mock.patch.object(text, "IDEOGRAM4_TAP_LAYERS", list(range(taps))):
        qwen = {"qwen3vl_8b_model_config": released._qwen(taps)}
        encoder = released._encoder(text.te(), text.Ideogram4Tokenizer, qwen)
    return ModelPatcher(network, load_device=CPU, offload_device=CPU), encoder


def pixeldit() -> tuple[Any, Any]:
    sizes = {
        "image_model": "pixeldit_t2i",
        "num_groups": 2,
        "hidden_size": 64,
        "pixel_hidden_size": 8,
        "pixel_attn_hidden_size": 64,
        "pixel_num_groups": 2,
        "patch_depth": 1,
        "pixel_depth": 1,
        "txt_embed_dim": WIDTH,
    }
    text, data = _text("pixeldit"), {"spiece_model": encoders.spiece()}
    gemma = {"gemma2_2b_model_config": encoders._QWEN}
    encoder = released._encoder(text.pixeldit_te(), text.PixelDiTGemma2Tokenizer, gemma, data)
    return louder(released._model("PixelDiTT2I", sizes)), encoder


def newbie() -> tuple[Any, Any]:
    sizes = {**released.LUMINA, "n_kv_heads": 1, "clip_text_dim": WIDTH}
    # Its two encoders have no names of their own, so both are of these sizes.
    both = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 128}
    text = _text("newbie")
    data = {"gemma_spiece_model": encoders.spiece(), "jina_spiece_model": encoders.spiece(pad=1, eos=2, bos=0)}
    return released._model("Lumina2", sizes), released._encoder(
        text.te(), text.NewBieTokenizer, {"_model_config": both}, data
    )


def hidream_o1() -> tuple[Any, Any]:
    """It has no text encoder: the diffusion model reads the text's tokens."""
    language = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    vision = {"hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "depth": 1, "deepstack_visual_indexes": ()}
    sizes = {"image_model": "hidream_o1", "text_config_overrides": language, "vision_config_overrides": vision}
    text = _text("hidream_o1")
    return released._model("HiDreamO1", sizes), released._encoder(text.HiDreamO1TE, text.HiDreamO1Tokenizer, {})


def lens() -> tuple[Any, Any]:
    """Its text encoder is none of ComfyUI's usual kind."""
    sizes = {
        "image_model": "lens",
        "num_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "enc_hidden_dim": WIDTH,
        "axes_dims_rope": (8, 12, 12),
        "selected_layer_index": (0, 1),
    }
    language = {
        "vocab_size": 300,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    }
    text = _text("gpt_oss")
    options = {"gpt_oss_config": language, "selected_layers": (0, 1), "custom_operations": quantised.plain_operations()}
    encoder = released._encoder(text.lens_te(), text.LensTokenizer, options, {"tokenizer_json": _bytes_as_tokens()})
    return louder(released._model("Lens", sizes)), encoder


def _bytes_as_tokens() -> torch.Tensor:
    """A tokenizer file in which every byte is a token."""
    import tokenizers

    letters = {letter: k for k, letter in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return torch.frombuffer(bytearray(made.to_str().encode()), dtype=torch.uint8)


def mochi() -> tuple[Any, Any]:
    sizes = {
        "image_model": "mochi_preview",
        "depth": 2,
        "patch_size": 2,
        "num_heads": 2,
        "hidden_size_x": 64,
        "hidden_size_y": 32,
        "mlp_ratio_x": 192.0,  # ComfyUI fixes the product
        "mlp_ratio_y": 4.0,
        "learn_sigma": False,
        "in_channels": 12,
        "qk_norm": True,
        "qkv_bias": False,
        "out_bias": True,
        "attn_drop": 0.0,
        "posenc_preserve_area": True,
        "timestep_scale": 1000.0,
        "use_t5": True,
        "t5_feat_dim": WIDTH,
    }
    text = _text("genmo")
    return louder(released._model("GenmoMochi", sizes)), _t5(text.mochi_te(), text.MochiT5Tokenizer)


def wan_22() -> tuple[Any, Any]:
    sizes = {**models.WAN, "in_dim": 48, "out_dim": 48}
    return released._model("WAN22_T2V", sizes), encoders.small_encoder("t5")


def cosmos() -> tuple[Any, Any]:
    sizes = {
        **released._cosmos_sizes("cosmos"),
        "block_config": "FA-CA-MLP",
        "pos_emb_learnable": False,
        "block_x_format": "THWBD",
        "affline_emb_norm": True,
        "extra_per_block_abs_pos_emb": True,
        "extra_per_block_abs_pos_emb_type": "learnable",
    }
    del sizes["min_fps"], sizes["max_fps"]
    text = _text("cosmos")
    return louder(released._model("CosmosT2V", sizes)), _t5(text.te(), text.CosmosT5Tokenizer)


def cogvideox() -> tuple[Any, Any]:
    sizes = {
        "image_model": "cogvideox",
        "num_attention_heads": 1,
        "attention_head_dim": 64,
        "time_embed_dim": 64,
        "text_embed_dim": WIDTH,
        "num_layers": 2,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 5,
        "use_rotary_positional_embeddings": True,  # as the larger one
    }
    text = _text("cogvideo")
    return released._model("CogVideoX_T2V", sizes), _t5(text.cogvideo_te(), text.CogVideoXTokenizer)


def _t5(model: Any, tokenizer: Any) -> Any:
    return released._encoder(model, tokenizer, {"t5xxl_model_config": encoders._T5})
