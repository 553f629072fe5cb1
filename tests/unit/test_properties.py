"""What holds for every size, batch, number of tokens and schedule; the cases are drawn by hypothesis.

`CASES` of each property, the same at every run, and `FEWER` of those that optimise: 340 in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from comfyui_diversity.core.methods import cno, schedule, tpso
from comfyui_diversity.core.methods.diversify import Situation, plan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

CASES, FEWER = 60, 20
same_each_time = settings(max_examples=CASES, derandomize=True, deadline=None)
fewer = settings(same_each_time, max_examples=FEWER)

seeds = st.integers(0, 2**31)
ratios = st.floats(-1, 1).map(lambda ratio: round(ratio, 3))
totals = st.integers(1, 100)


@st.composite
def windows(draw: st.DrawFn) -> schedule.Window:
    ratio = draw(ratios)
    start = draw(st.floats(0, 1)) * abs(ratio)
    return schedule.Window(ratio, start, draw(st.sampled_from(schedule.EASINGS)), draw(st.integers(0, 20)))


@st.composite
def noises(draw: st.DrawFn) -> Tensor:
    """Batches of images or videos, of odd sizes too."""
    frames = draw(st.sampled_from([(), (1,), (3,)]))
    batch, channels, height, width = (draw(st.integers(low, high)) for low, high in ((2, 4), (2, 4), (1, 9), (1, 9)))
    shape = (batch, channels, *frames, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(draw(seeds)))


@same_each_time
@given(windows(), totals)
def test_a_weight_falls_from_one_side_to_the_other(window: schedule.Window, total: int) -> None:
    """It is a share, never rises over a run (never falls where the window lies at the end), and a window of no length
    has none."""
    if window.steps:
        start = min(window.start_percent, window.steps / total)
        window = schedule.Window(window.ratio, start, window.easing, window.steps)
    weights = [window.weight(step / total, total) for step in range(total)]
    assert all(0 <= weight <= 1 for weight in weights)
    order = pairwise(weights if window.ratio >= 0 else weights[::-1])
    assert all(first >= second - 1e-9 for first, second in order)
    if window.ratio == 0 and not window.steps:
        assert not any(weights)


@same_each_time
@given(ratios, totals)
def test_a_window_at_the_end_mirrors_the_one_at_the_start(ratio: float, total: int) -> None:
    first, last = (schedule.Window(sign * abs(ratio)) for sign in (1, -1))
    for step in range(total):
        there = first.weight((total - 1 - step) / total, total)
        assert math.isclose(last.weight(step / total, total) if ratio else 0.0, there if ratio else 0.0, abs_tol=1e-9)


@same_each_time
@given(st.lists(st.floats(1e-3, 80), min_size=1, max_size=40, unique=True), st.booleans())
def test_the_place_of_a_step_is_its_number(values: list[float], rising: bool) -> None:
    """On any falling schedule, and on rising ones the other way round."""
    sigmas: list[float] = []
    for value in sorted(values, reverse=True):
        if not sigmas or value < 0.99 * sigmas[-1]:
            sigmas.append(value)
    sigmas.append(0.0)
    if rising:
        sigmas = sigmas[::-1]
    for step, sigma in enumerate(sigmas):
        assert schedule.step_position(sigmas, sigma) == step
    for step, (here, there) in enumerate(pairwise(sigmas)):
        assert step <= schedule.step_position(sigmas, (here + there) / 2) <= step + 1


@same_each_time
@given(noises(), st.integers(1, 20))
def test_pooling_keeps_means(noise: Tensor, window: int) -> None:
    """Cells of equal size have the mean of the image; there are never more than the image has places."""
    pooled = cno.pool(noise, window)
    *frames, height, width = noise.shape[2:]
    cells = math.prod(frames) * min(window, height) * min(window, width)
    assert pooled.shape == (*noise.shape[:2], cells)
    if height % min(window, height) == 0 and width % min(window, width) == 0:
        assert torch.allclose(pooled.mean(2), noise.flatten(2).mean(2), atol=1e-5)


@fewer
@given(
    noises(), st.sampled_from(cno.PROJECTIONS), st.integers(1, 2), st.integers(1, 12), st.floats(0.01, 1), st.booleans()
)
def test_noises_are_moved_apart_and_keep_what_they_have_to(
    noise: Tensor, projection: str, iterations: int, window: int, strength: float, masked: bool
) -> None:
    """Finite and of the same shape; places that are not movable stay bitwise; each keeps its length, or, in every band
    of frequencies, its energy; and what one got does not depend on the order of the batch."""
    chosen = cno.Settings(strength=strength, iterations=iterations, window=window, projection=projection)
    free = torch.ones_like(noise, dtype=torch.bool)
    free[..., : noise.shape[-1] // 2] = False
    movable = free if masked else None

    def estimate(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        weights = torch.linspace(0.5, 1.5, x.shape[1]).reshape(1, -1, *[1] * (x.ndim - 2))
        return torch.tanh(x * weights), lambda gradient: gradient * weights * (1 - torch.tanh(x * weights) ** 2)

    found = cno.optimise_noise(noise.clone(), estimate, chosen, movable=movable)
    mirrored = cno.optimise_noise(noise.flip(0).clone(), estimate, chosen, movable=movable)
    assert found.shape == noise.shape
    assert torch.isfinite(found).all()
    if masked:
        assert torch.equal(found[~free], noise[~free])
    if projection != "off":
        lengths = ((own * (free if masked else 1)).flatten(1).norm(dim=1) for own in (found, noise))
        assert torch.allclose(*lengths, rtol=1e-3)
    else:
        assert float((found - noise).abs().max()) <= 1.01 * strength + 1e-4
    # But for one at most, whose gradient is nothing but rounding: Adam's first step is as long as any along that, too.
    differences = (mirrored.flip(0) - found).abs().flatten(1).mean(1)
    assert bool((differences.sort().values[:-1] <= 5e-3 * strength).all())


@fewer
@given(st.integers(1, 4), st.integers(1, 9), st.integers(2, 12), st.floats(0.3, 0.99), seeds)
def test_variants_reach_their_cosine(count: int, positions: int, width: int, kappa: float, seed: int) -> None:
    """For any number of variants and tokens: finite offsets of that shape, unit vectors, a history of every step."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(positions * width, max(width, count + 2), generator=generator)
    base = torch.randn(matrix.shape[1], generator=generator)

    def encode(offsets: Tensor) -> tuple[Tensor, tpso.Pullback]:
        return base + offsets.flatten(1) @ matrix, lambda gradient: (gradient @ matrix.T).reshape(offsets.shape)

    chosen = tpso.Settings(kappa=kappa, steps=100, learning_rate=0.1)
    start = tpso.initial_offsets(count, positions, width, seed, 1e-2)
    found = tpso.optimise_variants(start, base, encode, chosen)
    assert found.offsets.shape == (count, positions, width)
    assert torch.isfinite(found.offsets).all()
    assert torch.allclose(found.vectors.norm(dim=1), torch.ones(count), atol=1e-4)
    assert float(found.cosines[-1].min()) > -1
    assert float((found.cosines[-1] - kappa).abs().max()) <= 0.05


@same_each_time
@given(st.floats(0, 1), st.integers(1, 200), st.booleans(), st.integers(1, 300))
def test_a_plan_is_in_proportion(strength: float, steps: int, guided: bool, batch: int) -> None:
    """Of every strength and run: nothing at 0, never more than at 1, and never a whole run without guidance."""
    whole, nothing = (plan(value, Situation(steps, guided, batch)) for value in (1.0, 0.0))
    found = plan(strength, Situation(steps, guided, batch))
    assert whole.kappa <= found.kappa <= nothing.kappa == 1
    assert nothing.noise_strength == 0 <= found.noise_strength <= whole.noise_strength
    assert all(
        0 == none <= some <= most
        for none, some, most in zip(nothing.unguided, found.unguided, whole.unguided, strict=True)
    )
    assert sum(whole.unguided) < steps
    assert found.noise_strength == 0 or batch > 1
