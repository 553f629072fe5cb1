"""Images that a server made, as arrays, and several of them as one."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def decode(file: bytes) -> np.ndarray:
    """An image file as `uint8 [H, W, 3]`."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def grid(images: np.ndarray, columns: int, side: int = 128, gap: int = 4) -> Image.Image:
    """Images `uint8 [N, H, W, 3]` in rows of `columns`, without words: a thumbnail."""
    rows = -(-len(images) // columns)
    step = side + gap
    canvas = Image.new("RGB", (columns * step + gap, rows * step + gap), (255, 255, 255))
    for k, image in enumerate(images):
        corner = (gap + k % columns * step, gap + k // columns * step)
        canvas.paste(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS), corner)
    return canvas
