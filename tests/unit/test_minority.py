"""MinorityPrompt as mathematics: no ComfyUI, no model but small random networks in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_diversity.core.methods.minority import (
    OBJECTIVES,
    ONE_IMAGE,
    PUBLISHED,
    RECOMMENDED,
    Estimates,
    Objective,
    Offsets,
    Preset,
    Settings,
    Steps,
    both,
    check_published,
    distances,
    diversity,
    learn,
    minority,
    noise_share,
    objective_of,
    preset_of,
    restrained,
)
from torch import Tensor

BATCH, WIDTH, PIXELS = 3, 6, 20


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class World:
    """Two encoders of one and two tokens, clean estimates that follow both, and re-noised estimates of those."""

    def __init__(self, batch: int = BATCH) -> None:
        self.batch = batch
        self.passes = 0
        self.renoised_passes = 0
        self._maps = {"l": gaussian(WIDTH, PIXELS, seed=1), "g": gaussian(2 * WIDTH, PIXELS, seed=2)}
        self._noisy, self._second = gaussian(batch, PIXELS, seed=3), gaussian(PIXELS, PIXELS, seed=4)

    def start(self) -> Offsets:
        return {"l": torch.zeros(self.batch, 1, WIDTH), "g": torch.zeros(self.batch, 2, WIDTH)}

    def clean(self, offsets: Offsets) -> Tensor:
        total = sum(offsets[name].double().flatten(1) @ matrix for name, matrix in self._maps.items())
        return torch.tanh(self._noisy + 0.3 * total).reshape(-1, 1, 4, 5)

    def renoised(self, clean: Tensor) -> Tensor:
        return torch.sin(clean.double().flatten(1) @ self._second).reshape(clean.shape)

    def clean_estimate(self, offsets: Offsets) -> tuple[Tensor, Callable[[Tensor], Offsets]]:
        self.passes += 1
        leaves = {name: offset.detach().requires_grad_() for name, offset in offsets.items()}
        clean = self.clean(leaves)

        def pull_back(gradient: Tensor) -> Offsets:
            found = torch.autograd.grad(clean, list(leaves.values()), gradient.to(clean))
            return dict(zip(leaves, found, strict=True))

        return clean.detach(), pull_back

    def renoised_estimate(self, clean: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        self.renoised_passes += 1
        leaf = clean.detach().requires_grad_()
        renoised = self.renoised(leaf)
        return renoised.detach(), lambda gradient: torch.autograd.grad(renoised, leaf, gradient.to(renoised))[0].to(
            leaf
        )


def run(objective: Objective = minority, world: World | None = None, margin=None, **settings) -> Offsets:
    world = World() if world is None else world
    return learn(
        world.start(), world.clean_estimate, world.renoised_estimate, objective, Settings(**settings), margin
    ).offsets


# --- objectives ------------------------------------------------------------------------------------------------------


def by_hand(clean: np.ndarray, renoised: np.ndarray, balance: float) -> dict[str, list[float]]:
    """The formulas written out, one value at a time."""
    count = len(clean)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a.flat, b.flat, strict=True)))

    rare = [(1 + balance) * distance(clean[i], renoised[i]) for i in range(count)]
    apart = [sum(distance(clean[i], clean[j]) for j in range(count) if j != i) / (count - 1) for i in range(count)]
    return {"minority": rare, "diversity": apart, "both": [a + b for a, b in zip(rare, apart, strict=True)]}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_objectives_are_the_formulas(name: str) -> None:
    clean, renoised = gaussian(4, 2, 3, 3, seed=5), gaussian(4, 2, 3, 3, seed=6)
    found = OBJECTIVES[name](Estimates(clean, lambda _: (renoised, lambda gradient: gradient)))
    assert found.tolist() == pytest.approx(by_hand(clean.numpy(), renoised.numpy(), 1.0)[name], rel=1e-5)


def test_balance_weighs_the_second_term() -> None:
    clean, renoised = gaussian(2, 1, 2, 2, seed=5), gaussian(2, 1, 2, 2, seed=6)
    found = minority(Estimates(clean, lambda _: (renoised, lambda gradient: gradient)), balance=0.5)
    assert found.tolist() == pytest.approx(by_hand(clean.numpy(), renoised.numpy(), 0.5)["minority"], rel=1e-5)


@pytest.mark.parametrize("objective", [diversity, both])
def test_one_image_has_no_other_to_differ_from(objective: Objective) -> None:
    with pytest.raises(ValueError, match="The batch holds 1 image"):
        run(objective, World(1))


def test_diversity_needs_no_renoised_estimate_and_minority_takes_one() -> None:
    world = World()
    run(diversity, world, iterations=3)
    assert (world.passes, world.renoised_passes) == (3, 0)
    world = World()
    run(minority, world, iterations=3)
    assert (world.passes, world.renoised_passes) == (3, 3)


def test_equal_estimates_give_no_nan() -> None:
    clean = gaussian(2, 1, 2, 2).repeat(2, 1, 1, 1)
    estimates = Estimates(clean, lambda value: (value, lambda gradient: gradient))
    gradient = estimates.gradient(both(estimates).sum())
    assert torch.isfinite(gradient).all()


# --- gradient --------------------------------------------------------------------------------------------------------


def first_gradient(objective: Objective) -> tuple[World, Offsets, Offsets]:
    """The gradient at random offsets, through both estimates."""
    world = World()
    offsets = {name: 0.2 * gaussian(*offset.shape, seed=7) for name, offset in world.start().items()}
    clean, pullback = world.clean_estimate(offsets)
    with torch.enable_grad():
        estimates = Estimates(clean, world.renoised_estimate)
        gradient = estimates.gradient(objective(estimates).sum())
    return world, offsets, pullback(gradient)


def value(world: World, name: str, offsets: Offsets, fixed_clean: Tensor, fixed_renoised: Tensor) -> float:
    """The objective's sum with everything behind a stop-gradient held at `fixed_...`."""
    clean = world.clean(offsets)
    renoised = world.renoised(clean)
    rare = (fixed_clean - renoised).flatten(1).norm(dim=1) + (clean - fixed_renoised).flatten(1).norm(dim=1)
    flat = clean.flatten(1)
    apart = (flat[:, None] - flat[None]).norm(dim=2).sum(1) / (len(flat) - 1)
    return {"minority": rare, "diversity": apart, "both": rare + apart}[name].sum().item()


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    world, offsets, gradients = first_gradient(OBJECTIVES[name])
    fixed_clean = world.clean(offsets)
    fixed_renoised = world.renoised(fixed_clean)
    for encoder, offset in offsets.items():
        for index in range(0, offset.numel(), 5):
            step = torch.zeros_like(offset).flatten()
            step[index] = 1e-6
            ahead, behind = (
                value(
                    world, name, {**offsets, encoder: offset + sign * step.view_as(offset)}, fixed_clean, fixed_renoised
                )
                for sign in (1, -1)
            )
            # the estimates pass through single precision
            assert gradients[encoder].flatten()[index].item() == pytest.approx((ahead - behind) / 2e-6, abs=2e-4)


