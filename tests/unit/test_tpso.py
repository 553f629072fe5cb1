"""TPSO in pure torch: losses against an independent float64 reference, the bound, spreading, calibration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_diversity.core.methods.tpso import (
    KEEP_MARGIN,
    KEEP_WEIGHT,
    Settings,
    Variants,
    calibrated_kappa,
    directions_to_keep,
    diversity_loss,
    initial_offsets,
    least_mean_pairwise,
    mean_pairwise,
    optimise_variants,
    semantic_loss,
    surface_field,
)
from torch import Tensor
from torch.nn import functional as F

POSITIONS, WIDTH, SPACE = 3, 16, 24


def toy_encoder(seed: int = 0, dtype: torch.dtype = torch.float64):
    """A smooth nonlinear map from offsets to vectors, with its pullback by autograd, and the prompt's own vector."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(POSITIONS * WIDTH, 48, generator=generator).to(dtype) / 7
    second = torch.randn(48, SPACE, generator=generator).to(dtype) / 7
    base = torch.randn(POSITIONS * WIDTH, generator=generator).to(dtype)

    def vectors(offsets: Tensor) -> Tensor:
        return torch.tanh((base + offsets.flatten(1)) @ first) @ second

    def encode(offsets: Tensor):
        variable = offsets.detach().clone().requires_grad_()
        with torch.enable_grad():
            found = vectors(variable)
        return found.detach(), lambda gradient: torch.autograd.grad(found, variable, gradient, retain_graph=True)[0]

    return encode, vectors(torch.zeros(1, POSITIONS, WIDTH, dtype=dtype))[0]


def run(count: int, **settings) -> Variants:
    encode, reference = toy_encoder()
    start = initial_offsets(count, POSITIONS, WIDTH, 0).double()
    return optimise_variants(start, reference, encode, Settings(**settings))


