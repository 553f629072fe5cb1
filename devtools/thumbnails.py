"""Thumbnails of the templates, from what each of them really makes.

    python -m devtools.thumbnails            # all
    python -m devtools.thumbnails baseline   # those whose name has "baseline" in it

A template of the demo world shows up to nine of its images; one with Diversify those without it beside those with it.
A released model is not here to draw anything: for it stands the demo model of the same kind, and its card says so.

Run it again when a template, a model or a method changes.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from .base import prepare_base
from .graph import Prompt, only_node, shipped_prompt, titled, with_values
from .images import card, decode, grid
from .places import HERE
from .released import MODELS, Released
from .server import Client, Server

LEAST = 256  # pixels a side
SHOWN = 9  # a square fits the front end's cards
PAIRS = 6  # images without Diversify, and as many with it
OBJECTS = ("a fish", "a balloon", "a tree", "a star", "a house", "a heart")  # of the demo world, one for each model


def main(wanted: str = "") -> None:
    templates = [path for path in sorted((HERE.workflows).glob("*.json")) if wanted in path.stem]
    if not templates:
        raise SystemExit(f"No template in {HERE.workflows} has {wanted!r} in its name.")
    # A base of its own: what a developer's runs have remembered would change the images.
    with tempfile.TemporaryDirectory(dir=HERE.work, prefix="thumbnails-") as name:
        base = Path(name)
        prepare_base(base, HERE.root)
        _make(templates, base)


def _make(templates: list[Path], base: Path) -> None:
    released = {model.template: model for model in MODELS}
    with Server(base=base) as server:
        for path in templates:
            model = released.get(path.stem)
            made = _of_released(model, server.client) if model else _of_demo(path.stem, server.client)
            thumbnail = path.with_suffix(".jpg")
            made.save(thumbnail, quality=88)
            print(thumbnail.relative_to(HERE.root))


def _of_demo(name: str, client: Client) -> Image.Image:
    prompt = shipped_prompt(name)
    without = titled(prompt, "Without Diversify")
    if without is not None:
        return _pair(prompt, without, client, "Diversify", "a demo model of this pack")
    images = _images(prompt, [only_node(prompt, ("SaveImage",))], client)[0][:SHOWN]
    image = grid(images, math.isqrt(len(images)))
    # One small image alone would be blurred by the front end.
    return image.resize([side * math.ceil(LEAST / image.width) for side in image.size])


def _of_released(model: Released, client: Client) -> Image.Image:
    prompt = shipped_prompt(f"diversify_{model.kind}")
    without = titled(prompt, "Without Diversify")
    assert without is not None
    number = MODELS.index(model)
    prompt = with_values(prompt, {"text": OBJECTS[number % len(OBJECTS)], "seed": number, "batch_size": PAIRS})
    return _pair(prompt, without, client, model.title, f"drawn by a demo model of this pack, not by {model.title}")


def _pair(prompt: Prompt, without: str, client: Client, title: str, below: str) -> Image.Image:
    plain, diverse = _images(prompt, [without, only_node(prompt, ("SaveImage",))], client)
    sides = (("without", plain[:PAIRS]), ("with Diversify", diverse[:PAIRS]))
    return card(title, sides, below)


def _images(prompt: Prompt, nodes: list[str], client: Client) -> list[np.ndarray]:
    """What each of these nodes shows."""
    result = client.run(prompt)
    return [np.stack([decode(file) for file in client.images(result, node)]) for node in nodes]


if __name__ == "__main__":
    main(*sys.argv[1:])
