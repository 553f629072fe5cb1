"""Optimization-based Visual Inversion (OVI): an image embedding from text alone, without a trained prior.

"Training-Free Diffusion Priors for Text-to-Image Generation via Optimization-based Visual Inversion", arXiv 2511.20821.
A few pseudo-tokens take the place of an image's patches in a CLIP vision tower, and are optimised until the tower's
embedding points the way of the text's. Left to itself it goes where no image is; a constraint holds it near real
ones.

The exact forms of the constraints are not public. The recommended ones are chosen so that a weight means the same at
every width, and their default weights so that the cosine to the text comes out at the paper's (0.83 with the
Mahalanobis distance, 0.88 with the nearest neighbour) on the demo world's CLIP, with a bank of 400 of its images
(`python -m benchmarks.ovi_settings`; the tables are in docs/measurements/ovi.md). The published ones are the summary's
words taken at their letter, with the paper's weights: the Mahalanobis distance itself, and the cosine to the nearest
member of the bank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..require import require
from .image_bank import ImageBank

Pullback = Callable[[Tensor], Tensor]
# Tokens [N, P, D] to embeddings [N, E] and the pullback of those: a gradient with respect to the embeddings to one with
# respect to the tokens.
Encode = Callable[[Tensor], tuple[Tensor, Pullback]]
# Embeddings [n, E] and which variants they are, [n], to how far each is from real images, [n]; differentiable.
Constraint = Callable[[Tensor, Tensor], Tensor]
# Cosines [N] after a step, and how many variants go on.
AfterStep = Callable[[Tensor, int], None]

INITIAL_DEVIATION = 0.02
MAHALANOBIS_WEIGHT = 0.16
NEAREST_WEIGHT = 0.35
PUBLISHED_MAHALANOBIS_WEIGHT = 0.009
PUBLISHED_NEAREST_WEIGHT = 0.5


@dataclass(frozen=True)
class Settings:
    """How tokens are optimised (AdamW, as published).

    steps: maximum number of optimisation steps.
    learning_rate, weight_decay: AdamW's.
    target: a variant stops as soon as its cosine to the text reaches this, -1..1; 0 is off.
    patience: a variant stops when this many steps have lowered its loss by less than `plateau`; 0 is off.
    keep_last: the result is that of the last step instead of that with the lowest loss.

    Raises ValueError for a value that is not allowed.
    """

    steps: int = 500
    learning_rate: float = 0.02
    weight_decay: float = 0.01
    target: float = 0.0
    patience: int = 50
    plateau: float = 1e-3
    keep_last: bool = False

    def __post_init__(self) -> None:
        require(self.steps >= 0, "steps", self.steps, "0 or more")
        good_rate = math.isfinite(self.learning_rate) and self.learning_rate > 0
        require(good_rate, "learning_rate", self.learning_rate, "above 0")
        good_decay = math.isfinite(self.weight_decay) and self.weight_decay >= 0
        require(good_decay, "weight_decay", self.weight_decay, "0 or more")
        require(-1 <= self.target <= 1, "target_cosine", self.target, "from -1 to 1 (0 is off)")
        require(self.patience >= 0, "patience", self.patience, "0 (off) or more")
        require(math.isfinite(self.plateau) and self.plateau >= 0, "plateau", self.plateau, "0 or more")


@dataclass(frozen=True)
class Inversion:
    """What an optimisation found.

    tokens: `[N, P, D]`; for each variant those with the lowest loss, or those that first reached the target. With
        `keep_last` those of the last step.
    embeddings: `[N, E]`, which the tower makes of them.
    cosines: cosine of every variant to its text after 0, 1, ... steps, `[S + 1, N]`; of a variant that has stopped,
        that of what is kept.
    distances: the constraint's value before and after, `[2, N]`, without its weight; zeros where there is none.
    steps: steps that each variant took, `[N]`.
    reached: which variants stopped at the target, `[N]`.
    """

    tokens: Tensor
    embeddings: Tensor
    cosines: Tensor
    distances: Tensor
    steps: Tensor
    reached: Tensor


def mahalanobis(bank: ImageBank, targets: Tensor) -> Constraint:
    """Squared Mahalanobis distance to the bank's mean, divided by the width."""
    return lambda embeddings, _: bank.squared_distance(embeddings)


