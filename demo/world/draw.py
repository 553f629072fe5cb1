"""Scenes to images: anti-aliased drawings with a little life in them (jitter, shading, detail)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from .attributes import Scene

SIZE = 128  # pixels a side
_SUPERSAMPLING = 4  # drawn that much larger, then averaged down: smooth edges

FILLS = {
    "red": (218, 40, 48),
    "orange": (244, 134, 28),
    "yellow": (250, 212, 44),
    "green": (58, 160, 66),
    "teal": (24, 170, 172),
    "blue": (46, 92, 220),
    "purple": (132, 62, 190),
    "pink": (246, 130, 186),
}
GROUNDS = {
    "white": (250, 249, 246),
    "grey": (158, 162, 170),
    "navy": (30, 38, 84),
    "peach": (255, 208, 178),
    "mint": (188, 236, 208),
}
RADII = {"small": 0.125, "medium": 0.20, "large": 0.29}  # of the image's side
CENTRES = {
    "centre": (0.5, 0.5),
    "left": (0.29, 0.5),
    "right": (0.71, 0.5),
    "top": (0.5, 0.29),
    "bottom": (0.5, 0.71),
}
PLACE_JITTER, SIZE_JITTER, TILT_JITTER = 0.025, 0.06, 0.10  # shares of the side and of the radius; radians
FILL_JITTER, GROUND_JITTER = 8, 4  # of 255
GRADIENT = (1.03, 0.95)  # light of the background at the top and at the bottom
_BARK, _ROOF, _DOOR, _PANE, _STRING = (110, 78, 58), (92, 66, 72), (84, 58, 50), (252, 240, 200), (120, 112, 112)

Point = tuple[float, float]
RGB = tuple[int, int, int]
Paint = float | RGB  # a number: the object's own colour, darkened (below 1) or lightened (above 1)


@dataclass(frozen=True)
class Look:
    """What no attribute names. Centre and radius are shares of the image's side, the tilt is in radians."""

    ground: RGB
    centre: Point
    radius: float
    tilt: float
    fill: RGB


def draw(scene: Scene, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """The image of a scene, uint8 `[size, size, 3]`. `rng` gives the jitter that no attribute names."""
    return painted(scene.object, jittered(scene, rng), size)


def jittered(scene: Scene, rng: np.random.Generator) -> Look:
    ground = _jitter(GROUNDS[scene.background], rng, GROUND_JITTER)
    x, y = (c + rng.uniform(-PLACE_JITTER, PLACE_JITTER) for c in CENTRES[scene.place])
    radius = RADII[scene.size] * rng.uniform(1 - SIZE_JITTER, 1 + SIZE_JITTER)
    tilt = rng.uniform(-TILT_JITTER, TILT_JITTER)
    return Look(ground, (x, y), radius, tilt, _jitter(FILLS[scene.colour], rng, FILL_JITTER))


def painted(obj: str, look: Look, size: int = SIZE) -> np.ndarray:
    """The image of an object, uint8 `[size, size, 3]`."""
    side = size * _SUPERSAMPLING
    canvas = Image.fromarray(_background(look.ground, side))
    x, y = look.centre
    pen = _Pen(ImageDraw.Draw(canvas), (x * side, y * side), look.radius * side, look.tilt, look.fill)
    _OBJECTS[obj](pen)
    return np.asarray(canvas.reduce(_SUPERSAMPLING))


@dataclass
class _Pen:
    """Draws in the object's own coordinates: (0, 0) its middle, 1 its radius, y downwards."""

    ink: ImageDraw.ImageDraw
    centre: Point
    radius: float
    tilt: float
    fill: RGB

    def polygon(self, points: list[Point], fill: Paint) -> None:
        self.ink.polygon([self._place(p) for p in points], fill=self._ink(fill))

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Paint) -> None:
        turns = [2 * pi * k / 96 for k in range(96)]
        self.polygon([(x + rx * cos(a), y + ry * sin(a)) for a in turns], fill)

    def line(self, points: list[Point], width: float, fill: Paint) -> None:
        width = round(width * self.radius)
        self.ink.line([self._place(p) for p in points], fill=self._ink(fill), width=width, joint="curve")

    def _ink(self, paint: Paint) -> RGB | int:
        return paint if isinstance(paint, tuple) else _scaled(self.fill, paint)

    def _place(self, point: Point) -> Point:
        x, y = point
        c, s = cos(self.tilt), sin(self.tilt)
        return self.centre[0] + self.radius * (c * x - s * y), self.centre[1] + self.radius * (s * x + c * y)


def _heart(pen: _Pen) -> None:
    turns = [2 * pi * k / 120 for k in range(120)]
    outline = [(sin(t) ** 3, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 16 - 0.05) for t in turns]
    pen.polygon(outline, 0.82)
    pen.polygon([(0.90 * x, 0.90 * y - 0.03) for x, y in outline], 1.0)
    pen.ellipse(-0.44, -0.44, 0.17, 0.12, 1.35)


