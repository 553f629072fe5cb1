"""MinorityPrompt as mathematics: no ComfyUI, no model but small random networks in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from comfyui_diversity.core.methods.minority import (
    OBJECTIVES,
    PRESETS,
    PUBLISHED,
    Estimates,
    Objective,
    Offsets,
    Settings,
    Steps,
    both,
    distances,
    diversity,
    learn,
    minority,
    noise_share,
    restrained,
)
from torch import Tensor

BATCH, WIDTH, PIXELS = 3, 6, 20


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class World:
    """Two encoders of one and two tokens, clean estimates that follow both, and a second look at those."""

    def __init__(self, batch: int = BATCH) -> None:
        self.batch = batch
        self.looks = 0
        self.again_looks = 0
        self._maps = {"l": gaussian(WIDTH, PIXELS, seed=1), "g": gaussian(2 * WIDTH, PIXELS, seed=2)}
        self._noisy, self._second = gaussian(batch, PIXELS, seed=3), gaussian(PIXELS, PIXELS, seed=4)

    def start(self) -> Offsets:
        return {"l": torch.zeros(self.batch, 1, WIDTH), "g": torch.zeros(self.batch, 2, WIDTH)}

    def clean(self, offsets: Offsets) -> Tensor:
        total = sum(offsets[name].double().flatten(1) @ matrix for name, matrix in self._maps.items())
        return torch.tanh(self._noisy + 0.3 * total).reshape(-1, 1, 4, 5)

    def again(self, clean: Tensor) -> Tensor:
        return torch.sin(clean.double().flatten(1) @ self._second).reshape(clean.shape)

    def look(self, offsets: Offsets) -> tuple[Tensor, Callable[[Tensor], Offsets]]:
        self.looks += 1
        leaves = {name: offset.detach().requires_grad_() for name, offset in offsets.items()}
        clean = self.clean(leaves)

        def pull_back(gradient: Tensor) -> Offsets:
            found = torch.autograd.grad(clean, list(leaves.values()), gradient.to(clean))
            return dict(zip(leaves, found, strict=True))

        return clean.detach(), pull_back

    def look_again(self, clean: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        self.again_looks += 1
        leaf = clean.detach().requires_grad_()
        again = self.again(leaf)
        return again.detach(), lambda gradient: torch.autograd.grad(again, leaf, gradient.to(again))[0].to(leaf)


def run(objective: Objective = minority, world: World | None = None, margin=None, **settings) -> Offsets:
    world = World() if world is None else world
    return learn(world.start(), world.look, world.look_again, objective, Settings(**settings), margin).offsets


# --- objectives ------------------------------------------------------------------------------------------------------


def by_hand(clean: np.ndarray, again: np.ndarray, balance: float) -> dict[str, list[float]]:
    """The formulas written out, one value at a time."""
    count = len(clean)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a.flat, b.flat, strict=True)))

    rare = [(1 + balance) * distance(clean[i], again[i]) for i in range(count)]
    apart = [sum(distance(clean[i], clean[j]) for j in range(count) if j != i) / (count - 1) for i in range(count)]
    return {"minority": rare, "diversity": apart, "both": [a + b for a, b in zip(rare, apart, strict=True)]}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_objectives_are_the_formulas(name: str) -> None:
    clean, again = gaussian(4, 2, 3, 3, seed=5), gaussian(4, 2, 3, 3, seed=6)
    found = OBJECTIVES[name](Estimates(clean, lambda _: (again, lambda gradient: gradient)))
    assert found.tolist() == pytest.approx(by_hand(clean.numpy(), again.numpy(), 1.0)[name], rel=1e-5)


def test_balance_weighs_the_second_term() -> None:
    clean, again = gaussian(2, 1, 2, 2, seed=5), gaussian(2, 1, 2, 2, seed=6)
    found = minority(Estimates(clean, lambda _: (again, lambda gradient: gradient)), balance=0.5)
    assert found.tolist() == pytest.approx(by_hand(clean.numpy(), again.numpy(), 0.5)["minority"], rel=1e-5)


@pytest.mark.parametrize("objective", [diversity, both])
def test_one_picture_has_no_other_to_differ_from(objective: Objective) -> None:
    with pytest.raises(ValueError, match="The batch holds 1 picture"):
        run(objective, World(1))


def test_diversity_needs_no_second_look_and_minority_takes_one() -> None:
    world = World()
    run(diversity, world, iterations=3)
    assert (world.looks, world.again_looks) == (3, 0)
    world = World()
    run(minority, world, iterations=3)
    assert (world.looks, world.again_looks) == (3, 3)


def test_equal_estimates_give_no_nan() -> None:
    clean = gaussian(2, 1, 2, 2).repeat(2, 1, 1, 1)
    estimates = Estimates(clean, lambda value: (value, lambda gradient: gradient))
    gradient = estimates.gradient(both(estimates).sum())
    assert torch.isfinite(gradient).all()


# --- gradient --------------------------------------------------------------------------------------------------------


def first_gradient(objective: Objective) -> tuple[World, Offsets, Offsets]:
    """The gradient at random offsets, through both looks."""
    world = World()
    offsets = {name: 0.2 * gaussian(*offset.shape, seed=7) for name, offset in world.start().items()}
    clean, pullback = world.look(offsets)
    with torch.enable_grad():
        estimates = Estimates(clean, world.look_again)
        gradient = estimates.gradient(objective(estimates).sum())
    return world, offsets, pullback(gradient)


def value(world: World, name: str, offsets: Offsets, fixed_clean: Tensor, fixed_again: Tensor) -> float:
    """The objective's sum with everything behind a stop-gradient held at `fixed_...`."""
    clean = world.clean(offsets)
    again = world.again(clean)
    rare = (fixed_clean - again).flatten(1).norm(dim=1) + (clean - fixed_again).flatten(1).norm(dim=1)
    flat = clean.flatten(1)
    apart = (flat[:, None] - flat[None]).norm(dim=2).sum(1) / (len(flat) - 1)
    return {"minority": rare, "diversity": apart, "both": rare + apart}[name].sum().item()


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    world, offsets, gradients = first_gradient(OBJECTIVES[name])
    fixed_clean = world.clean(offsets)
    fixed_again = world.again(fixed_clean)
    for encoder, offset in offsets.items():
        for index in range(0, offset.numel(), 5):
            step = torch.zeros_like(offset).flatten()
            step[index] = 1e-6
            ahead, behind = (
                value(world, name, {**offsets, encoder: offset + sign * step.view_as(offset)}, fixed_clean, fixed_again)
                for sign in (1, -1)
            )
            # the estimates pass through single precision
            assert gradients[encoder].flatten()[index].item() == pytest.approx((ahead - behind) / 2e-6, abs=2e-4)


