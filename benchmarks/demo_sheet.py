"""Contact sheets and the table: the demo's results for the eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.table import Table

PAPER, INK, FAINT, CARD = (250, 249, 246), (32, 33, 36), (120, 122, 128), (255, 255, 255)
BROKEN = (214, 20, 30)
MARGIN, GAP, BLOCK_GAP, LABEL_WIDTH, HEAD_HEIGHT = 28, 6, 30, 190, 74


@dataclass(frozen=True)
class Block:
    """Images of one method: a title, a line of figures, and per prompt an array `uint8 [N, H, W, 3]`.

    `broken` says per prompt which images get a red mark; None: none do.
    """

    title: str
    caption: str
    rows: Sequence[np.ndarray]
    broken: Sequence[Sequence[bool]] | None = None


def contact_sheet(labels: Sequence[str], blocks: Sequence[Block], columns: int, side: int = 128) -> Image.Image:
    """Prompts downwards, the first `columns` images of each rightwards, methods side by side.

    Args:
        labels: the prompts; every block has one row for each.
        blocks: the methods to show, from left to right.
        columns: images of a prompt in each block; fewer where a row has fewer.
        side: edge length of an image on the sheet in pixels.
    """
    for block in blocks:
        if len(block.rows) != len(labels):
            raise ValueError(f"Block {block.title!r} has {len(block.rows)} rows; there are {len(labels)} labels.")
    step = side + GAP
    block_width = columns * step - GAP
    width = 2 * MARGIN + LABEL_WIDTH + len(blocks) * block_width + (len(blocks) - 1) * BLOCK_GAP
    height = 2 * MARGIN + HEAD_HEIGHT + len(labels) * step - GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)

    for row, label in enumerate(labels):
        middle = MARGIN + HEAD_HEIGHT + row * step + side // 2
        text = _wrapped(draw, label, _font(17), LABEL_WIDTH - 16)
        draw.multiline_text((MARGIN, middle), text, INK, _font(17), anchor="lm", spacing=5)

    for k, block in enumerate(blocks):
        left = MARGIN + LABEL_WIDTH + k * (block_width + BLOCK_GAP)
        draw.text((left, MARGIN), _cut(draw, block.title, _font(21), block_width), INK, _font(21))
        draw.text((left, MARGIN + 32), _cut(draw, block.caption, _font(15), block_width), FAINT, _font(15))
        for row, images in enumerate(block.rows):
            for column, image in enumerate(images[:columns]):
                corner = (left + column * step, MARGIN + HEAD_HEIGHT + row * step)
                small = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
                sheet.paste(small, corner, _rounded(side))
                if block.broken is not None and block.broken[row][column]:
                    x, y, size = corner[0] + side - 4, corner[1] + 4, max(5, side // 10)
                    draw.ellipse((x - size, y, x, y + size), BROKEN, PAPER)
    return sheet


def caption(row: dict[str, Any]) -> str:
    """A row's figures in one line."""
    shown = f"adherence {row['adherence']:.0%}   sound {row['fidelity']:.0%}   rare {row['rare_share']:.0%}"
    return f"{shown}   Vendi {row['vendi']:.2f}   quality x Vendi {row['quality_vendi']:.2f}"


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of figures.json as a table that fits a narrow terminal; a line between models.

    A star marks rows of fewer prompts, which do not compare with the others.
    """
    attributes = list(dict.fromkeys(name for row in rows for name in row["effective_number"]))
    shown = Table(box=box.SIMPLE_HEAD, padding=0)
    for name in ("model", "method"):
        shown.add_column(name, no_wrap=True)
    for name in (
        "CFG",
        "ad-\nher",
        "fi-\ndel",
        "qual\nVen.",
        "Ven-\ndi",
        *(f"eff.\n{name[:4]}" for name in attributes),
    ):
        shown.add_column(name, justify="right", no_wrap=True)
    for name in ("ra-\nre", "MSS", "cen-\ntred", "s"):
        shown.add_column(name, justify="right", no_wrap=True)
    most = max((row["prompts"] for row in rows), default=0)
    for k, row in enumerate(rows):
        numbers = (row["effective_number"].get(name) for name in attributes)
        shown.add_row(
            row["model"],
            row["method"],
            f"{row['cfg']:g}{'*' if row['prompts'] < most else ''}",
            f"{row['adherence']:.0%}",
            f"{row['fidelity']:.0%}",
            f"{row['quality_vendi']:.2f}",
            f"{row['vendi']:.2f}",
            *("-" if number is None else f"{number:.2f}" for number in numbers),
            f"{row['rare_share']:.0%}",
            f"{row['mss']:.2f}",
            f"{row['mss_centred']:.2f}",
            f"{row['seconds']:.0f}",
            end_section=k + 1 < len(rows) and rows[k + 1]["model"] != row["model"],
        )
    return shown


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # Pillow's own, so that every machine draws the same


def _rounded(side: int) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), radius=side // 16, fill=255)
    return mask


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines).strip()


def _cut(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    """The text, shortened at its end until it fits, so that neighbouring blocks' titles do not run together."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip(" ·") + "…"
