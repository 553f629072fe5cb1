"""Thumbnails of the templates, from what each of them really makes: up to nine images in a square.

    python -m devtools.thumbnails            # all
    python -m devtools.thumbnails baseline   # those whose name has "baseline" in it

Run it again when a template, a model or a method changes.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

import numpy as np

from .base import prepare_base
from .graph import only_node, shipped_prompt
from .images import decode, grid
from .places import HERE
from .server import Server

LEAST = 256  # pixels a side
SHOWN = 9  # a square fits the front end's cards


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
    with Server(base=base) as server:
        for path in templates:
            prompt = shipped_prompt(path.stem)
            files = server.client.images(server.client.run(prompt), only_node(prompt, ("SaveImage",)))
            images = np.stack([decode(file) for file in files[:SHOWN]])
            thumbnail = path.with_suffix(".jpg")
            card = grid(images, math.isqrt(len(images)))
            # One small image alone would be blurred by the front end.
            card.resize([side * math.ceil(LEAST / card.width) for side in card.size]).save(thumbnail, quality=88)
            print(thumbnail.relative_to(HERE.root))


if __name__ == "__main__":
    main(*sys.argv[1:])
