"""Trained models to the weight files of the pack: fp16 or packed safetensors, and a manifest of their checksums."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..loader import (
    CLIP_FILE,
    DISTILLED_FILE,
    MMDIT_FILE,
    TURBO_BASE_FILE,
    TURBO_FILE,
    TURBO_TEXT_FILE,
    UNCLIP_FILE,
    UNET_FILE,
    VAE_FILE,
    WEIGHTS,
)
from ..packing import pack
from ..scorer import WEIGHTS as SCORER_FILE

if TYPE_CHECKING:
    from transformers import CLIPModel

    from .clip import Vocabulary


def export_clip(folder: Path) -> None:
    from .clip import train_clip

    _write_clip(*train_clip(folder))


def export_clip_text(folder: Path) -> None:
    from .clip_places import train_clip_text

    _write_clip(*train_clip_text(folder))


def export_clip_vision(folder: Path) -> None:
    from .clip_places import train_clip_vision

    _write_clip(*train_clip_vision(folder))


def _write_clip(model: CLIPModel, vocabulary: Vocabulary) -> None:
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name.endswith("position_ids") or name == "logit_scale":
            continue
        if name == "text_model.embeddings.token_embedding.weight":
            weights["text.token_embedding.rows"] = value
        elif name.startswith("text_"):
            weights[f"text.{name}"] = value
        else:
            weights[f"vision.{name}"] = value
    _write(WEIGHTS / CLIP_FILE, weights, extra={"text.token_embedding.ids": torch.tensor(vocabulary.ids)})


def export_scorer(folder: Path) -> None:
    from .scorer import train_scorer

    _write(SCORER_FILE, train_scorer(folder).state_dict())


def export_vae(folder: Path) -> None:
    from .vae import train_vae

    _write(WEIGHTS / VAE_FILE, train_vae(folder).state_dict())


def export_unet(folder: Path) -> None:
    from .unet import train_unet

    _write(WEIGHTS / UNET_FILE, pack(train_unet(folder).state_dict()))


def export_mmdit(folder: Path) -> None:
    from .mmdit import train_mmdit

    _write(WEIGHTS / MMDIT_FILE, train_mmdit(folder).state_dict())


def export_distilled(folder: Path) -> None:
    from .distil import train_distilled

    _write(WEIGHTS / DISTILLED_FILE, train_distilled(folder).state_dict())


def export_distilled_crisp(folder: Path) -> None:
    from .crisp import train_distilled_crisp

    _write(WEIGHTS / DISTILLED_FILE, train_distilled_crisp(folder).state_dict())


def export_unet_places(folder: Path) -> None:
    from .places import train_unet_places

    _write(WEIGHTS / UNET_FILE, pack(train_unet_places(folder).state_dict()))


def export_mmdit_places(folder: Path) -> None:
    from .places import train_mmdit_places

    _write(WEIGHTS / MMDIT_FILE, train_mmdit_places(folder).state_dict())


def export_mmdit_own_steps(folder: Path) -> None:
    from .own_steps import train_mmdit_own_steps

    _write(WEIGHTS / MMDIT_FILE, train_mmdit_own_steps(folder).state_dict())


def export_mmdit_own_steps_again(folder: Path) -> None:
    from .own_steps import train_mmdit_own_steps_again

    _write(WEIGHTS / MMDIT_FILE, train_mmdit_own_steps_again(folder).state_dict())


def export_unet_own_steps(folder: Path) -> None:
    from .own_steps import train_unet_own_steps

    _write(WEIGHTS / UNET_FILE, pack(train_unet_own_steps(folder).state_dict()))


def export_mmdit_rare(folder: Path) -> None:
    from .rare_words import train_mmdit_rare

    _write(WEIGHTS / MMDIT_FILE, train_mmdit_rare(folder).state_dict())


def export_mmdit_rare_more(folder: Path) -> None:
    from .rare_words import train_mmdit_rare_more

    _write(WEIGHTS / MMDIT_FILE, train_mmdit_rare_more(folder).state_dict())


def export_unet_rare(folder: Path) -> None:
    from .rare_words import train_unet_rare

    _write(WEIGHTS / UNET_FILE, pack(train_unet_rare(folder).state_dict()))


def export_distilled_rare(folder: Path) -> None:
    from .rare_words import train_distilled_rare

    _write(WEIGHTS / DISTILLED_FILE, train_distilled_rare(folder).state_dict())


def export_unclip(folder: Path) -> None:
    """What differs from the UNet's own weight file."""
    from .unclip import is_learned, train_unclip

    learned = {name: value for name, value in train_unclip(folder).state_dict().items() if is_learned(name)}
    _write(WEIGHTS / UNCLIP_FILE, learned)


