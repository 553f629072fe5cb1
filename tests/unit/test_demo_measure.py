"""Figures of images whose attributes are known, because the demo world drew them."""

from __future__ import annotations

import numpy as np
import pytest
from comfyui_diversity.demo.scorer import Scorer
from comfyui_diversity.demo.world.attributes import VALUES, Scene, rare_values, sample_uniform_scene
from comfyui_diversity.demo.world.draw import draw
from comfyui_diversity.demo.world.prompts import make_prompt

from benchmarks.measure import Group, measure

HEART = {"object": "heart", "colour": "red", "size": "medium", "place": "centre", "background": "white"}


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.load()


def drawn(*scenes: dict[str, str]) -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.stack([draw(Scene(**scene), rng) for scene in scenes])


def test_ten_alike(scorer: Scorer) -> None:
    figures = measure([Group(make_prompt("heart"), drawn(*[HEART] * 10))], scorer)
    assert figures["adherence"] == 1
    assert figures["effective_number"] == {"colour": 1, "size": 1, "place": 1, "background": 1}
    assert figures["rare_share"] == 0
    assert figures["mss"] > 0.9
    assert figures["mss_centred"] > 0.9
    assert figures["vendi"] < 1.5


def test_unrelated_scenes_have_nothing_in_common_once_centred(scorer: Scorer) -> None:
    rng = np.random.default_rng(77)
    images = np.stack([draw(sample_uniform_scene(rng), rng) for _ in range(100)])
    figures = measure([Group(make_prompt("heart"), images)], scorer)
    assert figures["mss"] > 0.4
    assert abs(figures["mss_centred"]) < 0.03


def test_all_colours(scorer: Scorer) -> None:
    images = drawn(*({**HEART, "colour": colour} for colour in VALUES["colour"]))
    figures = measure([Group(make_prompt("heart"), images)], scorer)
    assert figures["effective_number"]["colour"] == pytest.approx(8)
    assert figures["effective_number"]["size"] == 1
    # Of four open attributes only the colour is ever rare.
    assert figures["rare_share"] == pytest.approx(len(rare_values("heart")["colour"]) / 8 / 4)


def test_stated_attributes_are_left_out(scorer: Scorer) -> None:
    # Asked for yellow, drawn in two colours: that is poor adherence, not diversity.
    images = drawn(*[{**HEART, "colour": "yellow"}] * 3, *[HEART] * 1)
    figures = measure([Group(make_prompt("heart", colour="yellow"), images)], scorer)
    assert figures["adherence"] == 0.75
    assert "colour" not in figures["effective_number"]
    assert figures["rare_share"] == 0


def test_prompts_count_alike(scorer: Scorer) -> None:
    # Two colours under one prompt and one under another; the third prompt states its colour and has no say.
    two = Group(make_prompt("heart"), drawn(HEART, {**HEART, "colour": "blue"}))
    one = Group(make_prompt("heart"), drawn(*[HEART] * 6))
    stated = Group(make_prompt("heart", colour="red"), drawn(*[{**HEART, "colour": "blue"}] * 2))
    figures = measure([two, one, stated], scorer)
    assert figures["effective_number"]["colour"] == pytest.approx(1.5)
    assert figures["adherence"] == pytest.approx(2 / 3, abs=1e-3)
