"""The released optimisation against the same written again, variant by variant (small/released_tpso.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui_diversity.core.methods.tpso_published import Rule, drawn_rows, optimise_as_released, released_start
from small.released_tpso import Found, released, released_full_batch, starts
from torch import Tensor

POSITIONS, WIDTH, SPACE, SEED = 3, 16, 24, 5
_FIRST, _SECOND, _BASE = (
    torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double() / scale
    for seed, (shape, scale) in enumerate((((POSITIONS * WIDTH, 48), 7), ((48, SPACE), 7), ((POSITIONS * WIDTH,), 1)))
)


def vectors(offsets: Tensor) -> Tensor:
    """A smooth map from offsets `[N, P, D]` to vectors."""
    return torch.tanh((_BASE + offsets.flatten(1)) @ _FIRST) @ _SECOND


def encode(offsets: Tensor) -> Any:
    variable = offsets.detach().clone().requires_grad_()
    with torch.enable_grad():
        found = vectors(variable)
    return found.detach(), lambda gradient: torch.autograd.grad(found, variable, gradient)[0]


def ours(count: int, **rule: Any) -> Any:
    start = released_start(count, POSITIONS, WIDTH, torch.Generator().manual_seed(SEED)).double()
    reference = vectors(torch.zeros(1, POSITIONS, WIDTH).double())[0]
    return optimise_as_released(start, reference, encode, Rule(**rule))


def theirs(count: int, **rule: Any) -> Found:
    [start] = starts(SEED, [(count, POSITIONS, WIDTH)])
    run = released_full_batch if "group" in rule else released
    return run(lambda offsets: vectors(offsets[None])[0], start, **rule)


def assert_same(found: Any, expected: Found) -> None:
    assert torch.allclose(found.cosines, torch.tensor(expected.courses).double().T, atol=1e-9)
    assert torch.allclose(found.offsets, torch.stack(expected.offsets), atol=1e-7)


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize(
    ("count", "kappa", "strength", "rate", "steps"),
    [
        (6, 0.8, 1.0, 0.01, 60),  # they arrive one after the other
        (6, 0.8, 10.0, 0.02, 60),
        (6, 0.8, 1.0, 0.01, 7),  # the last encoding is followed by no other
        (3, 0.995, 1.0, 0.01, 10),  # in the band from the start
        (1, 0.8, 1.0, 0.05, 60),
        (4, 0.9, 0.0, 0.01, 60),
    ],
)
def test_with_freezing(count: int, kappa: float, strength: float, rate: float, steps: int, past: bool) -> None:
    found = ours(count, kappa=kappa, diversity=strength, learning_rate=rate, steps=steps, past=past)
    expected = theirs(count, kappa=kappa, tolerance=0.01, strength=strength, rate=rate, max_steps=steps,
                      one_step_past=past)  # fmt: skip
    assert_same(found, expected)
    if steps == 60 and count > 1 and not past:
        arrived = ((found.cosines - kappa).abs() <= 0.01).int().argmax(0)
        assert len(set(arrived.tolist())) > 1, "none waits for another"


def test_a_variant_that_starts_in_the_band_does_not_learn_with_the_others() -> None:
    """Which no start of the release's own size brings about."""
    [start] = starts(SEED, [(4, POSITIONS, WIDTH)])
    start[:2] *= 10_000  # these begin outside
    rule: dict[str, Any] = {"kappa": 0.995, "tolerance": 0.005 + 1e-9, "rate": 0.01, "max_steps": 12}
    expected = released(lambda offsets: vectors(offsets[None])[0], start, strength=1.0, **rule)
    reference = vectors(torch.zeros(1, POSITIONS, WIDTH).double())[0]
    found = optimise_as_released(start, reference, encode, Rule(0.995, rule["tolerance"], 1.0, 12, 0.01))
    assert_same(found, expected)
    assert ((found.cosines[0] - 0.995).abs() <= 0.005).tolist() == [False, False, True, True]
    assert torch.equal(found.offsets[2:], start[2:] / POSITIONS)


@pytest.mark.parametrize(("kappa", "rate", "steps"), [(0.8, 0.01, 30), (0.995, 0.01, 30)])
def test_full_batch_in_groups(kappa: float, rate: float, steps: int) -> None:
    found = ours(6, kappa=kappa, learning_rate=rate, steps=steps, freezing=False, group=3)
    expected = theirs(6, group=3, kappa=kappa, tolerance=0.01, strength=1.0, rate=rate, max_steps=steps)
    assert_same(found, expected)


def test_no_steps_are_the_start() -> None:
    found = ours(3, steps=0)
    assert len(found.cosines) == 1
    assert (found.offsets * POSITIONS).std() == pytest.approx(1e-4, rel=0.3)


def test_rows_are_drawn_without_replacement_by_the_seed() -> None:
    torch.manual_seed(3)
    assert torch.equal(drawn_rows(350, 12, 3), torch.randperm(350)[:12])
    assert len(set(drawn_rows(30, 30, 1).tolist())) == 30
    with pytest.raises(ValueError, match="variants is 31; it must be 1 to 30"):
        drawn_rows(30, 31, 1)


@pytest.mark.parametrize(
    ("name", "value"), [("kappa", 0.0), ("tolerance", 1.0), ("diversity", -1.0), ("steps", -1), ("learning_rate", 0.0)]
)
def test_bad_rules_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Rule(**{name: value})


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="variants is 5; it must be a multiple of 3"):
        ours(5, freezing=False, group=3)
    with pytest.raises(ValueError, match="variants is 0"):
        ours(0)
    with pytest.raises(ValueError, match="no words"):
        released_start(2, 0, 4, torch.Generator())
