"""What a broken image is: sound drawings pass, each kind of defect is seen, with the calibration that is committed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_diversity.demo.fidelity import CALIBRATION, Judge, fit, to_pixels
from comfyui_diversity.demo.scorer import Scorer
from comfyui_diversity.demo.world.attributes import sample_uniform_scene
from comfyui_diversity.demo.world.draw import RADII, draw

from benchmarks.defects import DEFECTS

SEED = 31_337  # not the calibration's


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load()


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def share_broken(images: np.ndarray, scorer: Scorer, judge: Judge) -> float:
    return judge.broken(judge.residuals(images, scorer.read(images))).float().mean().item()


def test_sound_drawings_pass(scorer: Scorer, judge: Judge) -> None:
    rng = np.random.default_rng(SEED)
    images = np.stack([draw(sample_uniform_scene(rng), rng) for _ in range(30)])
    assert share_broken(images, scorer, judge) == 0


@pytest.mark.parametrize("name", list(DEFECTS))
def test_defects_are_seen(name: str, scorer: Scorer, judge: Judge) -> None:
    rng = np.random.default_rng(SEED)
    images = np.stack([DEFECTS[name](sample_uniform_scene(rng), rng) for _ in range(20)])
    assert share_broken(images, scorer, judge) >= 0.95


def test_thin_wobble_and_soft_shades_pass(scorer: Scorer, judge: Judge) -> None:
    """Edges that lie a pixel elsewhere, colours a little off, noise: no person would call that broken."""
    rng = np.random.default_rng(SEED)
    images = np.stack([draw(sample_uniform_scene(rng), rng) for _ in range(20)])
    rows, columns = np.mgrid[:128, :128]
    wave = np.round(1.4 * np.sin(columns / 5)).astype(int)
    wobbling = images[:, (rows + wave).clip(0, 127), columns]
    shaded = (wobbling * np.array([1.0, 0.95, 1.0]) + rng.normal(0, 4, wobbling.shape)).clip(0, 255).astype(np.uint8)
    assert share_broken(shaded, scorer, judge) <= 0.05


def test_the_scene_is_found_where_it_is(scorer: Scorer) -> None:
    """Against the drawing's own numbers: which the generator gives in the order of `draw`."""
    rng = np.random.default_rng(SEED)
    scenes = [sample_uniform_scene(rng) for _ in range(12)]
    images = np.stack([draw(scene, np.random.default_rng(k)) for k, scene in enumerate(scenes)])
    pose = fit(to_pixels(images), scorer.read(images)).pose
    for k, scene in enumerate(scenes):
        own = np.random.default_rng(k)
        own.uniform(size=3)  # the background's jitter
        own.uniform(size=2)  # the place's
        radius = RADII[scene.size] * own.uniform(0.94, 1.06) * 64
        assert pose[k, 2].exp().item() == pytest.approx(radius, rel=0.05), scene


def test_images_do_not_depend_on_the_batch(scorer: Scorer, judge: Judge) -> None:
    rng = np.random.default_rng(SEED)
    images = np.stack([DEFECTS["half_erased"](sample_uniform_scene(rng), rng) for _ in range(4)])
    read = scorer.read(images)
    alone = torch.cat([judge.residuals(images[k : k + 1], read[k : k + 1]) for k in range(4)])
    assert torch.allclose(judge.residuals(images, read), alone, atol=0.01)


def test_bad_input_is_named(judge: Judge, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images is uint8 \[2, 64, 64, 3\]; it must be uint8 \[N, 128, 128, 3\]"):
        judge.residuals(np.zeros((2, 64, 64, 3), np.uint8), [])
    with pytest.raises(ValueError, match="read has 0 entries; it must have one for each of the 2"):
        judge.residuals(np.zeros((2, 128, 128, 3), np.uint8), [])
    damaged = tmp_path / "fidelity.json"
    damaged.write_text(CALIBRATION.read_text()[:20])
    with pytest.raises(ValueError, match=r"fidelity\.json cannot be read .*; restore it"):
        Judge.load(damaged)
    for threshold in ("NaN", "0", "Infinity"):
        damaged.write_text(f'{{"threshold": {threshold}, "tolerance": {{}}}}')
        with pytest.raises(ValueError, match=r"fidelity\.json .*threshold is .*above 0 and below 1"):
            Judge.load(damaged)
