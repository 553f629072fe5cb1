"""Token-Prompt Space Optimization (TPSO): N variants of one prompt, far from each other and equally near the prompt.

"Training-Free Generation of Diverse and High-Fidelity Images via Prompt Semantic Space Optimization",
arXiv 2511.19811. Each variant is the prompt plus a small offset on its token embeddings; the offsets are optimised so
that every variant's prompt vector has cosine kappa to the prompt's own.

Published (core/methods/tpso_published.py): a variant stops once its cosine is kappa, so the variants move apart only on
the way there. Here they go on, along the surface of all vectors with cosine kappa, until they are as far apart as that
surface allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ..require import require

Pullback = Callable[[Tensor], Tensor]
# From offsets [N, P, D] to prompt vectors [N, E], and their pullback: from a gradient with respect to the vectors to
# the gradient with respect to the offsets.
Encode = Callable[[Tensor], tuple[Tensor, Pullback]]
# Called with the cosines to the prompt [N] and the mean pairwise cosine, None for a single variant.
AfterStep = Callable[[Tensor, "Tensor | None"], None]

INITIAL_DEVIATION = 1e-4
# Chosen on the demo world (docs/use/tpso.md). The margin is a share of the distance of the variants from the prompt's
# axis; the hinge is therefore active before a variant moves.
KEEP_WEIGHT, KEEP_MARGIN = 5.0, 0.04
LEAST_CHANGE = 0.03  # of the largest: a word that changes the prompt less has no meaning that could be lost
CONVERGED = 0.005  # mean pairwise cosine this near its least value, on the scale of 1 - cosine
_POLISH_STEPS = 8


@dataclass(frozen=True)
class Settings:
    """How variants are optimised.

    kappa: cosine of every variant to the prompt, above -1 and at most 1 (published: 0.8).
    tolerance: half the width of the band around kappa in which a variant has arrived, 0..1.
    diversity: weight of the repulsion between variants (lambda); 0 disables it.
    steps: maximum number of gradient steps.
    learning_rate: of the optimiser, on offsets that are not yet divided by the number of positions.

    Raises ValueError for a value that is not allowed.
    """

    kappa: float = 0.8
    tolerance: float = 0.01
    diversity: float = 1.0
    steps: int = 60
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        require(-1 < self.kappa <= 1, "kappa", self.kappa, "above -1 and at most 1")
        require(0 < self.tolerance <= 1, "tolerance", self.tolerance, "above 0 and at most 1")
        require(math.isfinite(self.diversity) and self.diversity >= 0, "diversity", self.diversity, "0 or more")
        require(self.steps >= 0, "steps", self.steps, "0 or more")
        good_rate = math.isfinite(self.learning_rate) and self.learning_rate > 0
        require(good_rate, "learning_rate", self.learning_rate, "above 0")


@dataclass(frozen=True)
class Variants:
    """What an optimisation found.

    offsets: `[N, P, D]`, to be added to the token embeddings as they are.
    vectors: prompt vectors of the variants, `[N, E]`, unit length.
    cosines: cosine of every variant to the prompt after 0, 1, ... steps, `[S + 1, N]`.
    spreads: mean pairwise cosine after 0, 1, ... steps, `[S + 1]`; empty for one variant.
    """

    offsets: Tensor
    vectors: Tensor
    cosines: Tensor
    spreads: Tensor

    @property
    def pairwise(self) -> Tensor:
        """Cosines between the variants, `[N, N]`."""
        return self.vectors @ self.vectors.T


@dataclass
class History:
    """Cosines of unit vectors to the prompt, and between them, step by step."""

    cosines: list[Tensor] = field(default_factory=list)
    spreads: list[Tensor] = field(default_factory=list)

    def add(self, unit: Tensor, reference: Tensor) -> Tensor:
        """Notes unit vectors `[N, E]`; their cosines to the prompt `[N]`."""
        cosines = unit @ reference
        self.cosines.append(cosines)
        if len(unit) > 1:
            self.spreads.append(mean_pairwise(unit))
        return cosines

    @property
    def latest_spread(self) -> Tensor | None:
        """Mean pairwise cosine after the last step; None for a single variant."""
        return self.spreads[-1] if self.spreads else None

    def variants(self, offsets: Tensor, unit: Tensor) -> Variants:
        """What was found, with the whole course of it."""
        spreads = torch.stack(self.spreads) if self.spreads else unit.new_zeros(0)
        return Variants(offsets, unit, torch.stack(self.cosines), spreads)

    def correct(self, unit: Tensor, reference: Tensor) -> None:
        """Replaces the last step's entry: a correction onto the surface is part of that step."""
        self.cosines.pop()
        if self.spreads:
            self.spreads.pop()
        self.add(unit, reference)


