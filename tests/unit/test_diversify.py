"""What a strength means for each kind of run."""

from __future__ import annotations

import math

import pytest
from comfyui_diversity.core.methods.diversify import Plan, Situation, plan
from hypothesis import given
from hypothesis import strategies as st

RUNS = [Situation(steps, guided, batch) for steps in (1, 4, 20, 50) for guided in (False, True) for batch in (1, 4)]
situations = st.builds(Situation, st.integers(1, 200), st.booleans(), st.integers(1, 16))
strengths = st.floats(0, 1)


def amounts(chosen: Plan) -> tuple[float, float, float, int, int]:
    """Distance of the variants from the prompt, of the noise from the sampler's own, how much wider it is, first and
    last steps unguided."""
    distance = math.sqrt(max(1 - chosen.kappa**2, 0))
    return distance, chosen.noise_strength, chosen.wide - 1, *chosen.unguided


@pytest.mark.parametrize("run", RUNS)
def test_strength_0_does_nothing(run: Situation) -> None:
    assert amounts(plan(0.0, run)) == (0.0, 0.0, 0.0, 0, 0)


@given(strengths, strengths, situations)
def test_more_strength_does_more(a: float, b: float, run: Situation) -> None:
    low, high = (amounts(plan(one, run)) for one in sorted((a, b)))
    assert all(x <= y + 1e-6 for x, y in zip(low, high, strict=True))


@pytest.mark.parametrize("run", [run for run in RUNS if run.batch > 1])
def test_a_batch_gets_noises_that_are_moved_apart_and_with_few_steps_wider(run: Situation) -> None:
    for strength in (0.1, 0.5, 1.0):
        distance, noise, wider, *_ = amounts(plan(strength, run))
        assert (distance, noise > 0) == (0, True)
        assert wider == (pytest.approx(strength**2) if run.few_steps else 0)


@pytest.mark.parametrize("run", [run for run in RUNS if run.batch == 1])
def test_one_image_gets_its_variant_and_wider_noise(run: Situation) -> None:
    distance, noise, wider, *_ = amounts(plan(1.0, run))
    assert (distance, noise) == (pytest.approx(0.25), 0)
    assert wider == (1.5 if run.few_steps else 1.0)


@pytest.mark.parametrize(("steps", "batch"), [(20, 1), (4, 1), (4, 4)])
def test_an_image_that_is_begun_keeps_the_tones_of_its_layout(steps: int, batch: int) -> None:
    assert plan(1.0, Situation(steps, False, batch)).wide > 1
    assert plan(1.0, Situation(steps, False, batch, starts=False)).wide == 1


@pytest.mark.parametrize("run", RUNS)
def test_guidance_is_off_at_the_first_tenth_and_the_last_fifth(run: Situation) -> None:
    assert plan(1.0, run).unguided == ((run.steps // 10, run.steps // 5) if run.guided else (0, 0))


def test_a_part_of_a_run_is_unguided_at_the_end_that_it_has() -> None:
    """A second pass starts from an image; of two samplers in a row the first leaves the last steps to the other."""
    ends = [(starts, ends) for starts in (True, False) for ends in (True, False)]
    found = [plan(1.0, Situation(20, True, 4, *end)).unguided for end in ends]
    assert found == [(2, 4), (2, 0), (0, 4), (0, 0)]


def test_a_half_of_the_strength_has_all_that_takes_no_diversity() -> None:
    """Guidance at the last steps changes little but the time."""
    run = Situation(20, True, 4)
    assert [plan(strength, run).unguided for strength in (0.25, 0.5, 0.75, 1.0)] == [(0, 2), (1, 4), (1, 4), (2, 4)]


def test_more_steps_need_less_noise_at_a_low_strength() -> None:
    few, many = ([plan(s, Situation(steps, False, 4)).noise_strength for s in (0.5, 1.0)] for steps in (4, 20))
    assert few == [pytest.approx(0.25), pytest.approx(0.5)]
    assert many == [pytest.approx(0.1, abs=0.002), pytest.approx(0.5)]


@given(strengths, situations)
def test_what_a_run_has_no_use_for_is_left_out(strength: float, run: Situation) -> None:
    chosen = plan(strength, run)
    if run.batch == 1:
        assert chosen.noise_strength == 0
    else:
        assert chosen.kappa == 1
        assert run.few_steps or chosen.wide == 1
    if not run.guided:
        assert chosen.unguided == (0, 0)


def test_decimal_fractions_are_not_rounded_down_twice() -> None:
    assert 0.1 * 0.29 * 1000 < 29
    assert plan(0.29, Situation(1000, True, 1)).unguided == (29, 116)
    run = Situation(100, True, 1)
    assert [plan(strength, run).unguided for strength in (0.35, 0.5, 1.0)] == [(3, 14), (5, 20), (10, 20)]


def test_extra_passes() -> None:
    """Three estimates for noise, guided where the first step is; each step without guidance saves a pass."""
    run, few, alone = Situation(20, True, 4), Situation(4, False, 4), Situation(20, True, 1)
    assert plan(0.25, run).extra_passes(run) == pytest.approx((6 - 2) / 40)
    assert plan(0.5, run).extra_passes(run) == pytest.approx((3 - 1 - 4) / 40)
    assert plan(0.5, few).extra_passes(few) == pytest.approx(3 / 4)
    assert plan(0.5, alone).extra_passes(alone) == pytest.approx(-5 / 40)


@pytest.mark.parametrize("strength", [-0.01, 1.01, math.nan])
def test_another_strength(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength is .*; it must be from 0 to 1"):
        plan(strength, RUNS[0])
