"""The README's image shows the right rows, and says what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comfyui_diversity.demo.world.attributes import OBJECTS, sample_scene
from comfyui_diversity.demo.world.draw import draw
from PIL import Image
from scipy.ndimage import label

from benchmarks import before_after as tool
from benchmarks.demo import image_name
from benchmarks.demo_sheet import BLOCK_GAP, BROKEN, GAP, HEAD_HEIGHT, LABEL_WIDTH, MARGIN

COLOURS = {"baseline_cfg2": (200, 30, 30), "cno_cfg2": (30, 30, 200)}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    for row, colour in COLOURS.items():
        folder = tmp_path / "mmdit" / row
        folder.mkdir(parents=True)
        for prompt in tool.PROMPTS:
            for k in range(tool.COLUMNS):
                Image.new("RGB", (128, 128), colour).save(folder / image_name(prompt.text, k))
    return tmp_path


def test_both_rows_side_by_side(output: Path) -> None:
    sheet = tool.before_after("mmdit", "cno", output)
    width = tool.COLUMNS * (tool.SIDE + GAP) - GAP
    for block, colour in enumerate(COLOURS.values()):
        left = MARGIN + LABEL_WIDTH + block * (width + BLOCK_GAP)
        for row in range(len(tool.PROMPTS)):
            middle = MARGIN + HEAD_HEIGHT + row * (tool.SIDE + GAP) + tool.SIDE // 2
            assert sheet.getpixel((left + tool.SIDE // 2, middle)) == colour


def test_broken_images_are_marked(output: Path) -> None:
    rng = np.random.default_rng(0)
    for prompt in tool.PROMPTS:
        for k in range(tool.COLUMNS):
            scene = replace(sample_scene(rng, prompt.object), **prompt.stated)
            Image.fromarray(draw(scene, rng)).save(output / "mmdit" / "baseline_cfg2" / image_name(prompt.text, k))
    marked = (np.asarray(tool.before_after("mmdit", "cno", output)) == BROKEN).all(-1)
    middle = MARGIN + LABEL_WIDTH + tool.COLUMNS * (tool.SIDE + GAP) - GAP
    assert not marked[:, :middle].any()  # real drawings
    assert label(marked)[1] == len(tool.PROMPTS) * tool.COLUMNS  # one colour all over


def test_every_object_is_shown() -> None:
    assert sorted(prompt.object for prompt in tool.PROMPTS) == sorted(OBJECTS)


def test_unknown_rows_are_named() -> None:
    with pytest.raises(ValueError, match=r"are mmdit baseline; they must be one of: .*mmdit cno"):
        tool.before_after("mmdit", "baseline")


def test_missing_images_are_named(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (output / "mmdit" / "cno_cfg2" / image_name(tool.PROMPTS[1].text, 2)).unlink()
    monkeypatch.setattr(tool.before_after, "__defaults__", (output,))
    with pytest.raises(SystemExit, match=r"_2\.png is missing: run `python dev.py demo` first"):
        tool.main(["mmdit", "cno"])
