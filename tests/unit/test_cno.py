"""Contrastive Noise Optimization as mathematics: no ComfyUI, no model but a small random network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from comfyui_diversity.core.methods.cno import (
    DENOMINATORS,
    Settings,
    closed_form_gamma,
    contrastive_loss,
    optimise_noise,
    pool,
    published,
)
from comfyui_diversity.core.methods.coarse import Coarse
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

Pullback = Callable[[Tensor], Tensor]


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small_network() -> nn.Module:
    """Fixed weights, image by image, not linear."""
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 3, padding=1))
    for index, parameter in enumerate(network.parameters()):
        parameter.data = gaussian(*parameter.shape, seed=index) * 0.2
        parameter.requires_grad_(False)
    return network


class Estimate:
    """Clean estimate noise + network(noise) + an image that all have in common, which is what mode collapse looks
    like.

    Differentiated in full; remembers on what it was called.
    """

    common = 2 * gaussian(4, 1, 1, seed=99)

    def __init__(self) -> None:
        self.network = small_network()
        self.calls: list[Tensor] = []

    def __call__(self, noise: Tensor) -> tuple[Tensor, Pullback]:
        self.calls.append(noise.clone())
        variable = noise.detach().requires_grad_()
        clean = variable + self.network(variable) + self.common
        return clean.detach(), lambda gradient: torch.autograd.grad(clean, variable, gradient)[0]


def similarity(clean: Tensor) -> float:
    """Mean cosine over cells and pairs."""
    unit = nn.functional.normalize(clean, dim=1).flatten(2)
    cosines = torch.einsum("icp,jcp->ijp", unit, unit).mean(2)
    return cosines[~torch.eye(len(clean), dtype=torch.bool)].mean().item()


# --- gamma -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "expected"), [(2, 1.0), (5, 0.878), (8, 0.837)])
def test_closed_form_gamma_has_the_papers_values(batch: int, expected: float) -> None:
    assert closed_form_gamma(batch - 1, 0.1) == pytest.approx(expected, abs=5e-4)


@given(st.integers(1, 500), st.floats(0.01, 2))
def test_closed_form_gamma_balances_full_attraction_and_full_repulsion(negatives: int, temperature: float) -> None:
    """Its definition: the attraction at its highest, 1 / (gamma tau), is the repulsion at its highest."""
    gamma = closed_form_gamma(negatives, temperature)
    assert 1 / (gamma * temperature) == pytest.approx(math.log(negatives * math.exp(1 / temperature)), rel=1e-9)


def test_closed_form_gamma_refuses_no_negatives() -> None:
    with pytest.raises(ValueError, match="negatives is 0"):
        closed_form_gamma(0, 0.1)


# --- loss ------------------------------------------------------------------------------------------------------------


def loss_by_loops(
    clean: np.ndarray,
    reference: np.ndarray,
    temperature: float,
    gamma: float,
    denominator: str,
) -> float:
    """The formula written out, one cosine at a time."""

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / math.sqrt((a @ a) * (b @ b)))

    batch, _, cells = clean.shape
    total = 0.0
    for cell in range(cells):
        for i in range(batch):
            anchor = clean[i, :, cell]
            positive = math.exp(cosine(anchor, reference[i, :, cell]) / (gamma * temperature))
            below = 0.0
            for j in range(batch):
                if j != i or denominator == "all":
                    below += math.exp(cosine(anchor, clean[j, :, cell]) / temperature)
                elif denominator == "positive":
                    below += positive
            total -= math.log(positive / below)
    return total / (batch * cells)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(2, 5),
    channels=st.integers(2, 6),
    cells=st.integers(1, 5),
    temperature=st.floats(0.05, 1),
    gamma=st.floats(0.3, 2),
    denominator=st.sampled_from(DENOMINATORS),
    seed=st.integers(0, 10_000),
)
def test_loss_is_the_formula(
    batch: int,
    channels: int,
    cells: int,
    temperature: float,
    gamma: float,
    denominator: str,
    seed: int,
) -> None:
    clean, reference = (gaussian(batch, channels, cells, seed=seed + k, dtype=torch.float64) for k in range(2))
    loss = contrastive_loss(
        clean,
        reference,
        temperature=temperature,
        gamma=gamma,
        denominator=denominator,
    )
    expected = loss_by_loops(clean.numpy(), reference.numpy(), temperature, gamma, denominator)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_loss_gradient_agrees_with_finite_differences(denominator: str) -> None:
    clean = gaussian(3, 4, 5, dtype=torch.float64).requires_grad_()
    reference = gaussian(3, 4, 5, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: contrastive_loss(x, reference, temperature=0.3, gamma=0.8, denominator=denominator),
        clean,
    )


# --- pooling ---------------------------------------------------------------------------------------------------------


def test_pool_averages_cells_and_keeps_frames_apart() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert pool(image, 2).tolist() == [[[2.5, 4.5, 10.5, 12.5]]]
    video = torch.stack([image, image + 100], 2)
    assert pool(video, 1).tolist() == [[[7.5, 107.5]]]


def test_pool_keeps_a_grid_that_is_coarser_than_the_window() -> None:
    assert pool(gaussian(2, 4, 8, 6), 16).shape == (2, 4, 48)


# --- optimisation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_estimates_move_apart(denominator: str) -> None:
    noise, estimate = gaussian(5, 4, 8, 8), Estimate()
    moved = optimise_noise(noise, estimate, Settings(denominator=denominator))
    assert similarity(estimate(moved)[0]) < similarity(estimate(noise)[0]) - 0.03


def test_two_images_are_enough() -> None:
    noise, estimate = gaussian(2, 4, 8, 8), Estimate()
    moved = optimise_noise(noise, estimate, Settings())
    assert similarity(estimate(moved)[0]) < similarity(estimate(noise)[0]) - 0.03


def test_one_image_has_nothing_to_differ_from() -> None:
    with pytest.raises(ValueError, match="batch holds 1 image"):
        optimise_noise(gaussian(1, 4, 8, 8), Estimate(), Settings())


@pytest.mark.parametrize("off", [Settings(iterations=0), Settings(strength=0.0)])
def test_settings_that_do_nothing_give_the_same_noise_at_no_cost(off: Settings) -> None:
    noise, estimate = gaussian(3, 4, 8, 8), Estimate()
    assert torch.equal(optimise_noise(noise, estimate, off), noise)
    assert estimate.calls == []


def test_one_estimate_for_each_iteration_the_first_of_them_on_the_noise_itself() -> None:
    noise, estimate = gaussian(3, 4, 8, 8), Estimate()
    optimise_noise(noise, estimate, Settings(iterations=4))
    assert len(estimate.calls) == 4
    assert torch.equal(estimate.calls[0], noise)
    assert not torch.equal(estimate.calls[1], noise)


def test_the_first_step_moves_every_value_by_the_learning_rate() -> None:
    noise = gaussian(3, 4, 8, 8)
    moved = optimise_noise(noise, Estimate(), Settings(strength=0.3, iterations=1, projection="off"))
    assert torch.allclose((moved - noise).abs(), torch.full_like(noise, 0.3), atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(strength=st.floats(0.05, 2), iterations=st.integers(1, 12), seed=st.integers(0, 1000))
def test_strength_bounds_the_move(strength: float, iterations: int, seed: int) -> None:
    """Adam's step is bounded by its learning rate but for the lag of its second moment."""
    noise = gaussian(3, 4, 6, 6, seed=seed)
    moved = optimise_noise(noise, Estimate(), Settings(strength=strength, iterations=iterations, projection="off"))
    assert (moved - noise).abs().max() <= strength * 1.35


