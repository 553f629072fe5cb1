"""The sizes of the demo models, shared by training and loading."""

from __future__ import annotations

import json
from pathlib import Path

IMAGE_SIZE = 128
LATENT_CHANNELS = 16

# Scale and shift of ComfyUI's SD3 latent format; with these in the VAE file the denoisers see unit-variance latents.
VAE_SCALE, VAE_SHIFT = 1.5305, 0.0609

TEXT = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "layer_norm_eps": 1e-5,
    "projection_dim": 128,
    "eos_token_id": 49407,
    "bos_token_id": 49406,
    "pad_token_id": 49407,
}
VOCABULARY = 49_408  # the tokenizer is CLIP's own

# ComfyUI reads a vision tower's sizes from a file
VISION_CONFIG = Path(__file__).parent / "clip_vision_config.json"
VISION = json.loads(VISION_CONFIG.read_text(encoding="utf-8"))

UNET = {
    "image_size": 32,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "model_channels": 64,
    "num_res_blocks": [2, 2],
    "channel_mult": [1, 2],
    "transformer_depth": [0, 0, 1, 1],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": TEXT["hidden_size"],
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_heads": -1,
    "num_head_channels": 32,
}

# The UNet again, led by an image's embedding: its noised self and the level of that noise, side by side.
UNCLIP_UNET = {**UNET, "num_classes": "sequential", "adm_in_channels": 2 * VISION["projection_dim"]}
UNCLIP_WORDS = {"hidden": 512, "rank": 96, "positions": 24}
UNCLIP_NOISE = {
    "noise_schedule_config": {"timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"},
    "timestep_dim": VISION["projection_dim"],
}

# Z-Image's text encoder: Qwen3, whose head width its class fixes at 128.
QWEN = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 384,
}
QWEN_VOCABULARY = 151_936  # the tokenizer is Qwen's own
QWEN_OTHERS = 16  # embeddings that all words outside the captions share

_MMDIT_DEPTH = 3  # ComfyUI reads the depth off the width: 64 channels a block
MMDIT = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "depth": _MMDIT_DEPTH,
    "adm_in_channels": TEXT["projection_dim"],
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": TEXT["hidden_size"], "out_features": 64 * _MMDIT_DEPTH},
    },
    "num_patches": 256,
    "pos_embed_max_size": 16,
    "qk_norm": "rms",
    "pos_embed_scaling_factor": None,
}

# Z-Image's transformer as ComfyUI detects it, but for its sizes.
TURBO = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": LATENT_CHANNELS,
    "dim": 128,
    "cap_feat_dim": QWEN["hidden_size"],
    "n_layers": 4,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 4,
    "multiple_of": 64,
    "qk_norm": True,
    "axes_dims": [8, 12, 12],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 2.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
}