def unit_vectors(count: int, seed: int = 3) -> Tensor:
    return F.normalize(torch.randn(count, SPACE, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


def test_losses_equal_a_reference_written_pair_by_pair():
    unit, prompt = unit_vectors(5), unit_vectors(1, 9)[0]
    kappa, tolerance = 0.3, 0.05
    values = unit.numpy()
    semantic = 0.0
    for row in values:
        cosine = float(np.dot(row, prompt.numpy()))
        semantic += max(0.0, (kappa - tolerance) - cosine) + max(0.0, cosine - (kappa + tolerance))
    pairs = [float(np.dot(values[i], values[j])) for i in range(5) for j in range(5) if i != j]
    assert semantic > 0
    assert semantic_loss(unit @ prompt, kappa, tolerance).item() == pytest.approx(semantic, abs=1e-14)
    assert mean_pairwise(unit).item() == pytest.approx(np.mean(pairs), abs=1e-14)
    assert diversity_loss(unit, 2).item() == pytest.approx(-(1 - np.mean(pairs)) * 5 / 2, abs=1e-14)


@pytest.mark.parametrize(("kappa", "count"), [(0.8, 10), (0.0, 3), (1.0, 5)])
def test_bound_is_reached_by_a_simplex_and_by_nothing_lower(kappa: float, count: int):
    corners = torch.eye(count, dtype=torch.float64) - 1 / count  # their differences from the centre: a simplex
    around = F.normalize(corners, dim=1)
    vectors = torch.cat([torch.full((count, 1), kappa, dtype=torch.float64), math.sqrt(1 - kappa**2) * around], dim=1)
    assert mean_pairwise(vectors).item() == pytest.approx(least_mean_pairwise(kappa, count), abs=1e-12)
    others = F.normalize(torch.randn(50, count, 7, generator=torch.Generator().manual_seed(1)).double(), dim=2)
    for other in others:
        placed = torch.cat([torch.full((count, 1), kappa, dtype=torch.float64), math.sqrt(1 - kappa**2) * other], 1)
        assert mean_pairwise(placed).item() >= least_mean_pairwise(kappa, count) - 1e-12


@pytest.mark.parametrize("kappa", [0.8, 0.6])
def test_spreading_ends_on_the_surface_within_3_percent_of_the_bound(kappa: float):
    found = run(8, kappa=kappa, learning_rate=0.5, steps=60)
    assert (found.cosines[-1] - kappa).abs().max() <= 0.01
    assert mean_pairwise(found.vectors).item() <= least_mean_pairwise(kappa, 8) + 0.03 * abs(
        least_mean_pairwise(kappa, 8)
    )


def test_corrections_onto_the_surface_are_not_counted_as_steps():
    found = run(8, learning_rate=0.5, steps=3)
    assert len(found.cosines) == len(found.spreads) == 4
    assert torch.equal(found.cosines[-1], found.vectors @ F.normalize(toy_encoder()[1], dim=0))
    assert (found.cosines[-1] - 0.8).abs().max() <= 0.01


def test_one_variant_has_no_diversity_and_only_moves_to_kappa():
    found = run(1, learning_rate=0.5)
    assert found.spreads.numel() == 0
    assert found.cosines[-1].item() == pytest.approx(0.8, abs=0.01)
    assert diversity_loss(unit_vectors(1), 1).item() == 0


def test_surface_field_has_two_parts_at_right_angles():
    unit, prompt = unit_vectors(5), unit_vectors(1, 9)[0]
    towards = surface_field(unit, prompt, 0.5, diversity=0)
    both = surface_field(unit, prompt, 0.5, diversity=1)
    assert torch.allclose((both * unit).sum(1), torch.zeros(5).double(), atol=1e-12)
    assert torch.allclose(((both - towards) @ prompt), torch.zeros(5).double(), atol=1e-12)
    # following it for exactly its length arrives at kappa
    angle = towards.norm(dim=1, keepdim=True)
    arrived = torch.cos(angle) * unit + torch.sin(angle) * F.normalize(towards, dim=1)
    assert torch.allclose(arrived @ prompt, torch.full((5,), 0.5).double(), atol=1e-12)


def test_directions_to_keep_lead_along_the_surface_and_away_from_each_change():
    prompt, changed = unit_vectors(1, 9)[0], unit_vectors(6, 4)
    next_to_nothing = F.normalize(prompt + 0.01 * changed[0], dim=0)
    keep = directions_to_keep(prompt, torch.cat([changed, next_to_nothing[None]]))
    assert keep.shape == (6, SPACE)
    assert torch.allclose(keep.norm(dim=1), torch.ones(6).double(), atol=1e-12)
    assert torch.allclose(keep @ prompt, torch.zeros(6).double(), atol=1e-12)
    moved = F.normalize(prompt + 1e-3 * keep, dim=1)
    assert ((moved * changed).sum(1) < changed @ prompt).all()
    assert directions_to_keep(prompt, changed[:0]).shape == (0, SPACE)


def test_keeping_is_the_slope_of_half_the_squared_hinge():
    unit, prompt = unit_vectors(4), unit_vectors(1, 9)[0]
    keep, margin = directions_to_keep(prompt, unit_vectors(5, 4)), KEEP_MARGIN * math.sqrt(0.75)
    pull = surface_field(unit, prompt, 0.5, 0.7, keep) - surface_field(unit, prompt, 0.5, 0.7)

    def energy(vector: Tensor) -> float:
        return sum(KEEP_WEIGHT / 2 * max(0.0, margin - float(vector @ way)) ** 2 for way in keep)

    for k in range(4):
        # a way along the sphere on which the cosine to the prompt stays
        plane = torch.linalg.qr(torch.stack([unit[k], prompt], dim=1))[0]
        way = unit_vectors(1, 30 + k)[0]
        way = F.normalize(way - plane @ (plane.T @ way), dim=0)
        slope = (energy(unit[k] + 1e-6 * way) - energy(unit[k] - 1e-6 * way)) / 2e-6
        assert (pull[k] @ way).item() == pytest.approx(-slope, rel=1e-5)
        assert torch.allclose(plane.T @ pull[k], torch.zeros(2).double(), atol=1e-12)
    assert pull.norm() > 0.1


@pytest.mark.parametrize("count", [1, 8])
def test_directions_are_kept(count: int):
    encode, reference = toy_encoder()
    changes = 0.1 * torch.randn(4, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(2)).double()
    keep = directions_to_keep(reference, encode(changes)[0])
    start, settings = initial_offsets(count, POSITIONS, WIDTH, 0, 0.1).double(), Settings(kappa=0.7, learning_rate=0.5)
    free = optimise_variants(start, reference, encode, settings)
    kept = optimise_variants(start, reference, encode, settings, keep=keep)
    assert (kept.cosines[-1] - 0.7).abs().max() <= 0.01
    assert (free.vectors @ keep.T).min() < -0.2
    assert (kept.vectors @ keep.T).min() > -0.1
    if count > 1:
        assert mean_pairwise(kept.vectors) < 0.7


def test_offsets_come_from_the_seed_and_a_variant_keeps_its_own():
    few, many = initial_offsets(3, 2, 4, 7), initial_offsets(5, 2, 4, 7)
    assert torch.equal(few, many[:3])
    assert not torch.equal(few, initial_offsets(3, 2, 4, 8))


def test_calibration_carries_over_the_share_of_the_way():
    assert calibrated_kappa(0.8, 0.5, 0.5) == pytest.approx(0.8)
    assert calibrated_kappa(0.8, 0.9, 0.5) == pytest.approx(0.96)
    assert calibrated_kappa(1.0, 0.9, 0.5) == 1.0
    with pytest.raises(ValueError, match="unrelated is 1"):
        calibrated_kappa(0.8, 1.0, 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("kappa", 1.2), ("tolerance", 0.0), ("diversity", -1.0), ("steps", -1), ("learning_rate", float("nan"))],
)
def test_bad_settings_are_named(name: str, value: Any):
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})


def test_bad_input_is_named():
    encode, reference = toy_encoder()
    with pytest.raises(ValueError, match="no words"):
        initial_offsets(2, 0, 4, 0)
    with pytest.raises(ValueError, match="variants is 1"):
        least_mean_pairwise(0.8, 1)
    with pytest.raises(ValueError, match="not finite"):
        optimise_variants(
            initial_offsets(2, POSITIONS, WIDTH, 0).double(),
            reference,
            lambda offsets: (encode(offsets)[0] * float("nan"), encode(offsets)[1]),
            Settings(),
        )
