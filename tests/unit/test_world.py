"""The demo world's scenes: distributions, drawings, captions, prompts."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from comfyui_diversity.demo.world.attributes import (
    COLOURS,
    OBJECTS,
    PLACES,
    VALUES,
    Scene,
    distribution,
    rare_values,
    sample_scene,
    sample_uniform_scene,
)
from comfyui_diversity.demo.world.captions import OPTIONAL, caption, random_caption, stated_in
from comfyui_diversity.demo.world.draw import draw
from comfyui_diversity.demo.world.prompts import (
    DEMO_PROMPTS,
    REPORT_PROMPTS,
    TUNE_PROMPTS,
    Prompt,
    draw_prompts,
)

RED_HEART = Scene("heart", "red", "medium", "centre", "white")


@pytest.mark.parametrize("obj", OBJECTS)
@pytest.mark.parametrize("attribute", OPTIONAL)
def test_distributions_cover_every_value(attribute: str, obj: str) -> None:
    table = distribution(attribute, obj)
    assert set(table) == set(VALUES[attribute])
    assert sum(table.values()) == pytest.approx(1.0)
    assert max(table.values()) > 0.5  # a strong mode ...
    assert rare_values(obj)[attribute]  # ... and a rare side


def test_scenes_follow_their_distribution() -> None:
    rng = np.random.default_rng(3)
    hearts = [sample_scene(rng, "heart") for _ in range(2_000)]
    counts = Counter(s.colour for s in hearts)
    for colour, p in distribution("colour", "heart").items():
        assert counts[colour] / len(hearts) == pytest.approx(p, abs=4 * (p * (1 - p) / len(hearts)) ** 0.5)


def test_the_same_generator_draws_the_same_image() -> None:
    first, second = (draw(RED_HEART, np.random.default_rng(5)) for _ in range(2))
    assert first.shape == (128, 128, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert not np.array_equal(first, draw(RED_HEART, np.random.default_rng(6)))


def test_every_value_changes_the_image() -> None:
    def image(**changes: str) -> np.ndarray:
        fields = {name: getattr(RED_HEART, name) for name in VALUES} | changes
        return draw(Scene(**fields), np.random.default_rng(0))

    for attribute, values in VALUES.items():
        images = {image(**{attribute: value}).tobytes() for value in values}
        assert len(images) == len(values), attribute


@pytest.mark.parametrize("place", PLACES)
def test_a_small_object_lies_where_its_place_says(place: str) -> None:
    rng = np.random.default_rng(1)
    image = draw(Scene("star", "red", "small", place, "white"), rng).astype(int)
    y, x = np.nonzero(image[..., 0] - image[..., 1] > 80)
    dx, dy = x.mean() / 128 - 0.5, y.mean() / 128 - 0.5
    expected = {"centre": (0, 0), "left": (-0.21, 0), "right": (0.21, 0), "top": (0, -0.21), "bottom": (0, 0.21)}
    assert (dx, dy) == pytest.approx(expected[place], abs=0.05)


def test_captions_say_what_is_stated_and_nothing_else() -> None:
    scene = Scene("star", "orange", "small", "top", "navy")
    assert caption(scene, ()) == "a star"
    assert caption(scene, ("colour",)) == "an orange star"
    assert caption(scene, ("size", "colour", "place", "background")) == (
        "a small orange star at the top on a navy background"
    )
    rng = np.random.default_rng(2)
    for _ in range(300):
        drawn = sample_uniform_scene(rng)
        text = random_caption(drawn, rng)
        assert drawn.object in text.split()
        assert sum(word in COLOURS for word in text.split()) <= 1


DRAWN = pytest.mark.parametrize("prompts", [REPORT_PROMPTS, TUNE_PROMPTS], ids=["report", "tune"])


def test_tuning_and_reporting_share_no_prompt() -> None:
    every = (*REPORT_PROMPTS, *TUNE_PROMPTS)
    assert len({prompt.text for prompt in every}) == len(every)
    stated = [frozenset(prompt.stated.items()) for prompt in every if len(prompt.stated) > 1]
    assert len(set(stated)) == len(stated)
    assert all(prompt.stated == stated_in(prompt.text) for prompt in every)
    assert {prompt.object for prompt in REPORT_PROMPTS} == set(OBJECTS)


@DRAWN
def test_none_to_three_attributes_are_stated_equally_often(prompts: tuple[Prompt, ...]) -> None:
    assert len(prompts) >= 60
    assert set(Counter(len(prompt.stated) - 1 for prompt in prompts).items()) == {
        (k, len(prompts) / 4) for k in range(4)
    }
    assert set(Counter(prompt.object for prompt in prompts).values()) == {len(prompts) / len(OBJECTS)}
    stated = Counter(name for prompt in prompts for name in prompt.stated if name != "object")
    assert set(stated) == set(OPTIONAL)
    assert max(stated.values()) - min(stated.values()) <= 3


@DRAWN
def test_half_of_what_is_stated_is_rare(prompts: tuple[Prompt, ...]) -> None:
    rare = [v in rare_values(p.object)[name] for p in prompts for name, v in p.stated.items() if name != "object"]
    assert sum(rare) / len(rare) == pytest.approx(0.5, abs=0.05)


def test_the_demo_has_every_object_and_number_of_attributes() -> None:
    assert all(prompt in REPORT_PROMPTS for prompt in DEMO_PROMPTS)
    assert set(Counter(prompt.object for prompt in DEMO_PROMPTS).values()) == {2}
    assert set(Counter(len(prompt.stated) for prompt in DEMO_PROMPTS).values()) == {3}


def test_published_figures_belong_to_these_prompts() -> None:
    """Were the draw to come out otherwise (another Python, another order of values), old results would not compare."""
    texts = "\n".join(prompt.text for prompt in (*REPORT_PROMPTS, *TUNE_PROMPTS))
    assert hashlib.sha256(texts.encode()).hexdigest().startswith("171a4665f8fc6ccc")


def test_too_few_wordings_are_named() -> None:
    with pytest.raises(ValueError, match="each is 7; it must be at most 6"):
        draw_prompts(1, 7, ("{}",))


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"colour is 'beige'; it must be one of red"):
        Scene("heart", "beige", "small", "top", "navy")
    with pytest.raises(ValueError, match="stated has mood"):
        caption(RED_HEART, ("mood",))
    with pytest.raises(ValueError, match="attribute is 'mood'"):
        distribution("mood", "heart")
    with pytest.raises(ValueError, match="object is 'dog'"):
        distribution("colour", "dog")


def test_every_caption_is_read_back() -> None:
    rng = np.random.default_rng(17)
    for _ in range(500):
        scene = sample_uniform_scene(rng)
        stated = [name for name in OPTIONAL if rng.random() < 0.5]
        expected = {name: getattr(scene, name) for name in ("object", *stated)}
        assert stated_in(caption(scene, stated, rng)) == expected


def test_a_text_without_words_states_nothing() -> None:
    assert stated_in("  ") == {}


@pytest.mark.parametrize(
    ("text", "named"), [("a zeppelin", "'zeppelin'"), ("a red blue heart", "two values of colour: red and blue")]
)
def test_words_that_cannot_be_drawn_are_named(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        stated_in(text)
