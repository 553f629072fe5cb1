"""Initial noises: their spectrum, what is drawn beside them, and which of them differ most."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from comfyui_diversity.core.methods.starts import candidates, most_different, pink, wide
from torch import Tensor

from benchmarks.peers import most_different as reference_choice
from benchmarks.peers import pink as reference


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("exponent", [0.3, 1.0])
def test_the_power_spectrum_falls_with_the_frequency(exponent: float) -> None:
    found = pink(noise(400, 4, 64, 64), exponent)
    power = torch.fft.fft2(found.double()).abs().square().mean((0, 1))
    frequency = torch.arange(4, 30)
    along = (power[0, frequency] + power[frequency, 0]).log()
    slope = torch.linalg.lstsq(torch.stack([frequency.log(), torch.ones(26)], 1).double(), along[:, None]).solution[0]
    assert slope.item() == pytest.approx(-exponent, abs=0.05)


@pytest.mark.parametrize("make", [lambda start: pink(start, 0.8), lambda start: wide(start, 3.0)])
def test_every_image_keeps_its_length_and_its_type(make: Callable[[Tensor], Tensor]) -> None:
    start = noise(3, 4, 2, 10, 16).half()
    found = make(start)
    assert found.dtype == torch.float16
    assert found.shape == start.shape
    lengths = [x.float().flatten(1).norm(dim=1) for x in (start, found)]
    torch.testing.assert_close(*lengths, rtol=1e-3, atol=0)
    assert not torch.allclose(found, start, atol=0.1)


def test_it_is_the_rival_of_the_benchmarks() -> None:
    start = noise(2, 4, 16, 24)
    torch.testing.assert_close(pink(start, 0.5), reference(start, 0.5))
    assert pink(start, 0) is start


@pytest.mark.parametrize("exponent", [-0.1, float("nan"), float("inf")])
def test_other_exponents_are_refused(exponent: float) -> None:
    with pytest.raises(ValueError, match=r"pink is .*0 or more"):
        pink(noise(1, 4, 8, 8), exponent)


@pytest.mark.parametrize("shape", [(3, 4, 8, 12), (2, 4, 3, 6, 8)])
def test_wide_noise_has_larger_means_of_its_blocks_and_nothing_else(shape: tuple[int, ...]) -> None:
    start = noise(*shape).double()
    found = wide(start, 2.5).double()
    height, width = shape[-2] // 2, shape[-1] // 2
    for block in ((slice(a, a + height), slice(b, b + width)) for a in (0, height) for b in (0, width)):
        one, other = (x[(..., *block)].flatten(2) for x in (start, found))  # of all frames
        means = [x.mean(2, keepdim=True) for x in (one, other)]
        detail = [x - mean for x, mean in zip((one, other), means, strict=True)]
        scale = detail[1].flatten(1).norm(dim=1) / detail[0].flatten(1).norm(dim=1)  # what keeps an image's length
        shrunk = scale[:, None, None]
        torch.testing.assert_close(detail[1], shrunk * detail[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(means[1], 2.5 * shrunk * means[0], rtol=1e-4, atol=1e-5)


def test_at_1_noise_is_no_wider() -> None:
    start = noise(2, 4, 8, 8)
    assert wide(start, 1.0) is start


@pytest.mark.parametrize("factor", [0.9, float("nan"), float("inf")])
def test_other_factors_are_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=r"wide is .*1 or more"):
        wide(noise(1, 4, 8, 8), factor)


def test_candidates_are_the_same_for_the_same_noise_and_white() -> None:
    start = noise(50, 4, 16, 16)
    first, second, third = candidates(start, 3)
    assert first is start
    assert all(torch.equal(*pair) for pair in zip(candidates(start.clone(), 2)[1:], [second], strict=True))
    other = candidates(noise(50, 4, 16, 16, seed=1), 2)[1]
    for one, two in itertools.combinations((first, second, third, other), 2):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]) < 0.02
    assert second.mean() == pytest.approx(0, abs=0.02)
    assert second.std() == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match=r"candidates is 0; it must be 1 or more"):
        candidates(start, 0)


def test_each_image_gets_its_candidate_least_like_those_before() -> None:
    # About a mean of zero: the first image looks right, the second's candidates right, up, left and down.
    right, up, left, down = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    three = torch.stack([torch.stack([one] * 3) for one in (right, up, left, down)])
    found = most_different(three, alike=False)
    assert found[:2] == [(0, 0), (2, 1)]
    assert found[2] in ((1, 2), (3, 2))


def test_images_that_are_alike_share_their_candidates() -> None:
    right, up, left = torch.tensor([[1.0, 0], [0, 1], [-1, -1]])
    # Only the first image's second candidate looks left, so an image that may have its own alone cannot.
    features = torch.stack([torch.stack([right, right]), torch.stack([left, up])])
    assert most_different(features, alike=False) == [(0, 0), (1, 1)]
    assert most_different(features, alike=True) == [(0, 0), (1, 0)]


@pytest.mark.parametrize("alike", [False, True])
def test_no_noise_is_given_twice_where_all_estimates_are_the_same(alike: bool) -> None:
    assert len(set(most_different(torch.ones(3, 5, 4), alike))) == 5


@pytest.mark.parametrize("alike", [False, True])
def test_the_choice_is_the_greedy_one_by_exhaustion(alike: bool) -> None:
    features = noise(4, 5, 7)
    found = most_different(features, alike)
    unit = torch.nn.functional.normalize(features - features.mean((0, 1)), dim=2)
    assert found[0] == (0, 0)
    assert len(set(found)) == 5
    for k in range(1, 5):
        open_to_it = [(c, i) for c in range(4) for i in (range(5) if alike else [k]) if (c, i) not in found[:k]]
        worst = {one: max(float(unit[one] @ unit[kept]) for kept in found[:k]) for one in open_to_it}
        assert found[k] == min(worst, key=worst.__getitem__)


def test_of_alike_images_it_is_the_choice_of_the_benchmarks() -> None:
    features = noise(3, 6, 9)
    rows = features.flatten(0, 1)
    expected = reference_choice(rows - rows.mean(0), 6)
    assert [6 * choice + image for choice, image in most_different(features, alike=True)] == expected