def test_an_objective_of_ones_own_takes_two_lines() -> None:
    def brightness(estimates: Estimates, /) -> Tensor:
        return estimates.clean.flatten(1).mean(1)

    world = World()
    found = learn(world.start(), world.clean_estimate, world.renoised_estimate, brightness, Settings(iterations=5))
    assert (world.clean(found.offsets).mean() > world.clean(world.start()).mean()).item()
    assert found.scores.shape == (5, BATCH)


def test_bad_objectives_are_named() -> None:
    with pytest.raises(ValueError, match=r"shape of the objective is \[\]; it must be one number for each of 3"):
        run(lambda estimates: estimates.clean.sum())
    with pytest.raises(ValueError, match="does not depend on the clean estimates"):
        run(lambda estimates: torch.ones(len(estimates.clean)))
    with pytest.raises(ValueError, match="gradient of the token is zero"):
        run(lambda estimates: estimates.clean.flatten(1).sum(1) * 0)
    with pytest.raises(ValueError, match="not finite"):
        run(lambda estimates: estimates.clean.flatten(1).sum(1) * math.nan)


# --- climbing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_climbs_and_typical_descends(name: str) -> None:
    def scores(**settings) -> Tensor:
        world = World()
        found = learn(
            world.start(),
            world.clean_estimate,
            world.renoised_estimate,
            OBJECTIVES[name],
            Settings(8, 0.05, **settings),
        )
        return found.scores.sum(1)

    up, down = scores(), scores(typical=True)
    assert up[-1] > up[0]
    assert down[-1] < down[0]


