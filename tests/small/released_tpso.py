"""TPSO as released, written again from the paper and from the rules of its code: one variant at a time, in float64.

Nothing of the pack is used. `docs/published/tpso.md` lists the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

START, ALPHA, EPSILON = 1e-4, 0.99, 1e-8  # of the offsets; of torch's RMSprop
ROOM = 75

# Offsets [P, D] that are divided already, to a vector [E]; differentiable.
Vector = Callable[[Tensor], Tensor]


@dataclass
class Found:
    """offsets: of each variant as they are added, `[P, D]`. courses: of each, its cosine at every encoding of all."""

    offsets: list[Tensor]
    courses: list[list[float]]


def starts(seed: int, shapes: list[tuple[int, int, int]]) -> list[Tensor]:
    """Offsets `[N, P, D]` of every encoder, drawn one after the other for the whole of a text."""
    torch.manual_seed(seed)
    return [START * torch.randn(count, ROOM, width)[:, :positions].double() for count, positions, width in shapes]


def released(
    vector: Vector,
    start: Tensor,
    kappa: float,
    tolerance: float,
    strength: float,
    max_steps: int,
    rate: float = 0.01,
    one_step_past: bool = False,
) -> Found:
    """With freezing."""
    count, positions = start.shape[:2]
    moving = [own.clone() for own in start]
    squares = [torch.zeros_like(own) for own in start]
    target = _unit(vector(torch.zeros_like(start[0]))).detach()
    seen: list[Tensor] = [target] * count  # at its latest encoding
    cosine = [0.0] * count
    kept, before = list(moving), list(moving)
    courses: list[list[float]] = [[] for _ in range(count)]

    def inside(k: int) -> bool:
        return kappa - tolerance <= cosine[k] <= kappa + tolerance

    for step in range(max_steps):
        encoded = [k for k in range(count) if step == 0 or not inside(k)]
        if not encoded:
            break
        leaves = {k: moving[k].clone().requires_grad_() for k in encoded}
        vectors = {k: _unit(vector(leaves[k] / positions)) for k in encoded}
        for k in encoded:
            seen[k], cosine[k] = vectors[k].detach(), float(vectors[k].detach() @ target)
            kept[k] = moving[k].clone()
        for k in range(count):
            courses[k].append(cosine[k])
        learning = [k for k in encoded if step > 0 or not inside(k)]
        if not learning:
            break
        loss = torch.zeros((), dtype=start.dtype)
        for k in learning:
            to_prompt = vectors[k] @ target
            loss = loss + (kappa - tolerance - to_prompt).clamp(min=0) + (to_prompt - kappa - tolerance).clamp(min=0)
        if count > 1:
            rows = [vectors[k] if k in learning else seen[k] for k in range(count)]
            loss = loss - strength * _apart(rows) * count / len(learning)
        before = [own.clone() for own in moving]
        found = torch.autograd.grad(loss, [leaves[k] for k in learning], allow_unused=True)
        for k, gradient in zip(learning, found, strict=True):
            moving[k] = _rmsprop(moving[k], squares[k], gradient, rate)
        for k in set(range(count)) - set(learning):
            moving[k] = _rmsprop(moving[k], squares[k], torch.zeros_like(moving[k]), rate)
    if one_step_past:
        for k in range(count):
            courses[k].append(float(_unit(vector(before[k] / positions)).detach() @ target))
    return Found([own / positions for own in (before if one_step_past else kept)], courses)


def released_full_batch(
    vector: Vector,
    start: Tensor,
    group: int,
    kappa: float,
    tolerance: float,
    strength: float,
    max_steps: int,
    rate: float = 0.01,
) -> Found:
    """Without freezing: the bank's. Until all rows of all groups are in the band at once."""
    count, positions = start.shape[:2]
    moving, squares = start.clone(), torch.zeros_like(start)
    target = _unit(vector(torch.zeros_like(start[0]))).detach()
    courses: list[list[float]] = [[] for _ in range(count)]
    kept = moving
    for _ in range(max_steps):
        kept, gradient = moving.clone(), torch.zeros_like(moving)
        for first in range(0, count, group):
            leaves = [moving[k].clone().requires_grad_() for k in range(first, first + group)]
            vectors = [_unit(vector(leaf / positions)) for leaf in leaves]
            cosines = [own @ target for own in vectors]
            loss = sum(
                (kappa - tolerance - one).clamp(min=0) + (one - kappa - tolerance).clamp(min=0) for one in cosines
            )
            # The mean over the groups of a whole batch.
            loss = loss - strength * _apart(vectors) / (count // group)
            found = torch.autograd.grad(loss, leaves)
            for k, (own, cosine) in enumerate(zip(found, cosines, strict=True), first):
                gradient[k] = own
                courses[k].append(float(cosine.detach()))
        if all(kappa - tolerance <= course[-1] <= kappa + tolerance for course in courses):
            break
        moving = _rmsprop(moving, squares, gradient, rate)
    return Found(list(kept / positions), courses)


def alphas(steps: int, ratio: float) -> list[float]:
    """Weights of the variants, from the first step to the last."""
    active = int(steps * abs(ratio))
    falling = [*torch.linspace(1, 0, active).tolist(), *[0.0] * (steps - active)]
    return falling[::-1] if ratio < 0 else falling


def _apart(rows: list[Tensor]) -> Tensor:
    """Mean distance 1 - cosine over the pairs."""
    pairs = [1 - a @ b for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    return torch.stack(pairs).mean()


def _rmsprop(value: Tensor, square: Tensor, gradient: Tensor, rate: float) -> Tensor:
    square.mul_(ALPHA).add_((1 - ALPHA) * gradient**2)
    return value - rate * gradient / (square.sqrt() + EPSILON)


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()