def test_an_objective_of_ones_own_takes_two_lines() -> None:
    def brightness(estimates: Estimates, /) -> Tensor:
        return estimates.clean.flatten(1).mean(1)

    world = World()
    found = learn(world.start(), world.look, world.look_again, brightness, Settings(iterations=5))
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
        found = learn(world.start(), world.look, world.look_again, OBJECTIVES[name], Settings(8, 0.05, **settings))
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
        again = world.again(clean)
        rare = (clean.detach() - again).flatten(1).norm(dim=1) + (clean - again.detach()).flatten(1).norm(dim=1)
        gradients = dict(zip(leaves, torch.autograd.grad(-rare.sum(), list(leaves.values())), strict=True))
        for name, gradient in gradients.items():
            first[name] = betas[0] * first[name] + (1 - betas[0]) * gradient
            second[name] = betas[1] * second[name] + (1 - betas[1]) * gradient**2
            mean, square = first[name] / (1 - betas[0] ** step), second[name] / (1 - betas[1] ** step)
            values[name] = values[name] - rate * mean / (square.sqrt() + eps)
    found = run(iterations=count, learning_rate=rate)
    for name, expected in values.items():
        assert torch.allclose(found[name].double(), expected, atol=1e-4)


def test_pictures_do_not_share_their_tokens() -> None:
    found = run(iterations=3)
    for offset in found.values():
        assert not torch.allclose(offset[0], offset[1])


def test_a_round_goes_on_from_the_last() -> None:
    world = World()
    one = learn(world.start(), world.look, world.look_again, minority, Settings(2, 0.1)).offsets
    two = learn(one, world.look, world.look_again, minority, Settings(2, 0.1)).offsets
    assert all(not torch.allclose(two[name], one[name]) for name in one)
    assert all(torch.equal(offset, torch.zeros_like(offset)) for offset in world.start().values())


@pytest.mark.parametrize("off", [{"iterations": 0}, {"learning_rate": 0.0}])
def test_settings_that_learn_nothing_say_so(off: dict[str, float]) -> None:
    assert not Settings(**off).active  # type: ignore[arg-type]
    assert Settings().active


def test_no_iterations_is_no_look() -> None:
    world = World()
    found = learn(world.start(), world.look, world.look_again, minority, Settings(iterations=0))
    assert world.looks == 0
    assert all(torch.equal(offset, torch.zeros_like(offset)) for offset in found.offsets.values())