def test_published_rule_is_adam_on_each_token() -> None:
    """Against Adam written out in double precision, both terms, all gradients by the reference graph."""
    world = World()
    rate, betas, eps, count = 0.05, (0.9, 0.999), 1e-8, 4
    values = {name: offset.double() for name, offset in world.start().items()}
    first = {name: torch.zeros_like(v) for name, v in values.items()}
    second = {name: torch.zeros_like(v) for name, v in values.items()}
    for step in range(1, count + 1):
        leaves = {name: v.clone().requires_grad_() for name, v in values.items()}
        clean = world.clean(leaves)
        renoised = world.renoised(clean)
        rare = (clean.detach() - renoised).flatten(1).norm(dim=1) + (clean - renoised.detach()).flatten(1).norm(dim=1)
        gradients = dict(zip(leaves, torch.autograd.grad(-rare.sum(), list(leaves.values())), strict=True))
        for name, gradient in gradients.items():
            first[name] = betas[0] * first[name] + (1 - betas[0]) * gradient
            second[name] = betas[1] * second[name] + (1 - betas[1]) * gradient**2
            mean, square = first[name] / (1 - betas[0] ** step), second[name] / (1 - betas[1] ** step)
            values[name] = values[name] - rate * mean / (square.sqrt() + eps)
    found = run(iterations=count, learning_rate=rate)
    for name, expected in values.items():
        assert torch.allclose(found[name].double(), expected, atol=1e-4)


def test_images_do_not_share_their_tokens() -> None:
    found = run(iterations=3)
    for offset in found.values():
        assert not torch.allclose(offset[0], offset[1])


def test_a_round_goes_on_from_the_last() -> None:
    world = World()
    one = learn(world.start(), world.clean_estimate, world.renoised_estimate, minority, Settings(2, 0.1)).offsets
    two = learn(one, world.clean_estimate, world.renoised_estimate, minority, Settings(2, 0.1)).offsets
    assert all(not torch.allclose(two[name], one[name]) for name in one)
    assert all(torch.equal(offset, torch.zeros_like(offset)) for offset in world.start().values())


def test_settings_that_learn_nothing_say_so() -> None:
    assert not Settings(iterations=0).active
    assert not Settings(learning_rate=0.0).active
    assert Settings().active


def test_no_iterations_is_no_pass_through_the_model() -> None:
    world = World()
    found = learn(world.start(), world.clean_estimate, world.renoised_estimate, minority, Settings(iterations=0))
    assert world.passes == 0
    assert all(torch.equal(offset, torch.zeros_like(offset)) for offset in found.offsets.values())


# --- restraints ------------------------------------------------------------------------------------------------------


def test_only_what_leaves_the_margin_is_drawn_back_and_just_so_far() -> None:
    offsets = {
        "l": torch.ones(3, 1, WIDTH) * torch.tensor([0.5, 2.0, 8.0])[:, None, None],
        "g": torch.ones(3, 2, WIDTH),
    }

    def margin(given: Offsets) -> Tensor:
        return 1 - given["l"].flatten(1).abs().amax(1)

    found = restrained(offsets, margin)
    assert torch.equal(found["l"][0], offsets["l"][0])
    assert torch.equal(found["g"][0], offsets["g"][0])
    for image, share in ((1, 1 / 2), (2, 1 / 8)):
        assert 0.9 * share < found["g"][image, 0, 0].item() <= share  # both tokens alike
    assert (margin(found) >= 0).all()
    assert restrained(offsets) is offsets


def test_the_margin_holds_while_learning() -> None:
    def margin(given: Offsets) -> Tensor:
        return 0.2 - given["l"].flatten(1).norm(dim=1)

    found = run(margin=margin, iterations=6, learning_rate=0.3)
    assert (margin(found) >= 0).all()
    assert (margin(run(iterations=6, learning_rate=0.3)) < 0).all()


def test_the_distance_is_that_of_the_token_that_moved_furthest() -> None:
    offsets = {"l": torch.full((2, 1, WIDTH), 0.3), "g": torch.zeros(2, 2, WIDTH)}
    offsets["g"][1, 0] = -0.7
    assert distances(offsets).tolist() == pytest.approx([0.3, 0.7])