def export_turbo_text(folder: Path) -> None:
    from .turbo_text import Reading, train_turbo_text

    model, words = train_turbo_text(folder)
    assert isinstance(model, Reading)
    weights = model.qwen.model.state_dict()
    table = weights.pop("embed_tokens.weight").half()
    known = len(words.ids)
    extra = {
        "embed_tokens.ids": torch.tensor(words.ids),
        "embed_tokens.rows": table[:known].contiguous(),
        "embed_tokens.others": table[known:].contiguous(),
    }
    _write(WEIGHTS / TURBO_TEXT_FILE, pack(weights), extra)


def export_turbo_base(folder: Path) -> None:
    from .turbo import train_turbo_base

    _write(WEIGHTS / TURBO_BASE_FILE, pack(train_turbo_base(folder).state_dict()))


def export_turbo_base_more(folder: Path) -> None:
    from .turbo_base_more import train_turbo_base_more

    _write(WEIGHTS / TURBO_BASE_FILE, pack(train_turbo_base_more(folder).state_dict()))


def export_turbo_base_own(folder: Path) -> None:
    from .turbo_base_own import train_turbo_base_own

    _write(WEIGHTS / TURBO_BASE_FILE, pack(train_turbo_base_own(folder).state_dict()))


def export_turbo_base_own_again(folder: Path) -> None:
    from .turbo_base_own import train_turbo_base_own_again

    _write(WEIGHTS / TURBO_BASE_FILE, pack(train_turbo_base_own_again(folder).state_dict()))


def export_turbo(folder: Path) -> None:
    from .turbo_distil import train_turbo

    _write(WEIGHTS / TURBO_FILE, pack(train_turbo(folder).state_dict()))


def export_turbo_crisp(folder: Path) -> None:
    from .turbo_crisp import train_turbo_crisp

    _write(WEIGHTS / TURBO_FILE, pack(train_turbo_crisp(folder).state_dict()))


def export_turbo_led(folder: Path) -> None:
    from .turbo_led import train_turbo_led

    _write(WEIGHTS / TURBO_FILE, pack(train_turbo_led(folder).state_dict()))


def export_turbo_rare(folder: Path) -> None:
    from .turbo_rare import train_turbo_rare

    _write(WEIGHTS / TURBO_FILE, pack(train_turbo_rare(folder).state_dict()))


def export_turbo_rare_again(folder: Path) -> None:
    from .turbo_rare import train_turbo_rare_again

    _write(WEIGHTS / TURBO_FILE, pack(train_turbo_rare_again(folder).state_dict()))


def export_turbo_rare_more(folder: Path) -> None:
    from .turbo_rare import train_turbo_rare_more

    _write(WEIGHTS / TURBO_FILE, pack(train_turbo_rare_more(folder).state_dict()))


def _write(path: Path, weights: dict[str, Tensor], extra: dict[str, Tensor] | None = None) -> None:
    """Save, floating point as fp16, and renew the manifest that set-up checks the files against."""
    halves = {
        name: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in weights.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({**halves, **(extra or {})}, path, metadata={"format": "pt"})
    files = sorted(WEIGHTS.rglob("*.safetensors"))
    sums = {file.relative_to(WEIGHTS).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (WEIGHTS / "manifest.json").write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