def test_norm_projection_keeps_the_length_of_each_noise() -> None:
    noise = gaussian(4, 4, 8, 8) * torch.tensor([0.5, 1, 1, 2])[:, None, None, None]
    lengths = noise.flatten(1).norm(dim=1)
    kept = optimise_noise(noise, Estimate(), Settings(strength=1.0))
    free = optimise_noise(noise, Estimate(), Settings(strength=1.0, projection="off"))
    assert torch.allclose(kept.flatten(1).norm(dim=1), lengths, rtol=1e-5)
    assert not torch.allclose(free.flatten(1).norm(dim=1), lengths, rtol=1e-2)


def test_spectrum_projection_keeps_the_energy_of_every_band() -> None:
    noise = gaussian(3, 4, 8, 12)
    kept = optimise_noise(noise, Estimate(), Settings(strength=1.0, projection="spectrum"))
    free = optimise_noise(noise, Estimate(), Settings(strength=1.0, projection="norm"))

    def bands(z: Tensor) -> np.ndarray:
        power = np.square(np.abs(np.fft.fft2(z.double().numpy()))).sum(1)
        rows, columns = np.fft.fftfreq(8) * 8, np.fft.fftfreq(12) * 12
        band = np.round(np.hypot(rows[:, None], columns[None])).astype(int)
        return np.stack([power[:, band == k].sum(1) for k in range(band.max() + 1)])

    assert np.allclose(bands(kept), bands(noise), rtol=1e-3)
    assert not np.allclose(bands(free), bands(noise), rtol=0.1)


