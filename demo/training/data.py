"""Rendered scenes, made once and kept in the work folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..world.attributes import Scene, sample_scene, sample_uniform_scene
from ..world.draw import SIZE, draw

NATURAL, UNIFORM = 20_000, 8_000  # scenes of the world's own distribution, and with every attribute equally likely


class Scenes:
    """Images `uint8 [N, 128, 128, 3]` and their scenes."""

    def __init__(self, images: np.ndarray, scenes: list[Scene]) -> None:
        self.images = images
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)


def natural_scenes(folder: Path) -> Scenes:
    return _rendered(folder / "scenes_natural.npz", sample_scene, NATURAL, seed=11)


def uniform_scenes(folder: Path) -> Scenes:
    return _rendered(folder / "scenes_uniform.npz", sample_uniform_scene, UNIFORM, seed=12)


def _rendered(path: Path, sample: Callable[[np.random.Generator], Scene], count: int, seed: int) -> Scenes:
    if not path.exists():
        rng = np.random.default_rng(seed)
        scenes = [sample(rng) for _ in range(count)]
        images = np.empty((count, SIZE, SIZE, 3), np.uint8)
        for k in tqdm(range(count), desc=path.stem, mininterval=5):
            images[k] = draw(scenes[k], rng)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, images=images, scenes=np.array([astuple(scene) for scene in scenes]))
        os.replace(partial, path)
    stored = np.load(path)
    return Scenes(stored["images"], [Scene(*map(str, row)) for row in stored["scenes"]])
