"""Whether an image is sound: the scene that the classifier reads is fitted to it, drawn again, and compared.

The classifier reads "heart" off half a heart. So its scene is drawn in the position, size, tilt and shades that suit
the image best, and the `residual` is the area in which the two clearly differ, as a share of the object's: where the
image has a colour that the drawing has nowhere near, or lacks one that the drawing has. Soft or
wobbling edges, other shades of a colour and a little asymmetry do not count; missing, additional, smeared and
mis-coloured parts do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .world.attributes import OBJECTS
from .world.draw import CENTRES, FILLS, GRADIENT, GROUNDS, RADII, SIZE, Paint, regions

CALIBRATION = Path(__file__).parent / "fidelity.json"
_SIDE = 64  # images are compared at half their size
_EXTENT = 1.35  # of a template, in radii from the object's middle
_TEMPLATE, _FINE = 100, 8  # samples a side, and finer ones averaged for each
_STEPS = 6
_AT_ONCE = 20  # images
_ROBUST = 0.12  # differences (0..1) beyond which a pixel loses its say in the fit
_REACH = (6.0, 6.0, 0.26, 0.3)  # pixels, pixels, log of the size, radians: how far a fit may go from what was read
_NUDGE = (0.25, 0.25, 0.02, 0.03)  # for finite differences
_FILL_REACH, _GROUND_REACH = 20 / 255, 16 / 255  # how far shades may be from those of the world's colours


@dataclass(frozen=True)
class Tolerance:
    """What does not count.

    shift: pixels of 128 by which an edge may lie elsewhere. shade: how far (in any channel, as a share of the contrast
    between object and background, which is taken to be 0.3 to 0.6) a colour may be off; twice that is wholly another.
    blur: standard deviation in pixels of 128 by which image and drawing are softened.
    """

    shift: int = 2
    shade: float = 0.2
    blur: float = 1.0


@dataclass(frozen=True)
class Fit:
    """Scenes fitted to N images, at 64 px.

    pose: `[N, 4]`, x and y in pixels, the logarithm of the radius in pixels, tilt in radians; shades: `[N, 2, 3]` of
    object and background, 0..1; drawing: `[N, 3, 64, 64]`; cover: `[N, 64, 64]`, the object's part of every pixel;
    contrast: `[N]`, between object and background, of the channel that has most.
    """

    pose: Tensor
    shades: Tensor
    drawing: Tensor
    cover: Tensor
    contrast: Tensor


def to_pixels(images: np.ndarray) -> Tensor:
    """`uint8 [N, 128, 128, 3]` to `[N, 3, 64, 64]` in 0..1."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(
            f"images is {images.dtype} {list(images.shape)}; it must be uint8 [N, {SIZE}, {SIZE}, 3], "
            "since the demo world draws no other size."
        )
    values = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return F.avg_pool2d(values, SIZE // _SIDE)


@torch.no_grad()
def fit(pixels: Tensor, read: Sequence[Mapping[str, str]]) -> Fit:
    """The scenes `read` (attribute to value) fitted to `pixels` `[N, 3, 64, 64]`.

    Starts from the place and size that were read, or from where the image differs from its background, whichever is
    nearer; then Levenberg-Marquardt over the four numbers of a pose, with weights that let gross differences count
    little: what is broken must not pull the rest out of place.
    """
    scenes = _Scenes(pixels, read)
    pose = scenes.best(_as_read(read), scenes.as_seen())
    low, high = pose - torch.tensor(_REACH), pose + torch.tensor(_REACH)
    nudges = torch.cat([torch.zeros(1, 4), torch.diag(torch.tensor(_NUDGE))])
    damping = torch.full((len(pose),), 0.1)
    colours = scenes.colours(pose)
    loss = scenes.loss(scenes.render(pose, colours)[0])
    for _ in range(_STEPS):
        base, *others = scenes.render_all(pose[None] + nudges[:, None], colours)
        slopes = torch.stack([(one - base).flatten(1) / by for one, by in zip(others, _NUDGE, strict=True)], 1)
        gap = (pixels - base).flatten(1)
        weighted = slopes / (1 + (gap / _ROBUST).square()).square()[:, None]
        normal, right = weighted @ slopes.mT, weighted @ gap[:, :, None]
        normal = normal + torch.diag_embed(torch.diagonal(normal, dim1=1, dim2=2) * damping[:, None] + 1e-4)
        tried = (pose + torch.linalg.solve(normal, right)[..., 0]).clamp(low, high)
        shades = scenes.colours(tried)
        new = scenes.loss(scenes.render(tried, shades)[0])
        better = new < loss
        pose, loss = torch.where(better[:, None], tried, pose), torch.where(better, new, loss)
        colours = torch.where(better[:, None, None], shades, colours)
        damping = torch.where(better, damping / 5, damping * 5)
    drawing, cover = scenes.render(pose, colours)
    return Fit(pose, colours, drawing, cover, (colours[:, 0] - colours[:, 1]).abs().amax(1))


@torch.no_grad()
def residuals(pixels: Tensor, fitted: Fit, tolerance: Tolerance) -> Tensor:
    """`[N]`: the area in which image and drawing clearly differ, as a share of the object's area."""
    image, drawing = (_blurred(x, tolerance.blur * _SIDE / SIZE) for x in (pixels, fitted.drawing))
    shift = tolerance.shift * _SIDE // SIZE
    differ = torch.maximum(_unlike(image, drawing, shift), _unlike(drawing, image, shift))
    shade = tolerance.shade * fitted.contrast.clamp(0.3, 0.6)[:, None, None]
    clear = ((differ - shade) / shade).clamp(0, 1)
    return clear.flatten(1).sum(1) / fitted.cover.flatten(1).sum(1).clamp(min=1)


def _unlike(one: Tensor, other: Tensor, shift: int) -> Tensor:
    """`[N, H, W]`: for each pixel of one the least difference (of the worst channel) to a pixel of the other nearby."""
    size = 2 * shift + 1
    padded = F.pad(other, (shift,) * 4, mode="replicate")
    height, width = one.shape[-2:]
    found = [
        (one - padded[..., y : y + height, x : x + width]).abs().amax(1)
        for y in range(size)
        for x in range(size)
        if (y - shift) ** 2 + (x - shift) ** 2 <= shift**2
    ]
    return torch.stack(found).amin(0)


def _blurred(pixels: Tensor, deviation: float) -> Tensor:
    if deviation <= 0:
        return pixels
    reach = max(1, round(3 * deviation))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    line = (line / line.sum()).to(pixels)
    flat = F.pad(pixels, (reach,) * 4, mode="replicate").flatten(0, 1)[:, None]
    flat = F.conv2d(F.conv2d(flat, line[None, None, :, None]), line[None, None, None, :])
    return flat.reshape(pixels.shape)


class _Scenes:
    """Drawings of the scenes read off some images: every object is a template of regions, which a pose places and a
    shade colours."""

    def __init__(self, pixels: Tensor, read: Sequence[Mapping[str, str]]) -> None:
        self._pixels, self._read = pixels, read
        self._templates = torch.stack([_template(one["object"], one["size"]) for one in read])
        own = torch.tensor([_own_paints(one["object"]).index(1.0) for one in read])
        # The object's own colour, and all of the object: where shades are measured.
        fills = self._templates[torch.arange(len(read)), own]
        self._areas = torch.stack([fills, self._templates.sum(1)], 1)
        nominal = [(FILLS[one["colour"]], GROUNDS[one["background"]]) for one in read]
        self._nominal = torch.tensor(nominal) / 255

    def colours(self, pose: Tensor) -> Tensor:
        """Shades `[N, 2, 3]` of object and background: medians of the image where the pose has them, and near the
        colours read."""
        fill, cover = _sampled(self._areas, pose).unbind(1)
        found = [
            _median_near(self._pixels, fill > 0.9, self._nominal[:, 0], _FILL_REACH),
            _median_near(self._pixels / _light(), cover < 0.05, self._nominal[:, 1], _GROUND_REACH),
        ]
        return torch.stack(found, 1)

    def render(self, pose: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
        """Drawings `[N, 3, 64, 64]` and covers `[N, 64, 64]` of poses `[N, 4]`."""
        return self._placed(self._painted(colours), pose, colours)

    def render_all(self, poses: Tensor, colours: Tensor) -> list[Tensor]:
        """Drawings of several poses of each scene, `[K, N, 4]`."""
        painted = self._painted(colours)
        return [self._placed(painted, pose, colours)[0] for pose in poses]

    def loss(self, drawing: Tensor) -> Tensor:
        """`[N]`, in which no pixel counts for more than 1."""
        square = ((self._pixels - drawing) / _ROBUST).square()
        return (square / (1 + square)).flatten(1).mean(1)

    def best(self, *poses: Tensor) -> Tensor:
        losses = [self.loss(self.render(pose, self.colours(pose))[0]) for pose in poses]
        first = torch.stack(losses).argmin(0)
        return torch.stack(poses)[first, torch.arange(len(first))]

    def as_seen(self) -> Tensor:
        """Poses from the centre and the spread of what differs from the background."""
        pose = _as_read(self._read)
        ground = self._nominal[:, 1, :, None, None] * _light()
        seen = ((self._pixels - ground).abs().amax(1) - 0.1).clamp(0, 0.2)
        cover = _sampled(self._areas, pose)[:, 1]
        (centre, spread), (expected, usual) = _moments(seen), _moments(cover)
        place, size = pose[:, :2] + centre - expected, pose[:, 2] + torch.log(spread / usual)
        moved, reach = torch.cat([place, size[:, None], pose[:, 3:]], 1), torch.tensor(_REACH)
        return moved.clamp(pose - reach, pose + reach)

    def _painted(self, colours: Tensor) -> Tensor:
        """Templates `[N, 4, 100, 100]`: colour, already times cover, and cover."""
        paints = [_paints(one["object"], own) for one, own in zip(self._read, colours[:, 0], strict=True)]
        mixed = torch.einsum("nrc,nrhw->nchw", torch.stack(paints), self._templates)
        return torch.cat([mixed, self._areas[:, 1:]], 1)

    def _placed(self, painted: Tensor, pose: Tensor, colours: Tensor) -> tuple[Tensor, Tensor]:
        placed = _sampled(painted, pose)
        ground = colours[:, 1, :, None, None] * _light()
        return placed[:, :3] + (1 - placed[:, 3:]) * ground, placed[:, 3]


def _as_read(read: Sequence[Mapping[str, str]]) -> Tensor:
    """Poses `[N, 4]` of the places and sizes read, upright."""
    rows = [(*CENTRES[one["place"]], RADII[one["size"]]) for one in read]
    x, y, radius = (torch.tensor(rows) * _SIDE).unbind(1)
    return torch.stack([x, y, radius.log(), torch.zeros_like(x)], 1)


def _moments(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Centre `[N, 2]` (x, y) and root mean square distance `[N]` from it."""
    total = weights.flatten(1).sum(1).clamp(min=1e-3)[:, None]
    line = torch.arange(_SIDE) + 0.5
    across, down = weights.sum(1) / total, weights.sum(2) / total
    x, y = (across * line).sum(1, keepdim=True), (down * line).sum(1, keepdim=True)
    square = (across * (line - x).square()).sum(1) + (down * (line - y).square()).sum(1)
    return torch.cat([x, y], 1), square.sqrt().clamp(min=0.5)


def _sampled(templates: Tensor, pose: Tensor) -> Tensor:
    """Templates `[N, C, 100, 100]` as poses place them, `[N, C, 64, 64]`; nothing outside of them."""
    line = torch.arange(_SIDE) + 0.5
    x, y = line - pose[:, 0, None], line - pose[:, 1, None]
    # Rotation and scale are linear: one line across and one down make the whole grid.
    cos, sin = pose[:, 3, None].cos(), pose[:, 3, None].sin()
    scale = 1 / (_EXTENT * pose[:, 2, None].exp())
    across = torch.stack([cos * x, -sin * x], -1) * scale[..., None]
    down = torch.stack([sin * y, cos * y], -1) * scale[..., None]
    grid = across[:, None] + down[:, :, None]
    return F.grid_sample(templates, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _median_near(pixels: Tensor, where: Tensor, nominal: Tensor, reach: float) -> Tensor:
    median = pixels.masked_fill(~where[:, None], torch.nan).flatten(2).nanmedian(2).values
    median = torch.where(where.flatten(1).any(1)[:, None], median, nominal)
    return median.clamp(nominal - reach, nominal + reach).clamp(0, 1)


@cache
def _template(obj: str, size: str) -> Tensor:
    """Cover `[R, 100, 100]` of each region by itself, as pixels of 64 see an object of this size."""
    masks = _fine(obj)
    side = masks.shape[-1]
    pixel = max(1, round(side / (2 * _EXTENT * RADII[size] * _SIDE)))  # of the image, in fine samples
    box = pixel + 1 - pixel % 2
    smooth = F.avg_pool2d(masks, (box, 1), stride=1, padding=(box // 2, 0))
    smooth = F.avg_pool2d(smooth, (1, box), stride=1, padding=(0, box // 2))
    found = F.avg_pool2d(smooth, _FINE)
    most = max(len(_fine(name)) for name in OBJECTS)
    return torch.cat([found, torch.zeros(most - len(found), *found.shape[1:])])


@cache
def _fine(obj: str) -> Tensor:
    return torch.from_numpy(regions(obj, _TEMPLATE * _FINE, _EXTENT)[1]).float()


@cache
def _own_paints(obj: str) -> list[Paint]:
    return regions(obj, 64, _EXTENT)[0]


def _paints(obj: str, fill: Tensor) -> Tensor:
    """Colour `[R, 3]` of each region of an object of this shade `[3]`."""
    rows = [_painted(paint, fill) for paint in _own_paints(obj)]
    most = max(len(_fine(name)) for name in OBJECTS)
    return torch.stack([*rows, *[torch.zeros(3)] * (most - len(rows))])


def _painted(paint: Paint, fill: Tensor) -> Tensor:
    if isinstance(paint, tuple):
        return torch.tensor(paint) / 255
    return 1 - (1 - fill) / paint**1.6 if paint > 1 else fill * paint


@cache
def _light() -> Tensor:
    """`[64, 1]`, the background's light from top to bottom."""
    return torch.linspace(*GRADIENT, _SIDE)[:, None]


class Judge:
    """Tells broken images from sound ones, as `fidelity.json` has it (`python -m benchmarks.calibrate_fidelity`)."""

    def __init__(self, threshold: float, tolerance: Tolerance | None = None) -> None:
        self.threshold = threshold
        self.tolerance = tolerance or Tolerance()

    @classmethod
    def load(cls, path: Path = CALIBRATION) -> Judge:
        """Raises ValueError for a file that is damaged."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            threshold = float(found["threshold"])
            if not 0 < threshold < 1:
                raise ValueError(f"threshold is {threshold}; it must be above 0 and below 1")
            return cls(threshold, Tolerance(**found["tolerance"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}); restore it or run `python -m benchmarks.calibrate_fidelity`."
            ) from error

    def residuals(self, images: np.ndarray, read: Sequence[Mapping[str, str]]) -> Tensor:
        """`[N]` of images `uint8 [N, 128, 128, 3]` of which the classifier has read these attributes."""
        pixels = to_pixels(images)
        if len(read) != len(images):
            raise ValueError(f"read has {len(read)} entries; it must have one for each of the {len(images)} images.")
        parts = [slice(k, k + _AT_ONCE) for k in range(0, len(images), _AT_ONCE)]
        return torch.cat([residuals(pixels[p], fit(pixels[p], read[p]), self.tolerance) for p in parts])

    def broken(self, found: Tensor) -> Tensor:
        """Which residuals `[N]` are of broken images, bool `[N]`."""
        return found > self.threshold
