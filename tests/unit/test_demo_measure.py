"""Figures of images whose attributes are known, because the demo world drew them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from comfyui_diversity.demo.scorer import Scorer
from comfyui_diversity.demo.world.attributes import VALUES, Scene, rare_values, sample_scene, sample_uniform_scene
from comfyui_diversity.demo.world.draw import draw
from comfyui_diversity.demo.world.prompts import Prompt, make_prompt

from benchmarks import measure as measuring
from benchmarks.defects import half_erased
from benchmarks.measure import Group, Judged, difference, figures, judge, measure

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
    images = np.stack([draw(sample_uniform_scene(rng), rng) for _ in range(40)])
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


def test_broken_images_count_for_nothing(scorer: Scorer) -> None:
    """Half of ten red hearts are cut in two: they still read as red hearts."""
    rng = np.random.default_rng(5)
    scene = Scene(**HEART)
    images = np.concatenate([drawn(*[HEART] * 5), np.stack([half_erased(scene, rng) for _ in range(5)])])
    [judged] = judge([Group(make_prompt("heart"), images)], scorer)
    assert judged.broken.tolist() == [False] * 5 + [True] * 5
    found = figures([judged], scorer)
    assert found["fidelity"] == 0.5
    assert found["good_share"] <= 0.5
    assert found["quality_vendi"] == pytest.approx(found["good_share"] * found["vendi"], abs=1e-3)


def seen(prompt: Prompt, scenes: Sequence[Scene], features: torch.Tensor) -> Judged:
    """What is read off sound images of these scenes."""
    return Judged(
        prompt, [vars(scene) for scene in scenes], features, np.zeros(len(scenes)), np.zeros(len(scenes), bool)
    )


def test_divergence_sees_too_much_of_the_rare_and_too_little(scorer: Scorer) -> None:
    rng = np.random.default_rng(8)

    def divergence(*scenes: Scene) -> float:
        return figures([seen(make_prompt("heart"), scenes, torch.rand(len(scenes), 128))], scorer)["divergence"]

    as_it_is = divergence(*(sample_scene(rng, "heart") for _ in range(300)))
    even = divergence(*(replace(sample_uniform_scene(rng), object="heart") for _ in range(300)))
    all_alike = divergence(*[Scene(**HEART)] * 300)
    assert as_it_is < 0.02
    assert even > 5 * as_it_is
    assert all_alike > 5 * as_it_is


def test_divergence_is_jensen_shannon() -> None:
    """Jensen-Shannon by its definition, from logarithms to the base 2."""
    p, q = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), np.array([0.9, 0.1, 0.0])
    kl = [sum(a * math.log2(a / b) for a, b in zip(x, (x + q) / 2, strict=True) if a) for x in p]
    back = [sum(b * math.log2(b / m) for b, m in zip(q, (x + q) / 2, strict=True) if b) for x in p]
    assert measuring._jensen_shannon(p, q) == pytest.approx([(a + b) / 2 for a, b in zip(kl, back, strict=True)])


def test_kid_is_zero_for_the_world_itself_and_not_for_copies(scorer: Scorer) -> None:
    rng = np.random.default_rng(9)
    prompts = [make_prompt("heart"), make_prompt("star", colour="pink")]

    def kid(scene_of: Callable[[Prompt], Scene]) -> dict:
        judged = []
        for prompt in prompts:
            scenes = [replace(scene_of(prompt), **prompt.stated) for _ in range(40)]
            judged.append(seen(prompt, scenes, scorer.features(np.stack([draw(scene, rng) for scene in scenes]))))
        return figures(judged, scorer)

    world = kid(lambda prompt: sample_scene(rng, prompt.object))
    copies = kid(lambda prompt: Scene("heart", "red", "medium", "left", "navy"))
    low, high = world["kid_interval"]
    assert low <= high
    assert abs(world["kid"]) < 0.2 * copies["kid"]


def test_intervals_hold_the_figure_and_differences_pair_prompts() -> None:
    rng = np.random.default_rng(4)
    easy = rng.uniform(0, 1, 60)  # prompts differ much more than the rows do
    row, other = ({"by_prompt": {"adherence": list(easy + gain)}} for gain in (0.02, 0.0))
    value, (low, high) = difference(row, other, "adherence")
    assert value == pytest.approx(0.02)
    assert 0.0199 <= low <= high <= 0.0201
    noisy = {"by_prompt": {"adherence": list(easy + rng.normal(0, 1, 60))}}
    value, (low, high) = difference(noisy, other, "adherence")
    # About 1.96 standard errors to both sides.
    assert (high - low) / 2 == pytest.approx(1.96 * 60**-0.5, rel=0.25)
    with pytest.raises(ValueError, match="60 and 2 prompts"):
        difference(row, {"by_prompt": {"adherence": [0.0, 1.0]}}, "adherence")


def test_every_figure_has_an_interval_around_it(scorer: Scorer) -> None:
    rng = np.random.default_rng(3)
    prompts = [make_prompt(name) for name in ("heart", "star", "fish")]
    groups = [Group(p, np.stack([draw(sample_scene(rng, p.object), rng) for _ in range(4)])) for p in prompts]
    found = measure(groups, scorer)
    for name in (*measuring.AVERAGED, "divergence", "kid"):
        low, high = found[f"{name}_interval"]
        assert low <= high
        assert low - 1e-9 <= found[name] <= high + 1e-9, name


def test_divergence_lies_in_its_interval_though_few_images_make_it_too_great(scorer: Scorer) -> None:
    """Three images of a prompt, as in the curves of CFG: prompts drawn again are fewer, and all come out greater."""
    rng = np.random.default_rng(5)
    judged = [
        seen(make_prompt(obj), [sample_scene(rng, obj) for _ in range(3)], torch.rand(3, 128))
        for obj in ("heart", "star", "fish") * 4
    ]
    found = figures(judged, scorer)
    low, high = found["divergence_interval"]
    draws = measuring._draws(len(judged))
    assert np.mean(measuring._divergence(judged)(draws)[1:]) > found["divergence"] + 0.01
    assert low < found["divergence"] < high
