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


def amounts(chosen: Plan) -> tuple[float, float, int]:
    """Distance of the variants from the prompt, of the noise from the sampler's own, steps without guidance."""
    return math.sqrt(max(1 - chosen.kappa**2, 0)), chosen.noise_strength, chosen.unguided_steps


@pytest.mark.parametrize("run", RUNS)
def test_strength_0_does_nothing(run: Situation) -> None:
    assert amounts(plan(0.0, run)) == (0.0, 0.0, 0)


@given(strengths, strengths, situations)
def test_more_strength_does_more(a: float, b: float, run: Situation) -> None:
    low, high = (amounts(plan(one, run)) for one in sorted((a, b)))
    assert all(x <= y + 1e-6 for x, y in zip(low, high, strict=True))


@given(situations)
def test_where_there_are_many_steps_all_grows_together(run: Situation) -> None:
    quarter, half = amounts(plan(0.25, run)), amounts(plan(0.5, run))
    if not run.few_steps:
        assert quarter[:2] == pytest.approx([one / 2 for one in half[:2]], abs=1e-6)


def test_few_steps_get_noise_first_and_variants_above_a_half() -> None:
    for strength in (0.1, 0.5):
        distance, noise, _ = amounts(plan(strength, Situation(4, False, 4)))
        assert (distance, noise > 0) == (0, True)
    assert amounts(plan(0.6, Situation(4, False, 4)))[0] > 0
    # One image has nothing but variants.
    assert amounts(plan(0.1, Situation(4, False, 1)))[0] > 0


@given(strengths, situations)
def test_what_a_run_has_no_use_for_is_left_out(strength: float, run: Situation) -> None:
    chosen = plan(strength, run)
    if run.batch == 1:
        assert chosen.noise_strength == 0
    if not run.guided:
        assert chosen.unguided_steps == 0
    assert chosen.unguided_steps <= 0.2 * run.steps


def test_decimal_fractions_are_not_rounded_down_twice() -> None:
    assert 0.2 * 0.35 * 100 < 7
    assert plan(0.35, Situation(100, True, 4)).unguided_steps == 7
    assert plan(0.34, Situation(100, True, 4)).unguided_steps == 6


def test_extra_passes() -> None:
    """Of 40 passes in 20 steps with guidance 2 fall away; noise costs 4, since the first step has none."""
    run = Situation(20, True, 4)
    chosen = plan(0.5, run)
    assert (chosen.unguided_steps, chosen.noise_iterations) == (2, 4)
    assert chosen.extra_passes(run) == pytest.approx((4 - 2) / 40)
    few = Situation(4, False, 4)
    assert plan(0.5, few).extra_passes(few) == pytest.approx(3 / 4)
    assert plan(0.5, Situation(4, False, 1)).extra_passes(Situation(4, False, 1)) == 0


@pytest.mark.parametrize("strength", [-0.01, 1.01, math.nan])
def test_another_strength(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength is .*; it must be from 0 to 1"):
        plan(strength, RUNS[0])