@pytest.mark.parametrize("projection", ["norm", "spectrum"])
def test_only_the_movable_part_moves_and_keeps_its_own_length(projection: str) -> None:
    noise = gaussian(3, 4, 8, 8)
    movable = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    movable[..., :5] = True
    movable[0] = False  # one image may not change at all
    moved = optimise_noise(noise, Estimate(), Settings(projection=projection), movable=movable)
    still = ~movable.expand_as(noise)
    assert torch.equal(moved[still], noise[still])
    assert not torch.equal(moved, noise)
    for before, after in zip(noise, moved, strict=True):
        assert after[..., :5].norm().item() == pytest.approx(before[..., :5].norm().item(), rel=1e-5)


# --- the coarse part alone -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), cells=st.integers(1, 9))
def test_the_coarse_part_is_the_means_of_blocks_and_goes_back_by_the_transpose(height: int, width: int, cells: int):
    noise = gaussian(2, 3, height, width, dtype=torch.float64)
    coarse, rows, columns = Coarse(noise, cells), min(cells, height), min(cells, width)
    found, other = coarse.of(noise), gaussian(2, 3, rows, columns, seed=1, dtype=torch.float64)
    first = noise[..., : -(-height // rows), : -(-width // columns)]  # the first block is one of the larger ones
    assert torch.allclose(found[..., 0, 0], first.mean((-1, -2)) * math.sqrt(first[0, 0].numel()))
    assert torch.allclose(coarse.of(coarse.spread(other)), other)  # so white noise stays white
    assert (found * other).sum().item() == pytest.approx((noise * coarse.spread(other)).sum().item())


@pytest.mark.parametrize("shape", [(3, 4, 8, 12), (3, 4, 7, 5), (3, 4, 2, 8, 8)])
def test_with_cells_all_but_the_coarse_part_stays(shape: tuple[int, ...]) -> None:
    noise, chosen = gaussian(*shape), Settings(cells=2, projection="norm")
    moved = optimise_noise(noise, lambda given: (given + 2, lambda gradient: gradient), chosen)
    coarse = Coarse(noise, 2)
    before, after = coarse.of(noise), coarse.of(moved)
    assert torch.allclose(moved - coarse.spread(after), noise - coarse.spread(before), atol=1e-6)
    assert not torch.allclose(after, before, atol=0.1)
    assert torch.allclose(after.flatten(1).norm(dim=1), before.flatten(1).norm(dim=1), rtol=1e-4)


def test_coarse_steps_go_down_the_loss_by_finite_differences() -> None:
    noise, estimate = gaussian(3, 4, 8, 8), Estimate()
    estimate.network.double()

    def in_double(given: Tensor) -> tuple[Tensor, Pullback]:
        clean, pullback = estimate(given.double())
        return clean, lambda gradient: pullback(gradient.double())

    chosen = Settings(strength=0.1, iterations=1, cells=2, projection="off")
    coarse = Coarse(noise.double(), 2)
    # Adam's first step is the gradient's sign.
    step = coarse.of((optimise_noise(noise, in_double, chosen) - noise).double())
    reference = pool(in_double(noise)[0], chosen.window)

    def loss(part: Tensor) -> float:
        clean = pool(in_double(noise + coarse.spread(part))[0], chosen.window)
        return contrastive_loss(clean, reference, temperature=0.1, gamma=closed_form_gamma(2, 0.1)).item()

    for at in [(0, 0, 0, 0), (1, 2, 1, 0), (2, 3, 1, 1)]:
        little = torch.zeros_like(step)
        little[at] = 1e-4
        slope = (loss(little) - loss(-little)) / 2e-4
        assert abs(slope) > 1e-5
        assert step[at].item() == pytest.approx(-0.1 * math.copysign(1, slope), rel=1e-3)


def test_with_cells_only_the_movable_part_moves() -> None:
    noise, movable = gaussian(3, 4, 8, 8), torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    movable[..., :3] = True
    moved = optimise_noise(noise, Estimate(), Settings(cells=4, projection="norm"), movable=movable)
    still = ~movable.expand_as(noise)
    assert torch.equal(moved[still], noise[still])
    assert not torch.allclose(moved, noise, atol=1e-2)
    assert torch.allclose(moved[..., :3].flatten(1).norm(dim=1), noise[..., :3].flatten(1).norm(dim=1), rtol=1e-5)


def test_scale_of_the_estimate_does_not_matter() -> None:
    """The cosine ignores it, and Adam's small constant must not bring it back: v-prediction has slopes of 1e-4."""

    class Scaled(Estimate):
        def __call__(self, noise: Tensor) -> tuple[Tensor, Pullback]:
            clean, pullback = super().__call__(noise)
            return clean, lambda gradient: pullback(gradient) * 2.0**-40

    noise = gaussian(3, 4, 8, 8)
    assert torch.equal(optimise_noise(noise, Estimate(), Settings()), optimise_noise(noise, Scaled(), Settings()))


def test_same_input_same_output_and_the_input_and_global_random_state_are_left_alone() -> None:
    noise = gaussian(3, 4, 8, 8)
    estimate = Estimate()
    before, state = noise.clone(), torch.get_rng_state()
    first, second = (optimise_noise(noise, estimate, Settings()) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(noise, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_noise_comes_back_as_such() -> None:
    moved = optimise_noise(gaussian(3, 4, 8, 8).half(), Estimate(), Settings())
    assert moved.dtype == torch.float16
    assert torch.isfinite(moved).all()


def test_video_and_other_channel_counts() -> None:
    """An estimate that is a fixed rotation of the channels, so that every shape can go through it."""
    turn = torch.linalg.qr(gaussian(7, 7))[0]

    def estimate(noise: Tensor) -> tuple[Tensor, Pullback]:
        return torch.einsum("dc,bc...->bd...", turn, noise), lambda g: torch.einsum("dc,bd...->bc...", turn, g)

    for shape in ((3, 7, 9, 5), (3, 7, 2, 8, 8)):
        noise = gaussian(*shape)
        moved = optimise_noise(noise, estimate, Settings(window=4))
        assert moved.shape == noise.shape
        assert torch.isfinite(moved).all()
        assert not torch.equal(moved, noise)


@pytest.mark.parametrize("shape", [(3, 4, 64), (3, 4), (2, 2, 4, 4, 4, 4)])
def test_other_ranks_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        optimise_noise(gaussian(*shape), Estimate(), Settings())


@pytest.mark.parametrize("alike", [[0, 0, 0], [0, 1, 0]])
def test_images_of_equal_noise_and_estimate_are_refused(alike: list[int]) -> None:
    """Rounding moves them apart by next to nothing."""
    estimate = Estimate()

    def rounded(z: Tensor) -> tuple[Tensor, Pullback]:
        clean, pullback = estimate(z)
        return clean + 1e-6 * gaussian(*clean.shape, seed=5), pullback

    with pytest.raises(ValueError, match=rf"Images 0 and {1 if alike[1] == 0 else 2} .* start from the same noise"):
        optimise_noise(gaussian(2, 4, 8, 8)[alike], rounded, Settings())
    assert len(estimate.calls) == 1


def test_images_of_equal_noise_under_prompts_of_their_own_move_apart() -> None:
    estimate, prompts = Estimate(), gaussian(3, 4, 8, 8, seed=6)

    def prompted(z: Tensor) -> tuple[Tensor, Pullback]:
        clean, pullback = estimate(z)
        return clean + prompts, pullback

    moved = optimise_noise(gaussian(1, 4, 8, 8).repeat(3, 1, 1, 1), prompted, Settings())
    assert (moved[0] - moved[1]).abs().max() > 0.1


def test_a_model_that_gives_nan_is_named() -> None:
    def broken(noise: Tensor) -> tuple[Tensor, Pullback]:
        return noise * torch.nan, lambda gradient: gradient

    with pytest.raises(ValueError, match="not finite"):
        optimise_noise(gaussian(3, 4, 8, 8), broken, Settings())


def test_after_step_runs_after_each_iteration_and_may_stop_it() -> None:
    steps = []

    def stop_at_second() -> None:
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimise_noise(gaussian(3, 4, 8, 8), Estimate(), Settings(iterations=5), after_step=stop_at_second)
    assert len(steps) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("strength", -0.1),
        ("strength", math.nan),
        ("iterations", -1),
        ("temperature", 0.0),
        ("window", 0),
        ("gamma", 0.0),
        ("denominator", "both"),
        ("projection", "cube"),
    ],
)
def test_settings_name_what_is_wrong(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value!r}; it must be"):
        Settings(**{field: value})  # type: ignore[arg-type]


@pytest.mark.fast
def test_published_settings_are_the_papers_and_the_releases() -> None:
    paper = Settings(0.03, 3, 0.1, 16, gamma=None, denominator="all", projection="off", scaled=False)
    assert published() == paper
    assert published("release") == replace(paper, gamma=1.0, denominator="positive")
    assert published(iterations=6).strength == pytest.approx(0.06)
    with pytest.raises(ValueError, match=r"gamma is 1\.0; it must be auto in published mode"):
        published(gamma=1.0)
    with pytest.raises(ValueError, match=r"form is 'draft'; it must be one of paper, release"):
        published("draft")
