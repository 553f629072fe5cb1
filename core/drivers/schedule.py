"""One conditioning that turns into another during sampling, on any sampler node.

The conditioning carries its schedule (see `core.hooks.carried`), so it needs no patched model and cannot meet a model
that would leave it out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..hooks.blending import blended, common_length
from ..hooks.blending import can_blend as can_blend_all
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
        """The other conditionings go through the model's own preparation. Raises ValueError for what cannot be blended
        with the first."""
        if self.model_conds is not None:
            return entry
        _compare_rows(len(self.first), len(prepare.noise), prepare.kind)
        # What other nodes have set on the scheduled conditioning since (guidance, size) holds for both.
        own = {name: value for name, value in entry.items() if name not in ("cross_attn", "pooled_output")}
        others = [(self.cond, self.extras), *([] if self.between is None else [self.between])]
        conds = prepare([{**own, **extras, "cross_attn": cond} for cond, extras in others])
        if self.window.fades:
            blended(entry["model_conds"], conds[-1], 0.5, len(prepare.noise))  # refused before the first step
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
        return blended(conds, self.between_conds or {}, weight, call.batch)

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
        if window.fades:
            _check_lengths(cond.shape[1], (other if on_the_way is None else on_the_way[0]).shape[1])
        schedule = Schedule(cond, other, _bare(other_extras), window, clock)
        if on_the_way is not None:
            schedule = replace(schedule, between=(on_the_way[0], _bare(on_the_way[1])))
        found.append(carrying(cond, extras, PAYLOAD, schedule))
    return found


def _bare(extras: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extras.items() if name not in ("hooks", "model_conds")}


def can_blend(first: list, second: list) -> bool:
    """Whether two CONDITIONINGs of as many entries have texts, in all their encoders, that can be blended."""
    return all(
        can_blend_all({**a[1], "cond": a[0]}, {**b[1], "cond": b[0]}) for a, b in zip(first, second, strict=True)
    )


def _check_lengths(a: int, b: int) -> None:
    if common_length(a, b) is None:
        raise ValueError(
            f"conditioning_from has {a} tokens and conditioning_to {b}; they can be blended only where one length is a "
            "small multiple of the other, as with CLIP's 77 and 154. Texts of this encoder must have the same number "
            'of tokens, or set easing to "hold", which switches from one to the other. (Variants of Diverse Prompts: '
            "use its own schedule, or set its added_tokens to 0.)"
        )


def _compare_rows(rows: int, batch: int, kind: str) -> None:
    if rows not in (1, batch):
        logger.warning(
            "The %s conditioning has %d variants and the batch %d images: %s.",
            kind, rows, batch, "only the first variants are used" if batch < rows else "variants are repeated",
        )  # fmt: skip
