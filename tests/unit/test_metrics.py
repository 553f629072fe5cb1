"""Metrics against closed forms and against the reference implementation of the Vendi score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from comfyui_diversity.core.methods.metrics import effective_number, mean_pairwise_similarity, vendi_score
from hypothesis import given, settings
from hypothesis import strategies as st
from vendi_score import vendi


def test_identical_features() -> None:
    features = torch.tensor([[1.0, 2.0, 3.0]]).repeat(7, 1)
    assert vendi_score(features) == pytest.approx(1.0)
    assert mean_pairwise_similarity(features) == pytest.approx(1.0)


def test_orthogonal_features() -> None:
    features = torch.diag(torch.tensor([1.0, 5.0, 0.1, 3.0]))
    assert vendi_score(features) == pytest.approx(4.0)
    assert mean_pairwise_similarity(features) == pytest.approx(0.0, abs=1e-12)


def test_two_vectors_at_an_angle() -> None:
    c = math.cos(0.7)
    features = torch.tensor([[1.0, 0.0], [c, math.sin(0.7)]], dtype=torch.float64)
    shares = [(1 + c) / 2, (1 - c) / 2]  # eigenvalues of the 2 x 2 kernel over 2
    assert mean_pairwise_similarity(features) == pytest.approx(c)
    assert vendi_score(features) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_against_the_reference_implementation(count: int, width: int, seed: int) -> None:
    features = np.random.default_rng(seed).standard_normal((count, width))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert vendi_score(torch.from_numpy(features)) == pytest.approx(vendi.score_K(unit @ unit.T), rel=1e-6)
    pairs = [unit[i] @ unit[j] for i in range(count) for j in range(count) if i != j]
    assert mean_pairwise_similarity(torch.from_numpy(features)) == pytest.approx(np.mean(pairs), abs=1e-9)


def test_length_of_a_feature_does_not_matter() -> None:
    features = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    scaled = features * torch.tensor([[0.1], [1.0], [7.0], [100.0], [3.0]])
    assert vendi_score(scaled) == pytest.approx(vendi_score(features), rel=1e-5)


def test_effective_number() -> None:
    assert effective_number(["red"] * 9) == pytest.approx(1.0)
    assert effective_number(["red", "blue", "green", "pink"] * 3) == pytest.approx(4.0)
    assert effective_number(["red", "red", "red", "blue"]) == pytest.approx(
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    )


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.zeros(3, 4), "row of zeros"),
        (torch.ones(4), "shape"),
        (torch.ones(0, 4), "shape"),
        (torch.tensor([[1.0, float("nan")], [1.0, 0.0]]), "not finite"),
    ],
)
def test_bad_features_are_named(features: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        vendi_score(features)


def test_too_few_images_are_named() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        mean_pairwise_similarity(torch.ones(1, 4))
    with pytest.raises(ValueError, match="at least 1"):
        effective_number([])
