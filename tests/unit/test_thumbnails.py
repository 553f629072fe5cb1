"""Every template has its image for ComfyUI's template browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from devtools.places import HERE

FOLDER = HERE.workflows
TEMPLATES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_has_a_thumbnail(path: Path) -> None:
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.is_file(), f"{thumbnail.name} is missing: run `python -m devtools.thumbnails {path.stem}`"
    with Image.open(thumbnail) as image:
        image.load()
        assert image.format == "JPEG"
        assert image.width == image.height >= 256, "the cards are square"
        assert any(low < high for low, high in image.getextrema()), "an image of one flat colour"
    assert thumbnail.stat().st_size < 200_000


def test_every_thumbnail_has_its_template() -> None:
    assert {path.stem for path in FOLDER.glob("*.jpg")} <= {path.stem for path in TEMPLATES}
