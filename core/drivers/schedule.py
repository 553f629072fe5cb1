"""One conditioning that turns into another during sampling, on any sampler node.

The conditioning carries its schedule (see `core.hooks.carried`), so it needs no patched model and cannot meet a model
that would leave it out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.utils
from torch import Tensor

from ..hooks.carried import Call, Payload, Preparation, carrying, payloads, unchanged, with_payload
from ..hooks.conditioning import cond_rows
from ..hooks.noise_levels import percent_of
from ..methods.schedule import Window, step_position
from ..require import require

logger = logging.getLogger("ComfyUI-Diversity")

PAYLOAD = "diversity_schedule"
CLOCKS = ("steps", "noise")
_CHANGED = (
    "The embeddings of a scheduled conditioning were changed on the way to the sampler (by Conditioning Concat or "
    "Average, for instance), which would reach one of its two sides only. Change both conditionings before they are "
    "scheduled."
)
_MOST_REPEATS = 4  # as ComfyUI: texts of different length are repeated to a common one up to this


@dataclass(frozen=True)
class Schedule(Payload):
    """What a scheduled conditioning carries: the other conditioning and when it takes over.

    first: the conditioning at weight 1, `[N, T, D]`, to notice nodes that change it afterwards.
    cond, extras: the conditioning at weight 0, `[M, T, D]`, and its dictionary.
    clock: "steps", the share of the sampler's steps that are done; "noise", the share of the model's whole noise
        schedule that is behind, so that two samplers in a row share one window.
    between: None, or the conditioning that `first` fades towards while its weight is above 0, for encoders whose texts
        of different length cannot be blended.
    model_conds, between_conds: the other conditionings as the model reads them; there once a run has begun.
    """

    first: Tensor
    cond: Tensor
    extras: Mapping[str, Any]
    window: Window
    clock: str = "steps"
    between: tuple[Tensor, Mapping[str, Any]] | None = None
    model_conds: Mapping[str, Any] | None = field(default=None, compare=False)
    between_conds: Mapping[str, Any] | None = field(default=None, compare=False)

    def for_rows(self, rows: Sequence[int]) -> Schedule:
        """The same schedule for the images at positions `rows` of the batch."""

        def cut(conds: Mapping[str, Any] | None) -> dict[str, Any] | None:
            return None if conds is None else {name: cond_rows(cond, rows) for name, cond in conds.items()}

        return replace(self, model_conds=cut(self.model_conds), between_conds=cut(self.between_conds))

    def started(self, entry: Mapping[str, Any], guider: Any) -> bool:
        """A node that changes the embeddings of a scheduled conditioning changes one of its two sides only. Zeroed out,
        it is zero throughout; anything else has no clear meaning."""
        return unchanged(entry, self.first, _CHANGED)

    def prepared(self, entry: dict[str, Any], key: str, prepare: Preparation) -> dict[str, Any]:
        """The other conditionings go through the model's own preparation."""
        if self.model_conds is not None:
            return entry
        _compare_rows(len(self.first), len(prepare.noise), prepare.kind)
        # What other nodes have set on the scheduled conditioning since (guidance, size) holds for both.
        own = {name: value for name, value in entry.items() if name not in ("cross_attn", "pooled_output")}
        others = [(self.cond, self.extras), *([] if self.between is None else [self.between])]
        conds = prepare([{**own, **extras, "cross_attn": cond} for cond, extras in others])
        return with_payload(entry, key, replace(self, model_conds=conds[0], between_conds=conds[-1]))

    def with_model_conds(self, conds: Mapping[str, Any]) -> Schedule:
        """The same schedule, prepared already, with model conditions that do not fade."""
        whole = {**(self.model_conds or {}), **conds}
        return replace(self, model_conds=whole, between_conds={**(self.between_conds or {}), **conds})

    def in_force(self, conds: dict[str, Any], call: Call) -> dict[str, Any]:
        """The model conditions at this weight."""
        weight = self.weight(call.model, call.sigma, call.sigmas)
        if weight >= 1:
            return conds
        if weight <= 0:
            return dict(self.model_conds or {})
        towards = self.between_conds or {}
        return {name: _between(cond, towards.get(name), weight, call.batch) for name, cond in conds.items()}

    def weight(self, model: Any, sigma: float, sigmas: Sequence[float]) -> float:
        """Weight of the first conditioning at this noise level of a run with these sigmas (T + 1 values)."""
        total = max(len(sigmas) - 1, 1)
        if self.clock == "noise" and not self.window.steps:
            return self.window.weight(percent_of(model.model_sampling, sigma), total)
        return self.window.weight(step_position(sigmas, sigma) / total, total)


