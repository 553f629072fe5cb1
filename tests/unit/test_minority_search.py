"""MinorityPrompt by search: it climbs, the same for an image in every batch, and says where nothing depends on it."""

from __future__ import annotations

import pytest
import torch
from comfyui_diversity.core.methods.minority import NoGradientError, Offsets, Settings
from comfyui_diversity.core.methods.minority_search import search
from torch import Tensor

SETTINGS = Settings(iterations=40, learning_rate=0.02)


def target() -> Tensor:
    return torch.randn(2, 6, generator=torch.Generator().manual_seed(1))


def nearness(offsets: Offsets) -> Tensor:
    """Highest, 0, where both encoders' tokens are at the target."""
    errors = [((offset - target()) ** 2).flatten(1).sum(1) for offset in offsets.values()]
    return -torch.stack(errors).sum(0)


def zeros(count: int) -> Offsets:
    return {name: torch.zeros(count, 2, 6) for name in ("l", "g")}


def test_it_climbs_or_descends() -> None:
    before = nearness(zeros(4))
    up = search(zeros(4), nearness, SETTINGS, seed=0)
    assert (nearness(up.offsets) > 0.6 * before).all()
    assert up.scores.shape == (40, 4)
    down = search(zeros(4), nearness, Settings(40, 0.02, typical=True), seed=0)
    assert (nearness(down.offsets) < before).all()


def test_an_image_is_searched_alike_in_every_batch_and_with_another_seed_otherwise() -> None:
    one, three = (search(zeros(count), nearness, SETTINGS, seed=0).offsets for count in (1, 3))
    assert all(torch.equal(one[name][0], three[name][0]) for name in one)
    assert not torch.equal(three["l"][0], three["l"][1])
    assert not torch.equal(one["l"], search(zeros(1), nearness, SETTINGS, seed=1).offsets["l"])


def test_a_margin_holds_and_every_step_is_told() -> None:
    calls: list[int] = []
    found = search(
        zeros(3),
        nearness,
        SETTINGS,
        seed=0,
        margin=lambda offsets: 0.5 - offsets["l"].flatten(1).norm(dim=1),
        after_step=lambda: calls.append(1),
    )
    assert (found.offsets["l"].flatten(1).norm(dim=1) <= 0.5 + 1e-5).all()
    assert len(calls) == SETTINGS.iterations


def test_what_is_refused() -> None:
    with pytest.raises(NoGradientError, match="nothing says which way"):
        search(zeros(2), lambda offsets: torch.zeros(2), SETTINGS, seed=0)
    with pytest.raises(ValueError, match="not finite"):
        search(zeros(2), lambda offsets: nearness(offsets) * torch.nan, SETTINGS, seed=0)
