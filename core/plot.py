"""Images of an optimisation: how prompt variants came to lie apart, and the way of cosines step by step."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

SIDE, MARGIN = 256, 40
INK, PAPER, LINE = (40, 40, 40), (255, 255, 255), (150, 150, 150)
_COLD, _WARM = np.array([33, 60, 110]), np.array([250, 225, 110])


def variants_plot(pairwise: Tensor, cosines: Tensor, kappa: float, title: str) -> Tensor:
    """IMAGE `[1, H, W, 3]`, 0..1: cosines between variants `[N, N]` as a heat map, and the cosine of every variant to
    the prompt after each step, `[S + 1, N]`, as curves with a line at kappa."""
    image = Image.new("RGB", (2 * SIDE + 3 * MARGIN, SIDE + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 4), title, fill=INK)
    _heat_map(image, draw, pairwise)
    left = 2 * MARGIN + SIDE
    draw.text((left, 22), "cosine to the prompt, step by step", fill=INK)
    _curves(draw, cosines, kappa, left)
    return _as_image(image)


def curves_plot(cosines: Tensor, goal: float | None, title: str) -> Tensor:
    """IMAGE `[1, H, W, 3]`, 0..1: cosines after each step, `[S + 1, N]`, one curve for each variant, with a line at the
    goal if there is one."""
    image = Image.new("RGB", (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((8, 12), title, fill=INK)
    _curves(draw, cosines, goal, MARGIN)
    return _as_image(image)


def _as_image(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None]


def _heat_map(image: Image.Image, draw: ImageDraw.ImageDraw, pairwise: Tensor) -> None:
    count = len(pairwise)
    others = pairwise[~torch.eye(count, dtype=torch.bool)]
    low, high = (others.min().item(), others.max().item()) if count > 1 else (0.0, 1.0)
    shares = ((pairwise - low) / max(high - low, 1e-6)).clamp(0, 1).numpy()[:, :, None]
    colours = (_COLD + shares * (_WARM - _COLD)).astype(np.uint8)
    image.paste(Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.NEAREST), (MARGIN, MARGIN))
    draw.text((MARGIN, 22), "cosine between variants", fill=INK)
    draw.text((MARGIN, MARGIN + SIDE + 6), f"{low:.3f} (dark) to {high:.3f} (light)", fill=INK)


def _curves(draw: ImageDraw.ImageDraw, cosines: Tensor, goal: float | None, left: float) -> None:
    top = MARGIN
    draw.rectangle((left, top, left + SIDE, top + SIDE), outline=LINE)
    lowest = cosines.min().item()
    low = (lowest if goal is None else min(lowest, goal)) - 0.05
    high = 1.0

    def place(step: float, value: float) -> tuple[float, float]:
        across = step / max(len(cosines) - 1, 1)
        return left + across * SIDE, top + (high - value) / (high - low) * SIDE

    if goal is not None:
        draw.line([place(0, goal), place(len(cosines) - 1, goal)], fill=(200, 60, 60))
    for curve in cosines.T.tolist():
        points = [place(step, value) for step, value in enumerate(curve)]
        if len(points) > 1:
            draw.line(points, fill=tuple(_COLD.tolist()))
    red = "" if goal is None else f"; red: {goal:.3f}"
    draw.text((left, top + SIDE + 6), f"0 to {len(cosines) - 1} steps{red}", fill=INK)
    draw.text((left + SIDE - 30, top + 2), "1.0", fill=INK)
    draw.text((left + SIDE - 34, top + SIDE - 14), f"{low:.2f}", fill=INK)
