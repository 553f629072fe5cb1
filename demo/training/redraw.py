"""Images as they were meant: what a model made is read, fitted and drawn again by the world itself.

A model's image of a noise says which scene belongs to that noise, and where; that it is half red and half pink, or a
star without points, is no lesson for another model. So it learns the drawing of that scene: at the same position, size
and tilt and in the same shades, as far as the world's own drawings go, and with what the caption states.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .comfy_boot import DEVICE, autocast  # isort: skip

from ..fidelity import fit, to_pixels
from ..scorer import Scorer
from ..world.captions import stated_in
from ..world.draw import (
    CENTRES,
    FILL_JITTER,
    FILLS,
    GROUND_JITTER,
    GROUNDS,
    PLACE_JITTER,
    RADII,
    RGB,
    SIZE_JITTER,
    TILT_JITTER,
    Look,
    painted,
)
from . import vae


class Redrawn:
    """Latents `[N, 16, 16, 16]` of a model's images, and their captions, to latents of what was meant."""

    def __init__(self) -> None:
        self._vae = vae.trained()
        self._scorer = Scorer.load()

    @torch.no_grad()
    def __call__(self, latents: Tensor, captions: list[str]) -> Tensor:
        parts = [slice(k, k + vae.AT_ONCE) for k in range(0, len(latents), vae.AT_ONCE)]
        images = np.concatenate([self._decoded(latents[part]) for part in parts])
        drawn = self.drawings(images, captions)
        return torch.cat([vae.encoded(self._vae, drawn[part]) for part in parts])

    def drawings(self, images: np.ndarray, captions: list[str]) -> np.ndarray:
        """Images `uint8 [N, 128, 128, 3]` drawn again."""
        stated = [stated_in(text) if text else {} for text in captions]
        meant = [{**one, **by} for one, by in zip(self._scorer.read(images), stated, strict=True)]
        pixels = to_pixels(images)
        found = fit(pixels, meant)
        return np.stack(
            [
                painted(one["object"], _look(one, pose / pixels.shape[-1], tilt, shades))
                for one, pose, tilt, shades in zip(
                    meant, _lengths(found.pose).numpy(), found.pose[:, 3].tolist(), found.shades.numpy(), strict=True
                )
            ]
        )

    def _decoded(self, latents: Tensor) -> np.ndarray:
        with autocast():
            decoded = self._vae.taesd_decoder(latents.to(DEVICE, memory_format=torch.channels_last)).float()
        return (255 * decoded.clamp(0, 1)).permute(0, 2, 3, 1).cpu().numpy().astype("uint8")


def _lengths(pose: Tensor) -> Tensor:
    """x, y and radius `[N, 3]`, in pixels."""
    return torch.cat([pose[:, :2], pose[:, 2:3].exp()], 1)


def _look(meant: dict[str, str], lengths: np.ndarray, tilt: float, shades: np.ndarray) -> Look:
    """What was fitted, within what the world draws under these attributes. lengths: shares of the image's side."""
    centre, radius = CENTRES[meant["place"]], RADII[meant["size"]]
    x, y = (float(np.clip(v, c - PLACE_JITTER, c + PLACE_JITTER)) for v, c in zip(lengths[:2], centre, strict=True))
    return Look(
        ground=_shade(shades[1], GROUNDS[meant["background"]], GROUND_JITTER),
        centre=(x, y),
        radius=float(np.clip(lengths[2], radius * (1 - SIZE_JITTER), radius * (1 + SIZE_JITTER))),
        tilt=float(np.clip(tilt, -TILT_JITTER, TILT_JITTER)),
        fill=_shade(shades[0], FILLS[meant["colour"]], FILL_JITTER),
    )


def _shade(found: np.ndarray, nominal: RGB, jitter: int) -> RGB:
    around = np.array(nominal)
    r, g, b = np.clip(255 * found, around - jitter, around + jitter).clip(0, 255).round().astype(int).tolist()
    return r, g, b