# --- steps and noise -------------------------------------------------------------------------------------------------


def test_steps_within_the_window() -> None:
    twenty = [k / 20 for k in range(20)]
    assert Steps().chosen(twenty) == (0, 1)
    assert Steps(0.1, 0.3).chosen(twenty) == (2, 3, 4, 5)
    assert Steps(0.0, 1.0).chosen([0.0, 0.25, 0.5, 0.75]) == (0, 1, 2, 3)
    assert Steps(0.0, 1.0, 2).chosen([0.0, 0.25, 0.5, 0.75, 1.0]) == (0, 2, 4)
    assert Steps(0.0, 0.1).chosen([0.5, 0.75]) == ()
    # as published: t > 0 T, and every second of the run
    assert Steps(0.0, 1.0, strict=True).chosen([0.0, 0.5, 1.0]) == (0, 1)
    assert Steps(0.2, 1.0, 2).chosen([0.0, 0.25, 0.5, 0.75]) == (1, 3)
    assert Steps(0.2, 1.0, 2, strict=True).chosen([0.0, 0.25, 0.5, 0.75]) == (2,)
    # a share that went through float operations
    assert Steps(0.1, 0.2).chosen([0.05, 0.1 - 1e-8, 0.2 - 1e-8]) == (1,)


def test_a_rate_that_decays_is_never_negative() -> None:
    settings = Settings(learning_rate=0.5, decay=0.25)
    assert [settings.rate_at(step) for step in range(5)] == pytest.approx([0.5, 0.375, 0.25, 0.125, 0.0])
    with pytest.raises(ValueError, match=r"lr_decay is 0\.25, .* negative at step 6 .* must be 0\.2 at most"):
        settings.rate_at(5)


def test_renoising_anneals_as_published() -> None:
    """t = 999, 749, 499, 249 to 250, 500, 750, 1000; share 1 is no noise, 0 is nothing but noise."""
    assert [noise_share(None, after) for after in (0.25, 0.5, 0.75, 1.0)] == [0.75, 0.5, 0.25, 0.0]
    assert [noise_share(0.75, after) for after in (0.25, 1.0)] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Settings(iterations=-1), "iterations is -1"),
        (lambda: Settings(learning_rate=math.nan), "learning_rate is nan"),
        (lambda: Steps(start=1.0), "start_percent is 1"),
        (lambda: Steps(0.3, 0.2), "end_percent is 0.2; it must be above start_percent, 0.3"),
        (lambda: Steps(every=0), "every is 0"),
        (lambda: objective_of("minority", -1.0), "sg_lambda is -1"),
        (lambda: noise_share(1.5, 0), "renoise is 1.5"),
        (lambda: noise_share(0.0, 0), "renoise is 0.0; it must be above 0"),
    ],
)
def test_bad_values_are_named(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_the_published_settings_are_the_papers() -> None:
    assert PUBLISHED["base model"] == Preset(10, 0.01, 0.1, 1.0, absolute=True, renoise=0.75)
    assert PUBLISHED["few-step model"] == Preset(3, 0.001, 1.0, 1.0, absolute=True)
    assert PUBLISHED[ONE_IMAGE] == Preset(3, 0.01, 1.0, 1.0, absolute=True, word="handsome")
    assert preset_of("recommended", "base model") == RECOMMENDED["base model"]
    with pytest.raises(ValueError, match='it must be base model or few-step model with mode "recommended"'):
        preset_of("recommended", ONE_IMAGE)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"objective": "both"}, "objective is 'both'"),
        ({"keep_until": 0.15}, "keep_until is 0.15"),
        ({"similarity": 0.9}, "similarity is 0.9"),
        ({"typical": True}, "typical is True"),
    ],
)
def test_what_the_paper_does_not_have_is_named(changed: dict[str, Any], said: str) -> None:
    own: dict[str, Any] = {"objective": "diversity", "keep_until": 0.0, "similarity": 0.0, "typical": False}
    check_published(**own)
    with pytest.raises(ValueError, match=said):
        check_published(**{**own, **changed})


def test_a_few_step_model_learns_at_its_first_step_alone() -> None:
    steps = Steps(0.0, RECOMMENDED["few-step model"].end)
    assert steps.chosen([0.0, 0.25, 0.5, 0.75]) == (0,)
