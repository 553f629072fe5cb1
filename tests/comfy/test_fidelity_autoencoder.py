"""Sound drawings pass the fidelity check and broken ones fail it, as they come out of the demo's autoencoder.

An image takes a sixth of a second there and back, so many are slow. With 100 of a defect, a true share of .96 passes
nearly always (.98) and one of .88 hardly ever (.14).
"""

from __future__ import annotations

import numpy as np
import pytest
from comfyui_diversity.demo.fidelity import Judge
from comfyui_diversity.demo.scorer import Scorer
from comfyui_diversity.demo.world.attributes import sample_uniform_scene
from comfyui_diversity.demo.world.draw import draw

from benchmarks.calibrate_fidelity import KINDS, RoundTrip
from benchmarks.defects import Defect

SEED = 31_337  # not the calibration's


@pytest.fixture(scope="module")
def trip() -> RoundTrip:
    return RoundTrip()


def broken(kind: Defect, count: int, trip: RoundTrip) -> int:
    rng = np.random.default_rng(SEED)
    images = trip(np.stack([kind(sample_uniform_scene(rng), rng) for _ in range(count)]))
    judge = Judge.load()
    return int(judge.broken(judge.residuals(images, Scorer.load().read(images))).sum())


@pytest.mark.parametrize(("count", "share"), [(30, 0.93), pytest.param(100, 0.96, marks=pytest.mark.slow)])
def test_sound_drawings_pass(count: int, share: float, trip: RoundTrip) -> None:
    assert count - broken(draw, count, trip) >= share * count


@pytest.mark.parametrize(("count", "share"), [(8, 0.87), pytest.param(100, 0.92, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", list(KINDS))
def test_defects_are_seen(name: str, count: int, share: float, trip: RoundTrip) -> None:
    assert broken(KINDS[name], count, trip) >= share * count
