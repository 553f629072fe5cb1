"""Latents of the natural scenes, encoded once; and conditionings of captions, encoded when first met."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from .comfy_boot import DEVICE  # isort: skip
import comfy.sd1_clip

from ..loader import load_clip
from ..world.attributes import Scene
from ..world.captions import random_caption
from .data import natural_scenes
from .vae import train_vae

COUNT = 16_000


@torch.no_grad()
def encode_latents(folder: Path) -> Tensor:
    """Unit-variance latents `[COUNT, 16, 16, 16]` (fp16) of the first natural scenes."""
    path = folder / "latents.safetensors"
    if not path.exists():
        vae = train_vae(folder)
        images = natural_scenes(folder).images[:COUNT]
        encoded = torch.empty(COUNT, 16, 16, 16, dtype=torch.float16)
        for k in tqdm(range(0, COUNT, 32), desc="latents", mininterval=5):
            pictures = torch.from_numpy(images[k : k + 32]).permute(0, 3, 1, 2).float() / 255
            with torch.autocast(DEVICE.type, torch.bfloat16):
                latents = vae.taesd_encoder(pictures.to(DEVICE, memory_format=torch.channels_last))
            encoded[k : k + 32] = latents.float().cpu()
        save_file({"latents": encoded}, path.with_suffix(".partial"))
        os.replace(path.with_suffix(".partial"), path)
    return load_file(path)["latents"]


class Conditionings:
    """What the denoisers read of a caption: hidden states `[N, 77, 128]` and pooled vectors `[N, 128]`.

    Encoded by the very CLIP object that ComfyUI's text nodes use, so training and use cannot differ.
    """

    def __init__(self) -> None:
        self._clip = load_clip()
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        new = sorted({text for text in captions if text not in self._known})
        if new:
            self._encode(new)
        hidden, pooled = zip(*(self._known[text] for text in captions), strict=True)
        return torch.stack(hidden).float().to(DEVICE), torch.stack(pooled).float().to(DEVICE)

    @torch.no_grad()
    def _encode(self, captions: list[str]) -> None:
        tower: comfy.sd1_clip.SDClipModel = self._clip.cond_stage_model.clip_l
        rows = [[token for token, _ in self._clip.tokenize(text)["l"][0]] for text in captions]
        hidden, pooled = tower.encode(rows)[:2]
        for text, states, vector in zip(captions, hidden, pooled, strict=True):
            self._known[text] = (states.half(), vector.half())


def captions_for(scenes: list[Scene], chosen: np.ndarray, rng: np.random.Generator) -> list[str]:
    """A random caption for each chosen picture; a tenth are empty, so that the unconditional branch is learned."""
    return ["" if rng.random() < 0.1 else random_caption(scenes[k], rng) for k in chosen]