def scheduled(first: list, second: list, window: Window, clock: str = "steps", between: list | None = None) -> list:
    """CONDITIONING that is `first` at weight 1 and `second` at weight 0; neither is changed.

    between: what takes the place of `second` while the weight is above 0, where `second` has another number of tokens
        (see `can_blend`).

    Raises ValueError for conditionings that cannot be blended, and for an unknown clock.
    """
    require(clock in CLOCKS, "clock", clock, f"one of {', '.join(CLOCKS)}")
    if not first or not second:
        raise ValueError("A conditioning is empty; there is nothing to blend.")
    if len(second) not in (1, len(first)):
        raise ValueError(
            f"conditioning_to has {len(second)} entries and conditioning_from {len(first)}; it must have 1 or as many. "
            "Schedule conditionings before they are combined."
        )
    found = []
    for k, (cond, extras) in enumerate(first):
        other, other_extras = second[k % len(second)]
        for name, dictionary in (("conditioning_from", extras), ("conditioning_to", other_extras)):
            if PAYLOAD in payloads(dictionary):
                raise ValueError(
                    f"{name} carries a schedule already; it must be a plain conditioning. Diverse Prompts (TPSO) gives "
                    'one without a schedule where its own schedule is set to "off".'
                )
        if payloads(other_extras):
            raise ValueError(
                "conditioning_to carries image embeddings or a token to learn, which would be lost. Attach them to the "
                "scheduled conditioning."
            )
        if cond.shape[-1] != other.shape[-1]:
            raise ValueError(
                f"conditioning_from is {cond.shape[-1]} wide and conditioning_to {other.shape[-1]}: they come from "
                "different text encoders and cannot be blended."
            )
        on_the_way = None if between is None else between[k % len(between)]
        _common_length(cond.shape[1], (other if on_the_way is None else on_the_way[0]).shape[1])
        schedule = Schedule(cond, other, _bare(other_extras), window, clock)
        if on_the_way is not None:
            schedule = replace(schedule, between=(on_the_way[0], _bare(on_the_way[1])))
        found.append(carrying(cond, extras, PAYLOAD, schedule))
    return found


def _bare(extras: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extras.items() if name not in ("hooks", "model_conds")}


def can_blend(first: list, second: list) -> bool:
    """Whether the texts of two CONDITIONINGs of as many entries have lengths that can be blended."""
    return all(_repeats(a[0].shape[1], b[0].shape[1]) <= _MOST_REPEATS for a, b in zip(first, second, strict=True))


def _compare_rows(rows: int, batch: int, kind: str) -> None:
    if rows not in (1, batch):
        logger.warning(
            "The %s conditioning has %d variants and the batch %d images: %s.",
            kind, rows, batch, "only the first variants are used" if batch < rows else "variants are repeated",
        )  # fmt: skip


def _between(first: Any, second: Any, weight: float, batch: int) -> Any:
    if second is None:
        return first
    a, b = first.cond, second.cond
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return first._copy_with([_mixed(p, q, weight, batch) for p, q in zip(a, b, strict=True)])
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.is_floating_point()):
        return first
    return first._copy_with(_mixed(a, b, weight, batch))


def _mixed(a: Tensor, b: Tensor, weight: float, batch: int) -> Tensor:
    """b + (a - b) weight; rows and tokens are repeated to common numbers, as ComfyUI repeats them."""
    b = b.to(a)
    if a.ndim == 3 and b.ndim == 3 and a.shape[1] != b.shape[1]:
        length = _common_length(a.shape[1], b.shape[1])
        a, b = a.repeat(1, length // a.shape[1], 1), b.repeat(1, length // b.shape[1], 1)
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        a, b = comfy.utils.repeat_to_batch_size(a, batch), comfy.utils.repeat_to_batch_size(b, batch)
    return b + (a - b) * weight


def _repeats(a: int, b: int) -> int:
    return math.lcm(a, b) // min(a, b)


def _common_length(a: int, b: int) -> int:
    if _repeats(a, b) > _MOST_REPEATS:
        raise ValueError(
            f"conditioning_from has {a} tokens and conditioning_to {b}; they can be blended only where one length is a "
            f"small multiple of the other, as with CLIP's 77 and 154. Texts of this encoder must have the same number "
            "of tokens. (Variants of Diverse Prompts: use its own schedule, or set its added_tokens to 0.)"
        )
    return math.lcm(a, b)
