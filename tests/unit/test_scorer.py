"""The scorer on fresh renders: it must read what was drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_diversity.demo.scorer import WEIGHTS, Scorer, satisfies
from comfyui_diversity.demo.world.attributes import VALUES, sample_scene, sample_uniform_scene
from comfyui_diversity.demo.world.draw import draw
from comfyui_diversity.demo.world.prompts import make_prompt

COUNT = 250


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load()


@pytest.mark.parametrize("sample", [sample_scene, sample_uniform_scene])
def test_every_attribute_is_read_right(scorer: Scorer, sample) -> None:
    rng = np.random.default_rng(987_654)  # a seed that no training set has
    scenes = [sample(rng) for _ in range(COUNT)]
    read = scorer.read(np.stack([draw(scene, rng) for scene in scenes]))
    for name in VALUES:
        right = np.mean([one[name] == getattr(scene, name) for one, scene in zip(read, scenes, strict=True)])
        assert right >= 0.99, (name, right)


def test_features_do_not_depend_on_the_batch(scorer: Scorer) -> None:
    rng = np.random.default_rng(1)
    images = np.stack([draw(sample_scene(rng), rng) for _ in range(6)])
    together = scorer.features(images)
    assert together.shape == (6, 128)
    alone = torch.cat([scorer.features(images[k : k + 1]) for k in range(6)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_adherence_asks_for_every_stated_attribute() -> None:
    shown = {"object": "fish", "colour": "pink", "size": "small", "place": "top", "background": "navy"}
    assert satisfies(shown, make_prompt("fish"))
    assert satisfies(shown, make_prompt("fish", colour="pink", place="top"))
    assert not satisfies(shown, make_prompt("fish", colour="pink", place="left"))
    assert not satisfies(shown, make_prompt("star", colour="pink"))


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    damaged = tmp_path / "scorer.safetensors"
    damaged.write_bytes(WEIGHTS.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"scorer\.safetensors is damaged"):
        Scorer.load(damaged)


def test_bad_images_are_named(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        scorer.read(np.zeros((2, 8, 8, 3), np.float32))
