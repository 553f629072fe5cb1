"""TPSO's optimisation step for step as its authors released it (arXiv 2511.19811, github.com/Open-Debin/TPSO).

Where the paper and the released code differ, this is the code: RMSprop on L_sem + lambda L_div, offsets divided by the
number of positions. `core.methods.tpso` has the losses, and the rule that this project recommends instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..require import require
from .tpso import INITIAL_DEVIATION, AfterStep, Encode, History, Variants, diversity_loss, semantic_loss, unit_vectors

ROOM = 75  # positions between BOS and EOS in a text of full length, for all of which the release draws offsets


@dataclass(frozen=True)
class Rule:
    """How the release optimises variants.

    kappa: cosine of every variant to the prompt, above 0 and at most 1.
    tolerance: half the width of the band around kappa in which a variant has arrived, 0..1.
    diversity: weight of the repulsion between variants (lambda); 0 disables it.
    steps: how often the variants are encoded at most (`max_steps`). The last encoding is followed by no other, so
        variants are updated once less.
    learning_rate: of RMSprop, on offsets that are not yet divided by the number of positions.
    freezing: a variant is updated no more once an encoding found it in the band. As this is looked up before the next
        encoding, a variant still moves once after that. False: all move until all are in the band at once.
    past: with freezing, what is kept of each variant: False is its first encoding in the band; True is what it was
        before the last update of all, one step past the band for all but the variants that arrive last (SD3.5).
    group: variants repel each other in groups of so many, and L_div is the mean over groups; 0 is one group.

    Raises ValueError for a value that is not allowed.
    """

    kappa: float = 0.8
    tolerance: float = 0.01
    diversity: float = 1.0
    steps: int = 50
    learning_rate: float = 0.01
    freezing: bool = True
    past: bool = False
    group: int = 0

    def __post_init__(self) -> None:
        require(0 < self.kappa <= 1, "kappa", self.kappa, "above 0 and at most 1")
        require(0 < self.tolerance < 1, "tolerance", self.tolerance, "above 0 and below 1")
        require(math.isfinite(self.diversity) and self.diversity >= 0, "diversity", self.diversity, "0 or more")
        require(self.steps >= 0, "steps", self.steps, "0 or more")
        good_rate = math.isfinite(self.learning_rate) and self.learning_rate > 0
        require(good_rate, "learning_rate", self.learning_rate, "above 0")
        require(self.group >= 0, "group", self.group, "0 (all) or more")

    def in_band(self, cosines: Tensor) -> Tensor:
        """Which cosines are within the band."""
        return (cosines >= self.kappa - self.tolerance) & (cosines <= self.kappa + self.tolerance)


def released_start(count: int, positions: int, width: int, generator: torch.Generator) -> Tensor:
    """Offsets `[N, P, D]` of deviation 1e-4, the very numbers that the release draws on a CPU.

    It draws for all positions of a text and uses the first ones. Raises ValueError for no variants and for a prompt
    without positions.
    """
    require(count >= 1, "variants", count, "1 or more")
    require(positions >= 1, "positions", positions, "1 or more: the prompt has no words to vary")
    return INITIAL_DEVIATION * torch.randn(count, max(ROOM, positions), width, generator=generator)[:, :positions]


def drawn_rows(rows: int, count: int, seed: int) -> Tensor:
    """Which `count` of a bank's rows belong to this seed, without replacement. Raises ValueError for too many."""
    allowed = f"1 to {rows}, the number of negative prompts in the published bank"
    require(1 <= count <= rows, "variants", count, allowed)
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:count]


def optimise_as_released(
    start: Tensor, reference: Tensor, encode: Encode, rule: Rule, after_step: AfterStep | None = None
) -> Variants:
    """Variants of a prompt with vector `reference` `[E]`, from the offsets `start` `[N, P, D]`.

    `Variants.cosines` and `spreads` have an entry for each encoding; with `rule.past` the last one is of what is kept.
    Raises ValueError for vectors that are not finite, and for variants that do not make whole groups.
    """
    group = rule.group or len(start)
    require(len(start) % group == 0, "variants", len(start), f"a multiple of {group}, the size of a group")
    reference, positions = F.normalize(reference, dim=0), start.shape[1]
    encode, history, after = unit_vectors(encode, positions), History(), after_step or (lambda *_: None)
    if rule.steps == 0:
        offsets, unit = start, encode(start)[0]
        history.add(unit, reference)
    elif rule.freezing:
        offsets, unit = _freezing(start.clone(), reference, encode, rule, history, after)
    else:
        offsets, unit = _full_batch(start.clone(), reference, encode, rule, history, after)
    return history.variants(offsets / positions, unit)


def _freezing(
    offsets: Tensor, reference: Tensor, encode: Encode, rule: Rule, history: History, after: AfterStep
) -> tuple[Tensor, Tensor]:
    optimiser = torch.optim.RMSprop([offsets], lr=rule.learning_rate)
    moving = torch.ones(len(offsets), dtype=torch.bool, device=offsets.device)
    kept, before = offsets.clone(), offsets.clone()
    unit = cosines = torch.empty(0)
    for step in range(rule.steps):
        if step > 0:
            moving = ~rule.in_band(cosines)
            if not moving.any():
                break
        found, pull_back = encode(offsets[moving])
        # What is frozen stays as it was when it was last encoded, also in the losses of the others.
        unit = found if step == 0 else unit.index_put((moving,), found)
        kept[moving] = offsets[moving]
        cosines = history.add(unit, reference)
        after(cosines, history.latest_spread)
        active = moving
        if step == 0:
            active = ~rule.in_band(cosines)
            if not active.any():
                break
        gradient = released_gradient(unit, reference, active, rule)
        before = offsets.clone()
        offsets.grad = torch.zeros_like(offsets)
        offsets.grad[moving] = pull_back(gradient[moving])
        optimiser.step()
    if not rule.past:
        return kept, unit
    unit = encode(before)[0]
    history.add(unit, reference)
    return before, unit


def _full_batch(
    offsets: Tensor, reference: Tensor, encode: Encode, rule: Rule, history: History, after: AfterStep
) -> tuple[Tensor, Tensor]:
    optimiser = torch.optim.RMSprop([offsets], lr=rule.learning_rate)
    everyone = torch.ones(len(offsets), dtype=torch.bool, device=offsets.device)
    kept, unit = offsets, torch.empty(0)
    for _ in range(rule.steps):
        unit, pull_back = encode(offsets)
        kept = offsets.clone()
        cosines = history.add(unit, reference)
        after(cosines, history.latest_spread)
        if rule.in_band(cosines).all():
            break
        offsets.grad = pull_back(released_gradient(unit, reference, everyone, rule))
        optimiser.step()
    return kept, unit


def released_gradient(unit: Tensor, reference: Tensor, active: Tensor, rule: Rule) -> Tensor:
    """Gradient `[N, E]` of L_sem + lambda L_div with respect to unit vectors `[N, E]`, of which the `active` `[N]` can
    move; the others have none."""
    with torch.enable_grad():
        variable = unit.detach().clone().requires_grad_()
        loss = semantic_loss((variable @ reference)[active], rule.kappa, rule.tolerance)
        size = rule.group or len(unit)
        groups = zip(variable.split(size), active.split(size), strict=True)
        apart = [diversity_loss(members, int(moving.sum())) for members, moving in groups if moving.any()]
        loss = loss + rule.diversity * torch.stack(apart).mean()
        return torch.autograd.grad(loss, variable)[0] * active[:, None]