def _star(pen: _Pen) -> None:
    def points(scale: float) -> list[Point]:
        turns = [(-pi / 2 + pi * k / 5, 1.0 if k % 2 == 0 else 0.46) for k in range(10)]
        return [(scale * r * cos(a) * 1.08, scale * r * sin(a) * 1.08 + 0.06) for a, r in turns]

    pen.polygon(points(1.0), 0.82)
    pen.polygon(points(0.82), 1.0)


def _fish(pen: _Pen) -> None:
    pen.polygon([(0.45, 0.0), (1.08, -0.52), (0.94, 0.0), (1.08, 0.52)], 0.82)
    pen.polygon([(-0.25, -0.42), (0.20, -0.78), (0.35, -0.30)], 0.82)
    pen.ellipse(-0.18, 0.0, 0.82, 0.54, 1.0)
    pen.ellipse(-0.20, 0.22, 0.56, 0.24, 1.22)
    pen.ellipse(-0.58, -0.10, 0.15, 0.15, (252, 252, 252))
    pen.ellipse(-0.61, -0.10, 0.075, 0.075, (30, 30, 36))


def _tree(pen: _Pen) -> None:
    pen.polygon([(-0.14, 0.2), (0.14, 0.2), (0.19, 1.0), (-0.19, 1.0)], _BARK)
    for x, y, r in ((-0.42, 0.02, 0.44), (0.42, 0.02, 0.44), (0.0, -0.44, 0.54)):
        pen.ellipse(x, y, r, r, 0.84)
    for x, y, r in ((-0.40, -0.04, 0.37), (0.38, -0.04, 0.37), (-0.02, -0.48, 0.46), (0.0, -0.1, 0.36)):
        pen.ellipse(x, y, r, r, 1.0)


def _balloon(pen: _Pen) -> None:
    pen.line([(0.0, 0.5), (0.07, 0.68), (-0.06, 0.84), (0.03, 1.02)], 0.07, _STRING)
    pen.polygon([(0.0, 0.40), (-0.15, 0.60), (0.15, 0.60)], 0.82)
    pen.ellipse(0.0, -0.26, 0.66, 0.76, 0.84)
    pen.ellipse(-0.04, -0.30, 0.58, 0.68, 1.0)
    pen.ellipse(-0.26, -0.56, 0.13, 0.19, 1.35)


def _house(pen: _Pen) -> None:
    pen.polygon([(-0.72, -0.18), (0.72, -0.18), (0.72, 0.90), (-0.72, 0.90)], 1.0)
    pen.polygon([(-0.72, 0.78), (0.72, 0.78), (0.72, 0.90), (-0.72, 0.90)], 0.82)
    pen.polygon([(0.0, -0.96), (0.94, -0.14), (-0.94, -0.14)], _ROOF)
    pen.polygon([(-0.46, 0.26), (-0.12, 0.26), (-0.12, 0.90), (-0.46, 0.90)], _DOOR)
    pen.polygon([(0.12, 0.16), (0.50, 0.16), (0.50, 0.50), (0.12, 0.50)], _PANE)


_OBJECTS = {"heart": _heart, "star": _star, "fish": _fish, "tree": _tree, "balloon": _balloon, "house": _house}


@dataclass
class _RegionPen(_Pen):
    """Draws which paint is where: 1 for the first paint that is used, 2 for the next."""

    paints: list[Paint] = field(default_factory=list)

    def _ink(self, paint: Paint) -> int:
        if paint not in self.paints:
            self.paints.append(paint)
        return self.paints.index(paint) + 1


def regions(obj: str, side: int, extent: float) -> tuple[list[Paint], np.ndarray]:
    """The paints of an object, and where each of them is seen, bool `[R, side, side]`.

    extent: how far the square reaches from the object's middle, in its radii. No jitter, no tilt, hard edges.
    """
    canvas = Image.new("L", (side, side))
    pen = _RegionPen(ImageDraw.Draw(canvas), (side / 2, side / 2), side / 2 / extent, 0.0, (0, 0, 0))
    _OBJECTS[obj](pen)
    return pen.paints, np.asarray(canvas) == np.arange(1, len(pen.paints) + 1)[:, None, None]


def _background(colour: RGB, side: int) -> np.ndarray:
    """A soft vertical gradient, a little lighter at the top."""
    light = np.linspace(*GRADIENT, side)[:, None, None]
    column = np.clip(np.array(colour)[None, None, :] * light, 0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(column, (side, side, 3)))


def _jitter(colour: RGB, rng: np.random.Generator, amount: float) -> RGB:
    r, g, b = np.clip(np.array(colour) + rng.uniform(-amount, amount, 3), 0, 255).round().astype(int).tolist()
    return r, g, b


def _scaled(colour: RGB, factor: float) -> RGB:
    if factor > 1:
        r, g, b = (round(255 - (255 - c) / factor**1.6) for c in colour)
    else:
        r, g, b = (round(c * factor) for c in colour)
    return r, g, b
