"""TPSO without gradients: the variants that `core.methods.tpso` looks for, found by forward passes alone.

For text encoders through which no gradient passes (rounded activations, compiled models). Along a direction of offsets
the cosine to the prompt falls from 1, so a length at which it is kappa is found by bisection. What is searched are the
directions: drawn at random, of which those are chosen that lie furthest apart, and then moved in rounds that keep what
lowers the mean pairwise cosine. Where to move them is read off a secant model: what earlier moves of the offsets did to
the vectors, by a ridge regression so strong that it is nearly the transpose, as a gradient's pullback is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .tpso import (
    CONVERGED,
    KEEP_MARGIN,
    KEEP_WEIGHT,
    Settings,
    Variants,
    least_mean_pairwise,
    mean_pairwise,
    surface_field,
)

# From offsets [M, P, D] to prompt vectors [M, E].
Vectors = Callable[[Tensor], Tensor]
_AfterStep = Callable[[Tensor, "Tensor | None"], None]

# Chosen on the demo CLIP and prompts of its tuning set (benchmarks.tpso_search).
_RIDGE = 10.0  # times the mean squared change of a remembered pair
_MEMORY = 256  # pairs
_FIRST_REACH, _LONGEST_REACH = 0.5, 1.0  # of a round's moves, as a share of an offset's length
_NOVELTY = 0.5  # of a move at random: only what was tried can be remembered
_PATIENCE, _GAIN = 4, 5e-4  # so many rounds that gain less end the search, as a share of 1 - kappa^2
_TRIALS, _FURTHEST = 14, 100.0  # lengths tried along a direction, and how many times its own length is the longest


def candidates_for(count: int) -> int:
    """How many random directions are tried for so many variants."""
    return 2 * count + 60


def search_variants(
    start: Tensor,
    count: int,
    reference: Tensor,
    vectors: Vectors,
    settings: Settings,
    after_step: _AfterStep | None = None,
    keep: Tensor | None = None,
    seed: int = 0,
) -> Variants:
    """`count` variants of a prompt with vector `reference` `[E]`, out of the candidates `start` `[M, P, D]`.

    Offsets are divided by the number of positions P before they are encoded, and so are those in the result.
    `settings.steps` is the maximum number of rounds; the learning rate has no meaning here. `after_step(cosines [N],
    mean pairwise cosine or None)` is called after every round. `keep` `[K, E]` are directions of `directions_to_keep`.
    Raises ValueError for fewer candidates than variants, and for vectors that are not finite.
    """
    if len(start) < count:
        raise ValueError(f"start holds {len(start)} candidates; it must hold at least {count}, one for each variant.")
    return _Search(start, count, F.normalize(reference, dim=0), vectors, settings, keep, seed).run(after_step)


class _Search:
    """Candidates on the surface, those chosen, and the rounds that move them apart."""

    def __init__(
        self,
        start: Tensor,
        count: int,
        reference: Tensor,
        vectors: Vectors,
        settings: Settings,
        keep: Tensor | None,
        seed: int,
    ) -> None:
        self._start, self._count, self._reference = start, count, reference
        self._encode, self._settings, self._keep = vectors, settings, keep
        self._positions = start.shape[1]
        self._generator = torch.Generator().manual_seed(seed)
        self._cosines: list[Tensor] = []
        self._spreads: list[Tensor] = []

    def run(self, after_step: _AfterStep | None) -> Variants:
        after = after_step or (lambda *_: None)
        settings, count = self._settings, self._count
        if settings.steps == 0:
            offsets = self._start[:count].clone()
            unit = self._unit(offsets)
            self._note(unit)
            return self._found(offsets, unit)
        # One alone has nothing to be apart from, and without repulsion none heeds the others.
        choose = count > 1 and (settings.diversity > 0 or self._keep is not None)
        offsets, unit = self._on_surface(self._start if choose else self._start[:count])
        memory = _Memory(offsets, unit)
        if choose:
            chosen = self._furthest_apart(unit)
            offsets, unit = offsets[chosen], unit[chosen]
        self._note(unit)
        after(self._cosines[-1], self._spreads[-1] if self._spreads else None)
        if choose:
            offsets, unit = self._rounds(offsets, unit, memory, after)
        return self._found(offsets, unit)

    def _rounds(self, offsets: Tensor, unit: Tensor, memory: _Memory, after: _AfterStep) -> tuple[Tensor, Tensor]:
        reach, idle = _FIRST_REACH, 0
        for _ in range(self._settings.steps):
            if self._arrived(unit) or idle >= _PATIENCE:
                break
            before = self._energy(unit)
            moves = memory.offsets_for(self._wanted(unit)).view_as(offsets)
            moves = moves + _NOVELTY * _of_length(
                torch.randn(offsets.shape, generator=self._generator).to(offsets), _lengths(moves)
            )
            ahead = offsets + _of_length(moves, reach * _lengths(offsets))
            ahead, new = self._on_surface(_of_length(ahead, _lengths(offsets)))
            memory.add(ahead - offsets, new - unit)
            offsets, unit, moved = self._kept_if_better(offsets, unit, ahead, new)
            idle = 0 if before - self._energy(unit) > _GAIN * self._scale else idle + 1
            reach = min(reach * 1.3, _LONGEST_REACH) if moved > len(offsets) / 2 else reach * 0.7
            self._note(unit)
            after(self._cosines[-1], self._spreads[-1] if self._spreads else None)
        return offsets, unit

    def _wanted(self, unit: Tensor) -> Tensor:
        """Where each vector should move, `[N, E]`, along the surface."""
        return surface_field(unit, self._reference, self._settings.kappa, self._settings.diversity, self._keep)

    def _kept_if_better(self, offsets: Tensor, unit: Tensor, ahead: Tensor, new: Tensor) -> tuple[Tensor, Tensor, int]:
        """Variants where they lie apart further; each is judged with those before it moved already."""
        offsets, unit, moved = offsets.clone(), unit.clone(), 0
        aim, band = self._settings.kappa, self._settings.tolerance / 2
        off, new_off = (unit @ self._reference - aim).abs(), (new @ self._reference - aim).abs()
        for k in range(len(offsets)):
            tried = unit.clone()
            tried[k] = new[k]
            nearer = bool(new_off[k] <= off[k]) or bool(new_off[k] <= band)
            if nearer and self._energy(tried) < self._energy(unit):
                unit, moved = tried, moved + 1
                offsets[k] = ahead[k]
        return offsets, unit, moved

    @property
    def _scale(self) -> float:
        """How much the mean pairwise cosine can differ at all."""
        return 1 - self._settings.kappa**2

    def _energy(self, unit: Tensor) -> float:
        """What a round is to lower: the mean pairwise cosine, and how far variants moved against the words to keep."""
        energy = self._settings.diversity * mean_pairwise(unit)
        if self._keep is not None:
            margin = KEEP_MARGIN * math.sqrt(self._scale)
            hinge = (margin - unit @ self._keep.T).clamp(min=0)
            energy = energy + KEEP_WEIGHT * hinge.square().sum() / len(unit)
        return float(energy)

    def _arrived(self, unit: Tensor) -> bool:
        if self._keep is not None and bool((unit @ self._keep.T < 0).any()):
            return False
        if self._settings.diversity == 0:
            return True
        return float(mean_pairwise(unit)) <= least_mean_pairwise(self._settings.kappa, len(unit)) + CONVERGED

    def _furthest_apart(self, unit: Tensor) -> list[int]:
        """Of candidates the `count` that are chosen one after another, each where it is furthest from those before."""
        off = (unit @ self._reference - self._settings.kappa).abs()
        usable = off <= max(self._settings.tolerance, float(off.sort().values[self._count - 1]))
        price = torch.zeros(len(unit), dtype=torch.float64, device=unit.device)
        if self._keep is not None:
            margin = KEEP_MARGIN * math.sqrt(self._scale)
            price = price + KEEP_WEIGHT * (margin - unit @ self._keep.T).clamp(min=0).square().sum(1)
        closeness = self._settings.diversity * (unit @ unit.T).double()
        price[~usable] = math.inf
        chosen = [int(price.argmin())]
        while len(chosen) < self._count:
            total = price + closeness[chosen].mean(0)
            total[chosen] = math.inf
            chosen.append(int(total.argmin()))
        return sorted(chosen)

    def _on_surface(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets of the same directions, as long as it takes for cosine kappa, and their unit vectors.

        A direction that never leads so far away ends where it comes nearest.
        """
        aim, enough = math.acos(self._settings.kappa), self._settings.tolerance / 4
        count = len(offsets)
        factor = torch.ones(count, dtype=torch.float64, device=offsets.device)
        low, high = torch.zeros_like(factor), torch.full_like(factor, math.inf)
        low_angle, high_angle = torch.zeros_like(factor), torch.full_like(factor, math.nan)
        best, best_off = factor.clone(), torch.full_like(factor, math.inf)
        best_unit: Tensor | None = None
        todo = torch.arange(count, device=offsets.device)
        for _ in range(_TRIALS):
            unit = self._unit(offsets[todo] * factor[todo].to(offsets)[:, None, None])
            cosines = unit @ self._reference
            if best_unit is None:
                best_unit = unit.clone()
            off = (cosines - self._settings.kappa).abs().double()
            better = off < best_off[todo]
            rows = todo[better]
            best[rows], best_off[rows], best_unit[rows] = factor[rows], off[better], unit[better]
            angles = cosines.double().clamp(-1, 1).acos()
            short = angles < aim
            low[todo[short]], low_angle[todo[short]] = factor[todo[short]], angles[short]
            high[todo[~short]], high_angle[todo[~short]] = factor[todo[~short]], angles[~short]
            todo = todo[off > enough]
            if len(todo) == 0:
                break
            factor[todo] = _between(low[todo], high[todo], low_angle[todo], high_angle[todo], aim)
        assert best_unit is not None
        return offsets * best.to(offsets)[:, None, None], best_unit

    def _unit(self, offsets: Tensor) -> Tensor:
        found = self._encode(offsets / self._positions)
        if not torch.isfinite(found).all():
            raise ValueError("The text encoder gives vectors that are not finite; its variants cannot be searched.")
        return F.normalize(found, dim=1)

    def _note(self, unit: Tensor) -> None:
        self._cosines.append(unit @ self._reference)
        if len(unit) > 1:
            self._spreads.append(mean_pairwise(unit))

    def _found(self, offsets: Tensor, unit: Tensor) -> Variants:
        spreads = torch.stack(self._spreads) if self._spreads else self._reference.new_zeros(0)
        return Variants(offsets / self._positions, unit, torch.stack(self._cosines), spreads)