# --- restraints ------------------------------------------------------------------------------------------------------


def test_the_bound_is_kept_by_every_token_after_every_round() -> None:
    world, offsets = World(), World().start()
    for _ in range(3):
        settings = Settings(iterations=4, learning_rate=0.5, bound=0.3)
        offsets = learn(offsets, world.look, world.look_again, minority, settings).offsets
        lengths = torch.cat([offset.square().mean(-1).sqrt().flatten() for offset in offsets.values()])
        assert lengths.max().item() == pytest.approx(0.3, rel=1e-5)
    assert distances(offsets).tolist() == pytest.approx([0.3] * BATCH, rel=1e-5)


def test_a_token_within_the_bound_is_left_alone() -> None:
    offsets = {"l": 0.01 * gaussian(2, 1, WIDTH)}
    assert torch.equal(restrained(offsets, Settings(bound=1.0))["l"], offsets["l"])


def test_only_what_leaves_the_margin_is_drawn_back_and_just_so_far() -> None:
    offsets = {
        "l": torch.ones(3, 1, WIDTH) * torch.tensor([0.5, 2.0, 8.0])[:, None, None],
        "g": torch.ones(3, 2, WIDTH),
    }

    def margin(given: Offsets) -> Tensor:
        return 1 - given["l"].flatten(1).abs().amax(1)

    found = restrained(offsets, Settings(held=True), margin)
    assert torch.equal(found["l"][0], offsets["l"][0])
    assert torch.equal(found["g"][0], offsets["g"][0])
    for picture, share in ((1, 1 / 2), (2, 1 / 8)):
        assert 0.9 * share < found["g"][picture, 0, 0].item() <= share  # both tokens alike
    assert (margin(found) >= 0).all()
    assert restrained(offsets, Settings(), margin) is offsets


def test_the_margin_holds_while_learning() -> None:
    def margin(given: Offsets) -> Tensor:
        return 0.2 - given["l"].flatten(1).norm(dim=1)

    found = run(margin=margin, iterations=6, learning_rate=0.3, held=True)
    assert (margin(found) >= 0).all()
    assert (margin(run(margin=margin, iterations=6, learning_rate=0.3)) < 0).all()


# --- steps and noise -------------------------------------------------------------------------------------------------


def test_steps_within_the_window() -> None:
    twenty = [k / 20 for k in range(20)]
    assert Steps().chosen(twenty) == (0, 1)
    assert Steps(0.1, 0.3).chosen(twenty) == (2, 3, 4, 5)
    assert Steps(0.0, 1.0).chosen([0.0, 0.25, 0.5, 0.75]) == (0, 1, 2, 3)
    assert Steps(0.0, 1.0, 2).chosen([0.0, 0.25, 0.5, 0.75, 1.0]) == (0, 2, 4)
    assert Steps(0.0, 0.1).chosen([0.5, 0.75]) == ()
    # a share that went through float operations
    assert Steps(0.1, 0.2).chosen([0.05, 0.1 - 1e-8, 0.2 - 1e-8]) == (1,)


def test_renoising_anneals_as_published() -> None:
    """t = 999, 749, 499, 249 to 250, 500, 750, 1000; share 1 is no noise, 0 is nothing but noise."""
    assert [noise_share(0, after) for after in (0.25, 0.5, 0.75, 1.0)] == [0.75, 0.5, 0.25, 0.0]
    assert [noise_share(0.75, after) for after in (0.25, 1.0)] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Settings(iterations=-1), "iterations is -1"),
        (lambda: Settings(learning_rate=math.nan), "learning_rate is nan"),
        (lambda: Settings(bound=-0.1), "bound is -0.1"),
        (lambda: Steps(start=1.0), "start_percent is 1"),
        (lambda: Steps(0.3, 0.2), "end_percent is 0.2; it must be above start_percent, 0.3"),
        (lambda: Steps(every=0), "every is 0"),
        (lambda: noise_share(1.5, 0), "renoise is 1.5"),
    ],
)
def test_bad_values_are_named(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_the_published_settings_are_at_hand() -> None:
    base, few = PUBLISHED["base model"], PUBLISHED["few-step model"]
    assert (base.iterations, base.end, few.iterations, few.end) == (10, 0.1, 3, 1.0)
    assert base.learning_rate / few.learning_rate == pytest.approx(10)
    assert set(PRESETS) == set(PUBLISHED)


def test_a_few_step_model_learns_at_its_first_step_alone() -> None:
    steps = Steps(0.0, PRESETS["few-step model"].end)
    assert steps.chosen([0.0, 0.25, 0.5, 0.75]) == (0,)