def nearest_neighbour(bank: ImageBank, targets: Tensor) -> Constraint:
    """1 - cosine to the real image that is nearest to the variant's text (see `neighbours`).

    Not to the one nearest to the embedding itself: that is at first whatever is nearest to a random start, and it
    holds the embedding there, whatever the text.
    """
    chosen = bank.unit[neighbours(bank, targets).to(bank.unit.device)]
    return lambda embeddings, rows: 1 - (F.normalize(embeddings, dim=1) * chosen.to(embeddings)[rows]).sum(1)


def mahalanobis_distance(bank: ImageBank, targets: Tensor) -> Constraint:
    """Mahalanobis distance to the bank's mean, as published: neither squared nor divided by the width."""
    # The root has no slope at the mean itself.
    return lambda embeddings, _: (bank.squared_distance(embeddings) * bank.width).clamp_min(1e-12).sqrt()


def nearest_member(bank: ImageBank, targets: Tensor) -> Constraint:
    """1 - cosine to the member of the bank that is nearest to the embedding as it is now, as published."""
    return lambda embeddings, _: 1 - bank.nearest(embeddings)[0]


def neighbours(bank: ImageBank, targets: Tensor) -> Tensor:
    """Which member each variant is held near to, `[N]`: of those that no earlier variant has, the nearest to its
    target `[N, E]`; so variants differ as images of a text do. When all are taken, they are free again.

    Raises ValueError for targets of another width.
    """
    bank.check_width(targets)
    similarity = F.normalize(targets.float(), dim=1).to(bank.unit) @ bank.unit.T
    free = torch.ones(len(bank), dtype=torch.bool, device=similarity.device)
    found = []
    for row in similarity:
        if not bool(free.any()):
            free[:] = True
        found.append(int(row.masked_fill(~free, -math.inf).argmax()))
        free[found[-1]] = False
    return torch.tensor(found)


def initial_tokens(count: int, tokens: int, width: int, seed: int) -> Tensor:
    """Normal tokens `[N, P, D]` of deviation 0.02, float32 on the CPU. Variant k has a generator of its own, so that it
    is the same whatever N.

    Raises ValueError for no variants and for no tokens.
    """
    require(count >= 1, "variants", count, "1 or more")
    require(tokens >= 1, "tokens", tokens, "1 or more")
    return INITIAL_DEVIATION * torch.stack(
        [torch.randn(tokens, width, generator=torch.Generator().manual_seed(_mixed(seed, k))) for k in range(count)]
    )


def _mixed(seed: int, variant: int) -> int:
    # Hashed, since variant 1 of seed 0 must not be variant 0 of seed 1.
    return int.from_bytes(hashlib.sha256(f"{seed} {variant}".encode()).digest()[:8], "big")


