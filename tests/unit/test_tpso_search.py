"""TPSO by search: as far apart as the closed bound allows, on encoders without gradients, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from comfyui_diversity.core.methods.tpso import (
    Settings,
    Variants,
    directions_to_keep,
    initial_offsets,
    least_mean_pairwise,
    mean_pairwise,
)
from comfyui_diversity.core.methods.tpso_search import candidates_for, search_variants
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

POSITIONS, WIDTH, SPACE = 3, 16, 96


def rounding_encoder(seed: int = 0) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A non-linear map from offsets to vectors whose activations are rounded to 64 steps: its gradient is zero.

    Long offsets of all directions lead some way in one and the same, as in real encoders.
    """
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(POSITIONS * WIDTH, SPACE, generator=generator).double() / 7
    second = torch.randn(SPACE, SPACE, generator=generator).double() / 7
    base = torch.randn(POSITIONS * WIDTH, generator=generator).double()

    def vectors(offsets: Tensor) -> Tensor:
        hidden = torch.tanh((base + offsets.flatten(1)) @ first)
        return ((hidden + hidden.square()) * 64).round() / 64 @ second

    return vectors, vectors(torch.zeros(1, POSITIONS, WIDTH).double())[0]


def run(count: int, seed: int = 0, keep: Tensor | None = None, encoder: int = 0, **changed: float) -> Variants:
    vectors, reference = rounding_encoder(encoder)
    start = initial_offsets(candidates_for(count), POSITIONS, WIDTH, seed, 0.1).double()
    return search_variants(start, count, reference, vectors, Settings(**changed), keep=keep, seed=seed)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(count=st.integers(4, 10), kappa=st.floats(0.75, 0.95), seed=st.integers(0, 999), encoder=st.integers(0, 3))
def test_variants_are_near_the_bound(count: int, kappa: float, seed: int, encoder: int) -> None:
    """Of what the choice at random leaves to be gained, nearly all; every variant on the surface; spreads only fall."""
    found = run(count, seed, encoder=encoder, kappa=kappa)
    assert found.offsets.shape == (count, POSITIONS, WIDTH)
    assert (found.cosines[-1] - kappa).abs().max() <= 0.01
    bound = least_mean_pairwise(kappa, count)
    assert bound - 0.01 <= found.spreads[-1] <= bound + 0.1 * (1 - kappa**2)
    assert (found.spreads.diff() <= 1e-12).all()


def test_the_result_is_what_the_encoder_gives() -> None:
    found = run(5)
    vectors, reference = rounding_encoder()
    again = torch.nn.functional.normalize(vectors(found.offsets), dim=1)
    assert torch.allclose(again, found.vectors, atol=1e-12)
    assert torch.allclose(again @ torch.nn.functional.normalize(reference, dim=0), found.cosines[-1])
    assert torch.allclose(mean_pairwise(again), found.spreads[-1])


def test_the_same_seed_gives_the_same_variants_and_another_gives_others() -> None:
    assert torch.equal(run(4).offsets, run(4).offsets)
    assert not torch.allclose(run(4).offsets, run(4, seed=1).offsets)


def test_rounds_come_closer_than_the_choice_at_random() -> None:
    assert run(8).spreads[-1] < run(8).spreads[0] - 0.02


def test_words_are_kept() -> None:
    """No variant goes towards a vector that the search alone goes towards."""
    free = run(8)
    _, reference = rounding_encoder()
    keep = directions_to_keep(reference, free.vectors[:1])
    kept = run(8, keep=keep)
    assert (free.vectors @ keep.T).min() < -0.2
    assert (kept.vectors @ keep.T).min() > -0.1
    assert (kept.cosines[-1] - 0.8).abs().max() <= 0.01


@pytest.mark.parametrize("count", [1, 3])
def test_without_repulsion_variants_only_leave_the_prompt(count: int) -> None:
    found = run(count, diversity=0.0)
    assert (found.cosines[-1] - 0.8).abs().max() <= 0.01
    assert len(found.cosines) == 1
    start = initial_offsets(count, POSITIONS, WIDTH, 0, 0.1).double()
    along = torch.nn.functional.cosine_similarity(found.offsets.flatten(1), start.flatten(1))
    assert torch.allclose(along, torch.ones(count).double())


def test_no_rounds_give_the_offsets_as_they_are() -> None:
    start = initial_offsets(3, POSITIONS, WIDTH, 0, 0.1).double()
    vectors, reference = rounding_encoder()
    found = search_variants(start, 3, reference, vectors, Settings(steps=0))
    assert torch.equal(found.offsets * POSITIONS, start)


def test_an_encoder_that_does_not_react_ends_without_an_error() -> None:
    """Its variants miss the aim, which the caller reports."""
    reference = torch.ones(SPACE).double()
    start = initial_offsets(8, POSITIONS, WIDTH, 0, 0.1).double()
    found = search_variants(start, 3, reference, lambda rows: reference.expand(len(rows), -1), Settings())
    assert torch.allclose(found.cosines[-1], torch.ones(3).double())


def test_what_is_refused() -> None:
    vectors, reference = rounding_encoder()
    start = initial_offsets(3, POSITIONS, WIDTH, 0, 0.1).double()
    with pytest.raises(ValueError, match="start holds 3 candidates"):
        search_variants(start, 4, reference, vectors, Settings())
    with pytest.raises(ValueError, match="not finite"):
        search_variants(start, 3, reference, lambda rows: vectors(rows) * torch.nan, Settings())