class _Memory:
    """What moves of the offsets did to the vectors: pairs `[M, P * D]` and `[M, E]`, a secant model of the encoder."""

    def __init__(self, offsets: Tensor, unit: Tensor) -> None:
        # All candidates have a part in common, which is of no direction's own.
        self._moves, self._changes = (offsets - offsets.mean(0)).flatten(1), unit - unit.mean(0)

    def add(self, moves: Tensor, changes: Tensor) -> None:
        self._moves = torch.cat([self._moves, moves.flatten(1)])[-_MEMORY:]
        self._changes = torch.cat([self._changes, changes])[-_MEMORY:]

    def offsets_for(self, wanted: Tensor) -> Tensor:
        """Moves `[N, P, D]` that the pairs say lead vectors where they are wanted, `[N, E]`: ridge regression."""
        sizes = self._moves.norm(dim=1, keepdim=True).clamp(min=torch.finfo(self._moves.dtype).tiny)
        moves, changes = self._moves / sizes, self._changes / sizes
        gram = changes @ changes.T
        scale = gram.diagonal().mean().clamp(min=torch.finfo(gram.dtype).tiny)
        gram = gram + _RIDGE * scale * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve(gram, changes @ wanted.T).T @ moves


def _lengths(offsets: Tensor) -> Tensor:
    return offsets.flatten(1).norm(dim=1).clamp(min=torch.finfo(offsets.dtype).tiny)


def _of_length(offsets: Tensor, lengths: Tensor) -> Tensor:
    return offsets * (lengths / _lengths(offsets))[:, None, None]


def _between(low: Tensor, high: Tensor, low_angle: Tensor, high_angle: Tensor, aim: float) -> Tensor:
    """The next length to try, `[M]`: where the angle would be `aim` if it grew in a straight line, kept off the ends of
    the bracket; further out where none is known to be long enough."""
    reached = torch.isfinite(high)
    span = torch.where(reached, high - low, torch.ones_like(low))
    share = (aim - low_angle) / (high_angle - low_angle).clamp(min=1e-12)
    inside = low + span * share.nan_to_num(0.5).clamp(0.1, 0.9)
    grown = (low * (aim / low_angle.clamp(min=1e-6) * 1.1).clamp(1.3, 4.0)).clamp(max=_FURTHEST)
    return torch.where(reached, inside, grown)