def mean_pairwise(unit: Tensor) -> Tensor:
    """Mean cosine over the pairs of different unit vectors `[N, E]`, a scalar: (|sum v|^2 - N) / (N (N - 1)).

    Raises ValueError for fewer than two vectors.
    """
    count = len(unit)
    require(count >= 2, "variants", count, "2 or more for a pairwise cosine")
    return (unit.sum(0).square().sum() - count) / (count * (count - 1))


def least_mean_pairwise(kappa: float, count: int) -> float:
    """The least mean pairwise cosine that `count` unit vectors can have which all have cosine kappa to one vector.

    v_k = kappa v + sqrt(1 - kappa^2) u_k with unit u_k, whose mean pairwise cosine is at least -1 / (N - 1).
    Raises ValueError for fewer than two vectors.
    """
    require(count >= 2, "variants", count, "2 or more for a pairwise cosine")
    return kappa**2 - (1 - kappa**2) / (count - 1)


def semantic_loss(cosines: Tensor, kappa: float, tolerance: float) -> Tensor:
    """L_sem: how far the cosines `[N]` are outside the band kappa +- tolerance, summed (equation 7)."""
    below = (kappa - tolerance - cosines).clamp(min=0)
    above = (cosines - kappa - tolerance).clamp(min=0)
    return (below + above).sum()


def diversity_loss(unit: Tensor, active: int) -> Tensor:
    """L_div = -(1 - mean pairwise cosine) N / n_active of unit vectors `[N, E]`; 0 for one variant or none active."""
    if len(unit) < 2 or active == 0:
        return unit.new_zeros(())
    return -(1 - mean_pairwise(unit)) * len(unit) / active


def initial_offsets(count: int, positions: int, width: int, seed: int, deviation: float = INITIAL_DEVIATION) -> Tensor:
    """Normal offsets `[N, P, D]` (published deviation: 1e-4), float32 on the CPU. Variant k does not depend on how many
    there are.

    Raises ValueError for no variants and for a prompt without positions.
    """
    require(count >= 1, "variants", count, "1 or more")
    require(positions >= 1, "positions", positions, "1 or more: the prompt has no words to vary")
    generator = torch.Generator().manual_seed(seed)
    # One by one: a single draw of all gives other numbers for another count.
    return deviation * torch.stack([torch.randn(positions, width, generator=generator) for _ in range(count)])


def optimise_variants(
    start: Tensor,
    reference: Tensor,
    encode: Encode,
    settings: Settings,
    after_step: AfterStep | None = None,
    keep: Tensor | None = None,
) -> Variants:
    """Variants of a prompt with vector `reference` `[E]`, from the offsets `start` `[N, P, D]`.

    Offsets are divided by the number of positions P before they are encoded (published), and so are those in the
    result. `after_step(cosines [N], mean pairwise cosine or None)` is called after every step. A single variant has no
    other to be pushed away from: it only moves to cosine kappa. `keep` `[M, E]` are directions of `directions_to_keep`.
    Raises ValueError for vectors that are not finite.
    """
    reference, positions = F.normalize(reference, dim=0), start.shape[1]
    history, after = History(), after_step or (lambda *_: None)
    encode = unit_vectors(encode, positions)
    offsets, unit = _on_the_surface(start.clone(), reference, encode, settings, history, after, keep)
    return history.variants(offsets / positions, unit)


def unit_vectors(encode: Encode, positions: int) -> Encode:
    """`encode` of offsets divided by the number of positions, with its vectors normalised."""

    def scaled(offsets: Tensor) -> tuple[Tensor, Pullback]:
        vectors, pullback = encode(offsets / positions)
        if not torch.isfinite(vectors).all():
            raise ValueError("The text encoder gives vectors that are not finite; its variants cannot be optimised.")
        lengths = vectors.norm(dim=1, keepdim=True)
        unit = vectors / lengths

        def pull_back(gradient: Tensor) -> Tensor:
            # Through the normalisation: only what is at right angles to a vector turns it.
            across = gradient - (gradient * unit).sum(1, keepdim=True) * unit
            return pullback(across / lengths) / positions

        return unit, pull_back

    return scaled


