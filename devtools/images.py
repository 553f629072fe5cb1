"""Images that a server made, as arrays, and several of them as one."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (250, 249, 246), (32, 33, 36), (120, 122, 128)


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


def card(title: str, sides: Sequence[tuple[str, np.ndarray]], below: str, width: int = 536) -> Image.Image:
    """A square thumbnail: grids of two columns side by side with a word below each, a title, and a line.

    The upper left corner is an image, since newer front ends lay a badge over it.
    """
    canvas = Image.new("RGB", (width, width), PAPER)
    draw = ImageDraw.Draw(canvas)
    margin, bottom = 12, 0
    room = (width - margin) // len(sides) - margin
    for k, (word, images) in enumerate(sides):
        left = margin + k * (room + margin)
        block = grid(images, 2)
        block = block.resize((room, round(block.height * room / block.width)))
        canvas.paste(block, (left, margin))
        bottom = margin + block.height
        draw.text((left + 4, bottom + 4), word, INK, _fitting(draw, word, 22, room))
    draw.text((margin, bottom + 40), title, INK, _fitting(draw, title, 40, width - 2 * margin))
    draw.text((margin, width - 34), below, FAINT, _fitting(draw, below, 20, width - 2 * margin))
    return canvas


def _fitting(
    draw: ImageDraw.ImageDraw, text: str, size: int, width: int
) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font, smaller where the text would be wider than `width`."""
    font = ImageFont.load_default(size)
    while size > 8 and draw.textlength(text, font) > width:
        size -= 1
        font = ImageFont.load_default(size)
    return font
