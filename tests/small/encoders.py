"""Small text encoders of many kinds, from ComfyUI's own classes, with random weights.

Call `devtools.pack.load_comfyui()` before importing this module.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any
from unittest import mock

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import comfy.text_encoders.flux
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.sd2_clip
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.z_image
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

_CLIP_L = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
_CLIP_G = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
_T5 = {"d_model": 64, "num_layers": 2, "d_kv": 16, "num_heads": 4, "d_ff": 128}
# SD3 joins its encoders at the width of the released T5 alone; half a gigabyte, nearly all of it token embeddings.
_WIDE_T5 = {**_T5, "d_model": 4096, "num_layers": 1}
_QWEN = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 128,
}

# Kind: model, tokenizer, sizes.
_KINDS: dict[str, Callable[[], tuple[Any, Any, dict[str, dict]]]] = {
    "sd1": lambda: (
        comfy.sd1_clip.SD1ClipModel,
        comfy.sd1_clip.SD1Tokenizer,
        {"clip_l_model_config": _CLIP_L},
    ),
    "sd2": lambda: (
        comfy.text_encoders.sd2_clip.SD2ClipModel,
        comfy.text_encoders.sd2_clip.SD2Tokenizer,
        {"clip_h_model_config": _CLIP_L},
    ),
    "sdxl": lambda: (
        comfy.sdxl_clip.SDXLClipModel,
        comfy.sdxl_clip.SDXLTokenizer,
        {"clip_l_model_config": _CLIP_L, "clip_g_model_config": _CLIP_G},
    ),
    "flux": lambda: (
        comfy.text_encoders.flux.flux_clip(),
        comfy.text_encoders.flux.FluxTokenizer,
        {"clip_l_model_config": _CLIP_L, "t5xxl_model_config": _T5},
    ),
    "sd3": lambda: (
        comfy.text_encoders.sd3_clip.sd3_clip(),
        comfy.text_encoders.sd3_clip.SD3Tokenizer,
        {"clip_l_model_config": _CLIP_L, "clip_g_model_config": _CLIP_G, "t5xxl_model_config": _WIDE_T5},
    ),
    "sd3 clips": lambda: (
        comfy.text_encoders.sd3_clip.sd3_clip(t5=False),
        comfy.text_encoders.sd3_clip.SD3Tokenizer,
        {"clip_l_model_config": _CLIP_L, "clip_g_model_config": _CLIP_G},
    ),
    "t5": lambda: (
        comfy.text_encoders.pixart_t5.pixart_te(),
        comfy.text_encoders.pixart_t5.PixArtTokenizer,
        {"t5xxl_model_config": _T5},
    ),
    "qwen3": lambda: (
        comfy.text_encoders.z_image.te(),
        comfy.text_encoders.z_image.ZImageTokenizer,
        {"qwen3_4b_model_config": _QWEN},
    ),
}
# All but the one that is not small, and a part of it that is.
ENCODERS = tuple(kind for kind in _KINDS if not kind.startswith("sd3"))


def small_encoder(
    kind: str, inference: bool = True, seed: int = 0, options: dict[str, Any] | None = None
) -> comfy.sd.CLIP:
    """A CLIP of one of `ENCODERS`, or "sd3", or "sd3 clips", which is SD3's without T5.

    inference: its weights are inference tensors, as ComfyUI's loader nodes make them.
    options: more model options, as the loaders give them (type, operations, quantisation).
    """
    model, tokenizer, sizes = _KINDS[kind]()
    with torch.inference_mode(inference):
        clip = empty_encoder(model, tokenizer, {**sizes, **(options or {})})
        _randomise(clip.cond_stage_model, seed)
    return clip


def empty_encoder(model: Any, tokenizer: Any, sizes: dict[str, Any], data: dict[str, Any] | None = None) -> Any:
    """A CLIP whose weights are uninitialised memory; `data` is what its tokenizer reads from a model's file."""
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    with mock.patch.object(PreTrainedTokenizerBase, "from_pretrained", classmethod(_vocabulary)):
        return comfy.sd.CLIP(target, tokenizer_data=data or {}, model_options={"dtype": torch.float32, **sizes})


_from_pretrained: Any = vars(PreTrainedTokenizerBase)["from_pretrained"].__func__


def _read(kind: type, path: str, **options: Any) -> Any:
    """What ComfyUI's tokenizers read their words from."""
    return _from_pretrained(kind, path, **options)


_vocabulary: Any = functools.cache(_read)  # it takes longer than all else here


def _randomise(network: nn.Module, seed: int) -> None:
    """Normal weights of deviation 0.08; norms at one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif parameter.ndim == 0:
                continue
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.08)


def spiece(pad: int = 0, eos: int = 1, bos: int = 2) -> torch.Tensor:
    """A tokenizer file of SentencePiece, in which nearly every letter is a token; its special tokens are Gemma's."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red fish in deep water at night", "a wooden boat, cool and blurred"] * 4),
        model_writer=written,
        vocab_size=320,
        model_type="unigram",
        byte_fallback=True,
        hard_vocab_limit=False,
        pad_id=pad,
        eos_id=eos,
        bos_id=bos,
        unk_id=3,
        minloglevel=2,
    )
    return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)
