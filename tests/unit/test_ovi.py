"""OVI as pure mathematics: a random smooth map stands where the vision tower will be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from comfyui_diversity.core.methods import ovi
from comfyui_diversity.core.methods.image_bank import ImageBank
from comfyui_diversity.core.methods.ovi import Encode, Settings, initial_tokens, invert, mahalanobis, nearest_neighbour
from torch import Tensor
from torch.nn import functional as F

TOKENS, WIDTH, OUT = 3, 10, 8


def smooth_map(seed: int = 0) -> Encode:
    """Tokens `[N, 3, 10]` to embeddings `[N, 8]`."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(TOKENS * WIDTH, 24, generator=generator) * 0.6
    second = torch.randn(24, OUT, generator=generator)

    def encode(tokens: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        variable = tokens.detach().clone().requires_grad_()
        embeddings = torch.tanh(variable.flatten(1) @ first + 0.3) @ second
        return embeddings.detach(), lambda gradient: torch.autograd.grad(embeddings, variable, gradient)[0]

    return encode


def targets(count: int = 1, seed: int = 5) -> Tensor:
    return torch.randn(count, OUT, generator=torch.Generator().manual_seed(seed))


def bank(count: int = 6, seed: int = 3) -> ImageBank:
    return ImageBank(torch.randn(count, OUT, generator=torch.Generator().manual_seed(seed)), torch.ones(OUT))


def start(count: int = 4, seed: int = 0) -> Tensor:
    return initial_tokens(count, TOKENS, WIDTH, seed)


def test_cosines_rise_and_what_is_kept_is_what_is_told() -> None:
    encode, to = smooth_map(), targets(4)
    found = invert(start(), to, encode, Settings(steps=120, learning_rate=0.05))
    means = found.cosines.mean(1)
    assert means[-1] > 0.95
    assert (means[1:] - means[:-1]).min() > -0.02  # on average monotone, up to AdamW's jitter
    assert means[60] > means[30] > means[10] > means[0]
    assert torch.allclose(encode(found.tokens)[0], found.embeddings, atol=1e-6)
    assert torch.allclose(F.cosine_similarity(found.embeddings, to), found.cosines[-1], atol=1e-6)
    assert (found.cosines[-1] >= found.cosines.amax(0) - 1e-6).all()  # the best is kept


def test_starts_are_normal_and_do_not_depend_on_their_number() -> None:
    many = initial_tokens(50, 6, 64, 1)
    assert many.std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(initial_tokens(2, 6, 64, 1), many[:2])
    assert not torch.equal(initial_tokens(1, 6, 64, 2)[0], many[1])
    assert not torch.equal(many[0], many[1])
    assert torch.isfinite(initial_tokens(1, 1, 4, 2**64 - 1)).all()


def test_a_variant_does_not_depend_on_the_others() -> None:
    """Also where they stop at different steps."""
    settings = Settings(steps=60, learning_rate=0.003, target=0.9)
    constraint = nearest_neighbour(bank(), targets().expand(4, -1))
    whole = invert(start(), targets(), smooth_map(), settings, constraint, 0.1)
    assert len(set(whole.steps.tolist())) > 1
    for k in range(4):
        own = partial(lambda k, embeddings, rows: constraint(embeddings, rows + k), k)
        alone = invert(start()[k : k + 1], targets(), smooth_map(), settings, own, 0.1)
        assert torch.allclose(alone.tokens[0], whole.tokens[k], atol=1e-5)
        assert alone.steps[0] == whole.steps[k]


def test_stops_at_the_target() -> None:
    found = invert(start(), targets(), smooth_map(), Settings(steps=300, learning_rate=0.002, target=0.8))
    assert found.reached.all()
    assert (found.cosines[-1] >= 0.8).all()
    assert (found.cosines[-1] < 0.85).all()
    assert found.steps.max() < 300
    for k, steps in enumerate(found.steps.tolist()):
        assert (found.cosines[:steps, k] < 0.8).all()
        assert (found.cosines[steps:, k] == found.cosines[-1, k]).all()


def test_stops_on_a_plateau() -> None:
    quick = invert(start(), targets(), smooth_map(), Settings(steps=2000, learning_rate=0.05, patience=20))
    assert quick.steps.max() < 500
    assert not quick.reached.any()
    thorough = invert(start(), targets(), smooth_map(), Settings(steps=400, learning_rate=0.05, patience=0))
    assert (thorough.steps == 400).all()
    assert (quick.cosines[-1] >= thorough.cosines[-1] - 0.02).all()


def test_the_last_step_can_be_kept_instead_of_the_best() -> None:
    """With steps that overshoot."""
    settings = {"steps": 30, "learning_rate": 1.0, "patience": 0}
    best, last = (
        invert(start(), targets(), smooth_map(), Settings(**settings, keep_last=keep)) for keep in (False, True)
    )
    assert (last.steps == 30).all()
    assert (last.cosines[-1] < best.cosines[-1]).any()
    assert torch.allclose(smooth_map()(last.tokens)[0], last.embeddings, atol=1e-6)
    before = invert(start(), targets(), smooth_map(), Settings(**{**settings, "steps": 29}, keep_last=True))
    assert not torch.allclose(before.cosines[-1], last.cosines[-1])


@pytest.mark.parametrize("make", [mahalanobis, nearest_neighbour])
def test_each_constraint_trades_the_text_for_real_images(make: Callable[[ImageBank, Tensor], ovi.Constraint]) -> None:
    constraint = make(bank(), targets().expand(4, -1))
    values, cosines = [], []
    for weight in (0.0, 0.3, 3.0):
        settings = Settings(steps=200, learning_rate=0.05, patience=0)
        found = invert(start(), targets(), smooth_map(), settings, constraint, weight)
        assert torch.allclose(found.distances[1], constraint(found.embeddings, torch.arange(4)), atol=1e-5)
        values.append(found.distances[1].mean().item())
        cosines.append(found.cosines[-1].mean().item())
    assert values[0] > values[1] > values[2]
    assert cosines[0] > cosines[1] > cosines[2]


def test_the_constraints_are_what_their_docstrings_say() -> None:
    points = torch.randn(5, OUT, generator=torch.Generator().manual_seed(8))
    real = bank()
    covariance = real.covariance().double()
    away = (points - real.members.mean(0)).double()
    squared = (away @ torch.linalg.inv(covariance) * away).sum(1) / OUT
    assert torch.allclose(mahalanobis(real, points)(points, torch.arange(5)).double(), squared, rtol=1e-4)
    texts = torch.randn(5, OUT, generator=torch.Generator().manual_seed(9))
    chosen = real.members[ovi.neighbours(real, texts)]
    found = nearest_neighbour(real, texts)(points[1:3], torch.tensor([1, 2]))
    assert torch.allclose(found, 1 - F.cosine_similarity(points[1:3], chosen[1:3], dim=1), atol=1e-6)


def test_each_variant_has_the_nearest_image_that_is_left() -> None:
    real, text = bank(), targets(3, 5)[:1]
    order = F.cosine_similarity(real.members, text).argsort(descending=True).tolist()
    count = len(real)
    assert ovi.neighbours(real, text.expand(count + 2, -1)).tolist() == [*order, *order[:2]]
    others = targets(4, 6)
    alone = [ovi.neighbours(real, others[k : k + 1]).item() for k in range(2)]
    assert ovi.neighbours(real, others[:2]).tolist() == alone or alone[0] == alone[1]


@pytest.mark.parametrize("make", [None, mahalanobis, nearest_neighbour])
def test_the_objectives_gradient(make: Callable[[ImageBank, Tensor], ovi.Constraint] | None) -> None:
    real = ImageBank(bank().members.double(), torch.ones(OUT).double())
    points, to = targets(3, 7).double(), F.normalize(targets(3, 6).double(), dim=1)
    constraint, rows = None if make is None else make(real, to), torch.arange(len(points))
    *_, losses, gradient = ovi._objective(points, to, rows, constraint, 0.4)
    direction = torch.randn(points.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ahead = ovi._objective(points + 1e-6 * direction, to, rows, constraint, 0.4)[2]
    assert torch.allclose((ahead - losses) / 1e-6, (gradient * direction).sum(1), atol=1e-4)


def test_no_steps_give_the_start() -> None:
    found = invert(start(), targets(), smooth_map(), Settings(steps=0))
    assert torch.equal(found.tokens, start())
    assert found.cosines.shape == (1, 4)


def test_after_step_is_told_the_cosines() -> None:
    told = []
    found = invert(
        start(),
        targets(),
        smooth_map(),
        Settings(steps=5),
        after_step=lambda cosines, left: told.append((cosines, left)),
    )
    assert len(told) == 5
    assert torch.equal(told[1][0], found.cosines[2])
    assert told[0][1] == 4


def test_what_is_refused() -> None:
    for changed in ({"steps": -1}, {"learning_rate": 0.0}, {"weight_decay": -1.0}, {"target": 1.5}, {"patience": -1}):
        with pytest.raises(ValueError, match="it must be"):
            Settings(**changed)
    with pytest.raises(ValueError, match="variants is 0"):
        initial_tokens(0, 1, 4, 0)
    with pytest.raises(ValueError, match="tokens is 0"):
        initial_tokens(1, 0, 4, 0)
    with pytest.raises(ValueError, match="weight is -1"):
        invert(start(), targets(), smooth_map(), Settings(), weight=-1.0)
    with pytest.raises(ValueError, match="targets is 3"):
        invert(start(), targets(3), smooth_map(), Settings())
    with pytest.raises(ValueError, match="targets are 5 wide, the embeddings 8"):
        invert(start(), torch.ones(1, 5), smooth_map(), Settings())
    with pytest.raises(ValueError, match="not finite"):
        invert(start() * torch.nan, targets(), smooth_map(), Settings())
