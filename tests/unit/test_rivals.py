"""The mathematics of every rival, against closed forms and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.ours import drawn_back
from benchmarks.rivals import RIVALS, TRIES
from benchmarks.rivals.cads import annealed, gamma
from benchmarks.rivals.contextual_repulsion import repelled, vendi_gradient
from benchmarks.rivals.dave import attenuated
from benchmarks.rivals.dpp import gradient, log_likelihood
from benchmarks.rivals.embedding_noise import renormalised, uniform_on_part
from benchmarks.rivals.particle_guidance import median_of_pairs, repulsion, squared_distances


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_rival_is_tried_equally_often() -> None:
    assert {name: len(rival.grid) for name, rival in RIVALS.items()} == dict.fromkeys(RIVALS, TRIES)
    assert all(rival.knob in settings for rival in RIVALS.values() for settings in rival.grid)


def test_cads_anneals_from_noise_to_the_prompt() -> None:
    assert [gamma(t, 0.6, 0.9) for t in (0.0, 0.6, 0.75, 0.9, 1.0)] == pytest.approx([1, 1, 0.5, 0, 0])
    y, noise = 3 + 2 * drawn(2, 5, 7), drawn(2, 5, 7, seed=1)
    assert torch.equal(annealed(y, noise, 1.0, 0.5, mixing=0.0), y)
    plain = annealed(y, noise, 0.25, 0.4, mixing=0.0)
    assert torch.allclose(plain, 0.5 * y + 0.4 * math.sqrt(0.75) * noise)
    found = annealed(y, noise, 0.25, 0.4)
    for k in range(2):  # each row keeps its own mean and deviation
        assert torch.allclose(found[k].mean(), y[k].mean())
        assert torch.allclose(found[k].std(), y[k].std())


def test_uniform_noise_reaches_the_chosen_part_alone() -> None:
    value = torch.zeros(200, 500)
    moved = uniform_on_part(value, 3.0, 0.25, torch.Generator().manual_seed(0))
    assert (moved != 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert moved.abs().max().item() <= 3.0
    assert moved[moved != 0].square().mean().item() == pytest.approx(3.0, rel=0.02)  # 3^2 / 3


def test_varied_conditioning_keeps_the_length_of_every_token() -> None:
    value = drawn(2, 7, 4096) * torch.arange(1, 8)[:, None]
    moved = renormalised(value, 1.0, torch.Generator().manual_seed(0))
    assert torch.allclose(moved.norm(dim=-1), value.norm(dim=-1))
    # noise as long as the token and across it: an angle of 45 degrees, whatever its length
    cosines = torch.nn.functional.cosine_similarity(moved, value, dim=-1)
    assert torch.allclose(cosines, torch.full_like(cosines, 0.5**0.5), atol=0.03)


def test_dave_takes_away_a_share_of_the_mean_and_nothing_else() -> None:
    tokens = 5 + drawn(2, 9, 4)
    found = attenuated(tokens, 0.3)
    assert torch.allclose(found.mean(1), 0.7 * tokens.mean(1))
    assert torch.allclose(found - found.mean(1, keepdim=True), tokens - tokens.mean(1, keepdim=True))


def test_particles_are_pushed_along_the_potential() -> None:
    flat = drawn(4, 3).requires_grad_()
    with torch.no_grad():
        width = median_of_pairs(squared_distances(flat)) / math.log(4)
    potential = -0.5 * torch.exp(-squared_distances(flat + 0) / width).sum()
    [expected] = torch.autograd.grad(potential, flat)
    assert torch.allclose(repulsion(flat.detach()), width / 2 * expected)
    pair = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)  # their own distance is the median: exp(-log 2)
    assert torch.allclose(repulsion(pair), torch.tensor([[-0.5, 0.0], [0.5, 0.0]], dtype=torch.float64))


def test_the_likelihood_of_a_pair_has_its_closed_form() -> None:
    pair = drawn(2, 5)
    k = math.exp(-0.5)  # its own distance is the median
    expected = math.log((1 - k * k) / ((2 - k) * (2 + k)))
    assert log_likelihood(pair).item() == pytest.approx(expected, rel=1e-4)
    rows = drawn(4, 5)
    moved = rows + 1e-3 * gradient(rows) / gradient(rows).norm()
    assert log_likelihood(moved) > log_likelihood(rows)


def test_repulsion_of_contexts_raises_the_vendi_score() -> None:
    from comfyui_diversity.core.methods.metrics import vendi_score

    flat, step = drawn(4, 6) + 2, 1e-6
    direction = drawn(4, 6, seed=1)
    slope = (math.log(vendi_score(flat + step * direction)) - math.log(vendi_score(flat - step * direction))) / (
        2 * step
    )
    assert (vendi_gradient(flat) * direction).sum().item() == pytest.approx(slope, rel=1e-4)
    tokens = (drawn(4, 3, 6) + 2).float()
    found = repelled(tokens, 0.5)
    assert torch.allclose(found.norm(dim=-1), tokens.norm(dim=-1))
    assert vendi_score(found.flatten(1)) > vendi_score(tokens.flatten(1)) + 0.01


def test_equal_contexts_stay_finite() -> None:
    assert torch.isfinite(repelled(torch.ones(3, 2, 4), 1.0)).all()


def test_an_image_outside_goes_back_at_the_pace_of_the_others() -> None:
    gradient, back = drawn(2, 3, 4, 4), drawn(2, 3, 4, 4, seed=1)
    found = drawn_back(gradient, back, torch.tensor([False, True]))
    assert torch.equal(found[0], gradient[0])
    assert found[1].norm().item() == pytest.approx(gradient[1].norm().item())
    assert torch.nn.functional.cosine_similarity(found[1].flatten(), back[1].flatten(), dim=0).item() == pytest.approx(
        1
    )
