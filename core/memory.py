"""Pictures remembered across queue runs, as small latents in a safetensors file."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

GRID = 32  # cells a side: finer than any comparison needs, and a picture of 16 channels takes 32 KiB
_NAME = "latents"


def remember(path: Path, latents: Tensor) -> int:
    """Appends latents `[B, C, H, W]` or `[B, C, T, H, W]`, averaged to a 32 x 32 grid, to the file; returns how many it
    holds now. The file is replaced in one step, so that an interrupted run leaves the old one.

    Raises ValueError for latents of another kind than the file's, empty ones, and a file that cannot be read.
    """
    if latents.ndim not in (4, 5):
        raise ValueError(f"latent has shape {list(latents.shape)}; it must be [B, C, H, W] or [B, C, T, H, W].")
    if torch.count_nonzero(latents) == 0:
        raise ValueError("latent is empty (zero everywhere): there is no picture to remember.")
    small = _to_grid(latents.detach().cpu().float()).half()
    known = recall(path)
    if known is not None:
        if known.shape[1:] != small.shape[1:]:
            raise ValueError(
                f"{path.name} holds latents of shape {list(known.shape[1:])}, the new ones {list(small.shape[1:])}: "
                "they come from another kind of model. Choose another name."
            )
        small = torch.cat([known, small])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file({_NAME: small.contiguous()}, unfinished)
    os.replace(unfinished, path)
    return len(small)


def recall(path: Path, first: int = 0) -> Tensor | None:
    """The first so many remembered latents `[M, C, ..., 32, 32]` (0: all), half precision; None without a file.

    Raises ValueError for a file that cannot be read.
    """
    if not path.is_file():
        return None
    try:
        latents = load_file(path)[_NAME]
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}). Delete it to begin anew.") from error
    return latents[:first] if first else latents


def _to_grid(latents: Tensor) -> Tensor:
    if latents.ndim == 4:
        return F.adaptive_avg_pool2d(latents, (GRID, GRID))
    return F.adaptive_avg_pool3d(latents, (latents.shape[2], GRID, GRID))
