"""Drawings of the demo world with what makes an image broken: what a measure of fidelity must see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from devtools.pack import load_pack

load_pack()

from comfyui_diversity.demo.world.attributes import OBJECTS, PLACES, Scene  # noqa: E402
from comfyui_diversity.demo.world.draw import CENTRES, FILLS, GROUNDS, RADII, SIZE, draw  # noqa: E402

# A scene and a generator to an image uint8 [128, 128, 3].
Defect = Callable[[Scene, np.random.Generator], np.ndarray]


def half_erased(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The background in place of one half of the object, cut in any direction."""
    image, ground, mask = _parts(scene, rng)
    return np.where((mask & _side(mask, rng))[..., None], ground, image)


def doubled(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The object once more, 0.6 to 1 of its radius beside itself."""
    image, _, mask = _parts(scene, rng)
    step = rng.uniform(0.6, 1.0) * RADII[scene.size] * SIZE
    angle = rng.uniform(0, 2 * np.pi)
    shift = (round(step * np.sin(angle)), round(step * np.cos(angle)))
    moved, moved_mask = np.roll(image, shift, (0, 1)), np.roll(mask, shift, (0, 1))
    return np.where(moved_mask[..., None], moved, image)


def smeared(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The object drawn out over 1.5 to 2 of its radius in any direction."""
    image, _, _ = _parts(scene, rng)
    length = rng.uniform(1.5, 2.0) * RADII[scene.size] * SIZE
    angle = rng.uniform(0, np.pi)
    steps = np.linspace(-length / 2, length / 2, max(3, round(length)))
    shifts = [(round(s * np.sin(angle)), round(s * np.cos(angle))) for s in steps]
    padded = np.pad(image.astype(float), ((SIZE // 4,) * 2, (SIZE // 4,) * 2, (0, 0)), mode="edge")
    mean = np.mean([np.roll(padded, shift, (0, 1)) for shift in shifts], 0)
    own = slice(SIZE // 4, SIZE // 4 + SIZE)
    return mean[own, own].round().astype(np.uint8)


def of_no_colour(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The object in a colour that the world does not have, its shading kept. The demo's autoencoder, which has seen no
    such colour, paints it in a known one, so that this cannot be asked of images behind it."""
    image, _, mask = _parts(scene, rng)
    known = np.array([*FILLS.values(), *GROUNDS.values()])
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.abs(known - colour).max(1).min() > 80:
            return _painted(image, mask, colour)


def part_of_another_colour(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """One half of the object in another of the world's colours."""
    image, _, mask = _parts(scene, rng)
    others = [name for name in FILLS if name != scene.colour]
    colour = np.array(FILLS[others[rng.integers(len(others))]], float)
    return _painted(image, mask & _side(mask, rng), colour)


def two_objects(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A second object of any kind and colour, half a radius or more away from the first at the nearest."""
    image, _, _ = _parts(scene, rng)
    while True:
        place = PLACES[rng.integers(len(PLACES))]
        if place != scene.place:
            break
    obj, colour = OBJECTS[rng.integers(len(OBJECTS))], list(FILLS)[rng.integers(len(FILLS))]
    other, _, mask = _parts(replace(scene, object=obj, place=place, colour=colour, size="small"), rng)
    return np.where(mask[..., None], other, image)


DEFECTS: dict[str, Defect] = {
    one.__name__: one for one in (half_erased, doubled, smeared, of_no_colour, part_of_another_colour, two_objects)
}


def _parts(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The drawing, its background alone, and where the object is."""
    image = draw(scene, rng)
    # Every row of the background has one colour, and no object reaches the border on the other side of its place.
    column = image[:, -2:-1] if CENTRES[scene.place][0] < 0.5 else image[:, 1:2]
    ground = np.broadcast_to(column, image.shape)
    return image, ground, np.abs(image.astype(int) - ground).max(-1) > 12


def _side(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One half of the plane, cut through the middle of the mask."""
    y, x = np.nonzero(mask)
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    along = np.cos(angle) * columns + np.sin(angle) * rows
    return along > np.median(np.cos(angle) * x + np.sin(angle) * y)


def _painted(image: np.ndarray, where: np.ndarray, colour: np.ndarray) -> np.ndarray:
    light = image.astype(float).mean(-1, keepdims=True)
    light = light / np.median(light[where])
    return np.where(where[..., None], np.clip(colour * light, 0, 255).round().astype(np.uint8), image)