def invert(
    start: Tensor,
    targets: Tensor,
    encode: Encode,
    settings: Settings,
    constraint: Constraint | None = None,
    weight: float = 0.0,
    after_step: AfterStep | None = None,
) -> Inversion:
    """Tokens from the start `[N, P, D]` whose embeddings point the way of `targets` `[N, E]` (or `[1, E]` for all).

    Minimises 1 - cosine + weight * constraint for each variant by itself: its result does not depend on the others.
    `after_step(cosines [N], variants that go on)` is called after every step. Raises ValueError for a negative weight,
    targets of another number or width, and embeddings that are not finite.
    """
    require(math.isfinite(weight) and weight >= 0, "weight", weight, "0 or more")
    count = len(start)
    require(len(targets) in (1, count), "targets", len(targets), f"1 or {count}, the number of variants")
    targets = F.normalize(targets, dim=1).expand(count, -1)
    tokens = start.detach().clone()
    optimiser = torch.optim.AdamW([tokens], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    kept = _Kept(tokens, settings)
    for step in range(settings.steps + 1):
        active = kept.active
        rows = active.nonzero()[:, 0]
        embeddings, pull_back = encode(tokens[rows])
        if embeddings.shape[1] != targets.shape[1]:
            raise ValueError(f"targets are {targets.shape[1]} wide, the embeddings {embeddings.shape[1]}.")
        if not torch.isfinite(embeddings).all():
            raise ValueError("The vision tower gives embeddings that are not finite; they cannot be optimised.")
        cosines, distances, losses, gradient = _objective(embeddings, targets[rows], rows, constraint, weight)
        kept.take(step, rows, tokens, embeddings, cosines, distances, losses)
        if step > 0 and after_step is not None:
            after_step(kept.history[-1], int(kept.active.sum()))
        if step == settings.steps or not bool(kept.active.any()):
            break
        # A variant that has just stopped is not moved any more, and has no part in what follows.
        going_on = kept.active[rows]
        slope = torch.zeros_like(tokens)
        slope[rows] = pull_back(gradient * going_on[:, None])
        tokens.grad = slope
        optimiser.step()
    return kept.inversion()


def _objective(
    embeddings: Tensor, targets: Tensor, rows: Tensor, constraint: Constraint | None, weight: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cosines, constraint values, losses `[N]`, and the losses' gradient with respect to the embeddings `[N, E]`."""
    with torch.enable_grad():
        variable = embeddings.detach().clone().requires_grad_()
        cosines = F.cosine_similarity(variable, targets, dim=1)
        distances = torch.zeros_like(cosines) if constraint is None else constraint(variable, rows)
        losses = 1 - cosines + weight * distances
        gradient = torch.autograd.grad(losses.sum(), variable)[0]
    return cosines.detach(), distances.detach(), losses.detach(), gradient


class _Kept:
    """What is kept of each variant so far, and which variants are still being optimised."""

    def __init__(self, tokens: Tensor, settings: Settings) -> None:
        count, device = len(tokens), tokens.device
        self.settings = settings
        self.active = torch.ones(count, dtype=torch.bool, device=device)
        self.reached = torch.zeros_like(self.active)
        self.steps = torch.zeros(count, dtype=torch.long, device=device)
        self.tokens = tokens.clone()
        self.losses = torch.full((count,), math.inf, device=device, dtype=tokens.dtype)
        # The loss that the next `patience` steps have to beat by `plateau`, and since when.
        self._mark = torch.full((count,), math.inf, device=device, dtype=tokens.dtype)
        self._since = torch.zeros(count, dtype=torch.long, device=device)
        self.cosines = torch.zeros(count, device=device, dtype=tokens.dtype)
        self.distances = torch.zeros(count, device=device, dtype=tokens.dtype)
        self.first_distances: Tensor | None = None
        self.embeddings: Tensor | None = None
        self.history: list[Tensor] = []

    def take(
        self,
        step: int,
        rows: Tensor,
        tokens: Tensor,
        embeddings: Tensor,
        cosines: Tensor,
        distances: Tensor,
        losses: Tensor,
    ) -> None:
        """What the variants `rows` are after `step` steps."""
        settings = self.settings
        if self.embeddings is None:
            self.embeddings, self.first_distances = torch.zeros_like(embeddings), distances
        there = (cosines >= settings.target) if settings.target != 0 else torch.zeros_like(cosines, dtype=torch.bool)
        better = there | (losses < self.losses[rows]) | settings.keep_last
        chosen = rows[better]
        self.tokens[chosen] = tokens[chosen]
        self.embeddings[chosen] = embeddings[better]
        self.losses[chosen], self.cosines[chosen] = losses[better], cosines[better]
        self.distances[chosen] = distances[better]
        self.steps[rows] = step

        lower = self.losses[rows] < self._mark[rows] - settings.plateau
        self._mark[rows] = torch.where(lower, self.losses[rows], self._mark[rows])
        self._since[rows] = torch.where(lower, torch.full_like(rows, step), self._since[rows])
        stuck = (step - self._since[rows] >= settings.patience) if settings.patience else torch.zeros_like(there)
        self.reached[rows] = there
        self.active[rows] = ~(there | stuck)
        now = self.cosines.clone()
        now[rows] = torch.where(self.active[rows], cosines, self.cosines[rows])
        self.history.append(now)

    def inversion(self) -> Inversion:
        assert self.embeddings is not None
        assert self.first_distances is not None
        self.history[-1] = self.cosines
        return Inversion(
            self.tokens,
            self.embeddings,
            torch.stack(self.history),
            torch.stack([self.first_distances, self.distances]),
            self.steps,
            self.reached,
        )