def _on_the_surface(
    offsets: Tensor,
    reference: Tensor,
    encode: Encode,
    settings: Settings,
    history: History,
    after: AfterStep,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Adam along `surface_field` with a cosine schedule of the rate, then Newton steps back onto the surface."""
    optimiser = torch.optim.Adam([offsets], lr=settings.learning_rate, betas=(0.9, 0.99))
    unit, pull_back = encode(offsets)
    cosines = history.add(unit, reference)
    for step in range(settings.steps):
        if _arrived(unit, cosines, settings, keep):
            break
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        offsets.grad = pull_back(-surface_field(unit, reference, settings.kappa, settings.diversity, keep))
        optimiser.step()
        unit, pull_back = encode(offsets)
        cosines = history.add(unit, reference)
        after(cosines, history.latest_spread)
    return _onto_surface(offsets.detach(), unit, pull_back, reference, encode, settings, history)


def directions_to_keep(reference: Tensor, changed: Tensor) -> Tensor:
    """Unit directions `[K, E]` from changed prompts towards the prompt, along the surface of one cosine to the prompt.

    reference: the prompt's vector `[E]`. changed: vectors `[M, E]` of the prompt with a word left out or exchanged. A
    variant that moves against such a direction takes on the meaning of the changed prompt. Changes that hardly move the
    prompt's vector are left out; K may be 0.
    """
    reference, changed = F.normalize(reference, dim=0), F.normalize(changed, dim=1)
    distance = 1 - changed @ reference
    changed = changed[distance > LEAST_CHANGE * distance.max()] if len(changed) else changed
    across = reference - changed
    return F.normalize(across - (across @ reference)[:, None] * reference, dim=1)


def surface_field(
    unit: Tensor, reference: Tensor, kappa: float, diversity: float = 1.0, keep: Tensor | None = None
) -> Tensor:
    """Where unit vectors `[N, E]` should move, `[N, E]`, at right angles to each of them.

    The sum of two orthogonal parts: one towards cosine kappa, as long as the angle that is missing; and one along the
    surface of constant cosine to `reference`, away from the other vectors and back from where a vector has moved
    against the directions `keep` `[M, E]`. Without `keep` it is zero only where every cosine is kappa and the vectors
    are as far apart as they can be (or exactly balanced).
    """
    cosines = (unit @ reference)[:, None]
    towards = F.normalize(reference - cosines * unit, dim=1)
    angle = torch.acos(cosines.clamp(-1, 1)) - math.acos(kappa)
    along = torch.zeros_like(unit)
    if len(unit) > 1:
        along = diversity * (unit - unit.sum(0)) / (len(unit) - 1)
    if keep is not None:
        # The gradient of half the squared hinge.
        margin = KEEP_MARGIN * math.sqrt(1 - kappa**2)
        along = along + KEEP_WEIGHT * (margin - unit @ keep.T).clamp(min=0) @ keep
    along = along - (along * unit).sum(1, keepdim=True) * unit
    along = along - (along * towards).sum(1, keepdim=True) * towards
    return angle * towards + along


def _arrived(unit: Tensor, cosines: Tensor, settings: Settings, keep: Tensor | None) -> bool:
    if bool(((cosines - settings.kappa).abs() > settings.tolerance / 2).any()):
        return False
    if keep is not None and bool((unit @ keep.T < 0).any()):
        return False
    if len(unit) < 2 or settings.diversity == 0:
        return True
    return mean_pairwise(unit).item() <= least_mean_pairwise(settings.kappa, len(unit)) + CONVERGED


def _onto_surface(
    offsets: Tensor,
    unit: Tensor,
    pull_back: Pullback,
    reference: Tensor,
    encode: Encode,
    settings: Settings,
    history: History,
) -> tuple[Tensor, Tensor]:
    """Newton steps on each variant's cosine alone, at most `_POLISH_STEPS`, until all are well within the band."""
    cosines = unit @ reference
    for _ in range(_POLISH_STEPS if settings.steps else 0):
        off = settings.kappa - cosines
        if bool((off.abs() <= settings.tolerance / 4).all()):
            break
        slope = pull_back(reference.expand_as(unit))
        steepness = slope.flatten(1).square().sum(1)
        step = torch.where(steepness > 0, off / steepness.clamp(min=torch.finfo(off.dtype).tiny), off * 0)
        moved = offsets + step[:, None, None] * slope
        new_unit, new_pull_back = encode(moved)
        new_cosines = new_unit @ reference
        better = (settings.kappa - new_cosines).abs() < off.abs()
        if not bool(better.any()):
            break
        if not bool(better.all()):
            # The step was too long for the curvature of some variants, which stay where they were.
            moved = torch.where(better[:, None, None], moved, offsets)
            new_unit, new_pull_back = encode(moved)
            new_cosines = new_unit @ reference
        offsets, unit, pull_back, cosines = moved, new_unit, new_pull_back, new_cosines
        history.correct(unit, reference)
    return offsets, unit


def calibrated_kappa(kappa: float, unrelated: float, unrelated_reference: float) -> float:
    """The cosine in one space of prompt vectors that means what `kappa` means in another.

    Cosines of different spaces cannot be compared: unrelated prompts have cosine 0.9 in one space and 0.3 in another.
    What is kept is the share of the distance from the prompt itself (cosine 1) to unrelated prompts, whose mean cosine
    is `unrelated` here and `unrelated_reference` in the space for which kappa was chosen.

    Raises ValueError for a mean cosine of 1 or more.
    """
    for name, value in (("unrelated", unrelated), ("unrelated_reference", unrelated_reference)):
        require(-1 <= value < 1, name, value, "at least -1 and below 1")
    return max(1 - (1 - kappa) * (1 - unrelated) / (1 - unrelated_reference), -0.99)
