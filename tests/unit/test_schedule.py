"""The schedule's weight at each moment, and where a noise level lies in a run."""

from __future__ import annotations

import math

import pytest
from comfyui_diversity.core.methods.schedule import ReleasedWindow, Window, step_position
from hypothesis import given
from hypothesis import strategies as st
from small.released_tpso import alphas


def weights(window: Window, total: int) -> list[float]:
    return [window.weight(i / total, total) for i in range(total)]


def test_linear_fall_of_the_paper():
    assert weights(Window(0.4), 10) == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0, 0, 0, 0, 0])


def test_negative_ratio_is_the_mirror_image():
    assert weights(Window(-0.4), 10) == pytest.approx(weights(Window(0.4), 10)[::-1])


def test_ratio_0_and_1():
    assert weights(Window(0.0), 5) == [0.0] * 5
    assert weights(Window(1.0), 4) == pytest.approx([1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("ratio", [0.4, -0.4, 0.2, 1.0, -1.0, 0.0, 0.29])
@pytest.mark.parametrize("total", [1, 4, 5, 35, 50, 100])
def test_grid_of_the_release(ratio: float, total: int):
    window = ReleasedWindow(ratio)
    assert weights(window, total) == pytest.approx(alphas(total, ratio), abs=1e-6)
    # Calls between two steps have the weight of the step that they are in.
    assert [window.weight((i + 0.7) / total, total) for i in range(total)] == weights(window, total)


def test_the_grid_of_the_release_is_0_before_the_window_ends():
    assert weights(ReleasedWindow(0.4), 50)[18:21] == pytest.approx([1 / 19, 0, 0])
    assert weights(ReleasedWindow(0.2), 4) == [0.0] * 4
    assert weights(ReleasedWindow(0.25), 4) == [1.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="easing is 'hold'; it must be linear"):
        ReleasedWindow(0.4, easing="hold")


def test_start_and_easings():
    assert weights(Window(0.6, start_percent=0.2), 10) == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0, 0])
    smooth = weights(Window(0.4, easing="smooth"), 10)
    assert smooth[:4] == pytest.approx(
        [1, 0.5 - 0.5 * math.cos(0.75 * math.pi), 0.5, 0.5 - 0.5 * math.cos(math.pi / 4)]
    )
    assert weights(Window(0.4, easing="hold"), 10) == [1.0] * 4 + [0.0] * 6


@pytest.mark.parametrize(("steps", "total"), [(1, 4), (4, 4), (2, 20)])
def test_number_of_perturbed_steps_is_exact(steps: int, total: int):
    found = weights(Window(steps=steps), total)
    assert [weight > 0 for weight in found] == [True] * steps + [False] * (total - steps)
    assert found[0] == 1


@given(
    ratio=st.floats(-1, 1),
    total=st.integers(1, 60),
    easing=st.sampled_from(["linear", "smooth", "hold"]),
)
def test_weights_are_shares_that_only_fall_or_only_rise(ratio: float, total: int, easing: str):
    found = weights(Window(ratio, easing=easing), total)
    assert all(0 <= weight <= 1 for weight in found)
    ordered = sorted(found, reverse=ratio >= 0)
    assert found == pytest.approx(ordered)


def test_position_on_rising_sigmas():
    """As Flip Sigmas makes them, to turn an image into noise."""
    sigmas = [0.0001, 1.0, 3.0, 7.0, 14.6]
    assert [step_position(sigmas, sigma) for sigma in (*sigmas, 0.0, 20.0)] == [0, 1, 2, 3, 4, 0, 4]
    assert step_position(sigmas, 2.0) == pytest.approx(1.5)


def test_position_on_and_between_steps():
    sigmas = [14.6, 7.0, 3.0, 1.0, 0.0]
    assert [step_position(sigmas, sigma) for sigma in sigmas] == [0, 1, 2, 3, 4]
    assert step_position(sigmas, 5.0) == pytest.approx(1.5)
    assert step_position(sigmas, 20.0) == 0
    assert step_position(sigmas, 7.0 * (1 - 1e-7)) == 1
    assert step_position(sigmas, 7.0 * (1 + 1e-7)) == 1
    assert step_position([1.0, 0.0], 0.25) == pytest.approx(0.75)


@given(st.lists(st.floats(0.01, 50), min_size=2, max_size=30, unique=True), st.floats(0, 60))
def test_position_never_falls_as_noise_does(values: list[float], sigma: float):
    sigmas = [*sorted(values, reverse=True), 0.0]
    assert 0 <= step_position(sigmas, sigma) <= len(sigmas) - 1
    assert step_position(sigmas, sigma * 0.9) >= step_position(sigmas, sigma) - 1e-3


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"ratio": 1.5}, "ratio"),
        ({"easing": "jump"}, "easing"),
        ({"steps": -1}, "steps"),
        ({"start_percent": 0.5}, "start_percent"),
    ],
)
def test_bad_settings_are_named(settings: dict, name: str):
    with pytest.raises(ValueError, match=name):
        Window(**settings)
