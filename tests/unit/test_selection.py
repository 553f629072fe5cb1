"""Which images are kept: by values and distances that can be counted by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from comfyui_diversity.core.methods.selection import dropped, farthest, keepers
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.fast


def around(*degrees: float) -> torch.Tensor:
    """Points on a circle."""
    turns = torch.tensor([math.radians(one) for one in degrees], dtype=torch.float64)
    return torch.stack([turns.cos(), turns.sin()], 1)


def test_the_next_one_is_always_the_least_like_those_before() -> None:
    # Pairs that face each other, so that their mean is the centre.
    points = around(0, 180, 90, 270, 5, 185)
    assert farthest(points, 4) == [0, 1, 2, 3]
    assert farthest(points, 2, first=2) == [2, 3]
    assert farthest(points, 0) == []


@pytest.mark.parametrize("first", range(6))
def test_of_two_the_choice_is_that_of_all_pairs(first: int) -> None:
    points = torch.randn(6, 5, generator=torch.Generator().manual_seed(first), dtype=torch.float64)
    unit = torch.nn.functional.normalize(points - points.mean(0), dim=1)
    others = [k for k in range(6) if k != first]
    assert farthest(points, 2, first) == [first, min(others, key=lambda k: float(unit[first] @ unit[k]))]


def test_equal_images_are_taken_last_and_each_once() -> None:
    points = around(0, 0, 0, 180, 90, 270)
    assert set(farthest(points, 4)) == {0, 3, 4, 5}
    assert sorted(farthest(points, 6)) == list(range(6))
    assert sorted(farthest(torch.ones(3, 2), 3)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("keep", "drop", "expected"),
    [
        (5, 0.2, [4]),
        (4, 0.24, [4]),
        (4, 0.25, [4, 2]),
        (5, 0.5, [4]),  # one is more than is wanted
        (4, 0.9, [4, 2]),
        (1, 0.5, [4, 2, 0]),
        (2, 0.0, []),
        (2, 0.01, [4]),  # less than one is one
        (6, 0.5, []),
    ],
)
def test_the_worst_are_dropped_but_for_those_that_are_needed(keep: int, drop: float, expected: list[int]) -> None:
    assert sorted(dropped([3.0, 1.0, 4.0, 1.0, 5.0, 2.0], keep, drop)) == sorted(expected)


def test_of_equal_ones_the_later_are_dropped() -> None:
    assert dropped([1.0, 1.0, 1.0, 1.0], 2, 0.5) == [2, 3]


def test_what_is_kept_is_sound_and_differs() -> None:
    points = around(0, 180, 90, 270, 5, 185)
    rarity = [1.0, 1.5, 9.0, 1.2, 1.1, 1.3]
    # 2 is the worst; from 0, the likeliest, the furthest is 1 or 5, then 3.
    assert keepers(rarity, points, 5, 0.2) == [0, 1, 3, 4, 5]
    kept = keepers(rarity, points, 3, 0.2)
    assert kept[0] == 0
    assert 3 in kept
    assert 2 not in kept
    assert 2 in keepers(rarity, points, 4, 0.0)


def test_the_choice_begins_with_the_likeliest() -> None:
    assert keepers([2.0, 1.0, 3.0], around(0, 90, 180), 1, 0.0) == [1]
    # From 90 degrees, what is furthest about the mean is 270.
    assert keepers([2.0, 1.0, 3.0, 4.0], around(0, 90, 180, 270), 2, 0.0) == [1, 3]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.data())
def test_as_many_as_are_asked_for_and_never_a_worse_one_among_the_dropped(
    values: list[float], data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, len(values)))
    drop = data.draw(st.floats(0, 0.9))
    out = dropped(values, keep, drop)
    assert len(out) <= len(values) - keep
    left = [values[k] for k in range(len(values)) if k not in out]
    assert all(values[k] >= max(left) for k in out)
    features = torch.tensor([[math.sin(k), math.cos(3 * k), k % 2] for k in range(len(values))])
    kept = keepers(values, features, keep, drop)
    assert len(kept) == len(set(kept)) == keep
    assert kept == sorted(kept)
    assert not set(kept) & set(out)


@pytest.mark.parametrize(
    ("values", "words"),
    [((0, 0.1), "keep is 0"), ((4, 0.1), "keep is 4"), ((1, 1.0), "drop is 1"), ((1, -0.1), "drop is -0.1")],
)
def test_what_is_not_allowed_is_said(values: tuple[int, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dropped([1.0, 2.0, 3.0], *values)


def test_more_than_there_are_cannot_be_taken() -> None:
    with pytest.raises(ValueError, match="count is 3; it must be from 0 to the 2 there are"):
        farthest(around(0, 90), 3)


def test_pairs_far_apart_come_before_any_between() -> None:
    """Of four corners and their middles, the corners that face each other come first."""
    points = around(*range(0, 360, 45))
    assert set(farthest(points, 4)) in ({0, 2, 4, 6}, {1, 3, 5, 7})
    nearest = min(float(points[a] @ points[b]) for a, b in itertools.combinations(farthest(points, 4), 2))
    assert nearest == pytest.approx(-1)
