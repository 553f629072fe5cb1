"""Variants of a conditioning that another node made: what varying its text changes, added to what that node made.

For encode nodes that take more than a text (images, sizes, a system prompt), in whose place Diverse Prompts cannot
stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..hooks.carried import payloads
from ..require import require
from .tpso import OnStep, Outcome, Recipe, plain_conditioning, vary_prompt

# Mean cosine, less what all tokens have in common, between the text alone and where it is looked for.
LEAST_RESEMBLANCE = 0.2


@dataclass(frozen=True)
class Place:
    """Where a text's tokens are in a conditioning: from `first` on, `tokens` of `total`, and how alike they are."""

    first: int
    tokens: int
    total: int
    resemblance: float

    @property
    def report(self) -> str:
        """One line in plain words."""
        if self.tokens == self.total:
            return f"The conditioning has the text's own {self.total} tokens (resemblance {self.resemblance:.2f})."
        return (
            f"The text is tokens {self.first + 1} to {self.first + self.tokens} of the conditioning's {self.total} "
            f"(resemblance {self.resemblance:.2f}); the others stay as they are."
        )


def vary_conditioning(
    given: list,
    clip: Any,
    text: str,
    count: int,
    seed: int,
    recipe: Recipe,
    which: str = "auto",
    on_step: OnStep | None = None,
) -> tuple[list, list[Outcome], list[Place]]:
    """`given` with `count` rows, row k changed by what variant k of the text changes; what came out in each encoder,
    and where the text was found in each entry. Nothing given is changed.

    Raises ValueError for a conditioning in which the text is not found, for one with rows or payloads of its own, for
    added tokens, and as `vary_prompt` does.
    """
    require(
        recipe.added_tokens == 0, "added_tokens", recipe.added_tokens, "-1 or 0: the conditioning has no such token"
    )
    if not given:
        raise ValueError("conditioning is empty; there is nothing to vary.")
    plain = plain_conditioning(clip, clip.tokenize(text))
    _check(given, plain[0][0])
    varied, outcomes = vary_prompt(clip, text, count, seed, recipe, which, on_step)
    (plain_cond, plain_extras), (varied_cond, varied_extras) = plain[0], varied[0]
    change = varied_cond - plain_cond
    places = [_place(cond, plain_cond, change.abs().amax(dim=(0, 2)) > 0) for cond, _ in given]
    found = []
    for (cond, extras), place in zip(given, places, strict=True):
        rows = cond.repeat(count, 1, 1)
        rows[:, place.first : place.first + place.tokens] += change.to(rows)
        found.append([rows, _changed(extras, plain_extras, varied_extras, count)])
    return found, outcomes, places


def _check(given: list, plain: Tensor) -> None:
    for cond, extras in given:
        if payloads(extras):
            raise ValueError(
                "conditioning carries a schedule, image embeddings or a token to learn already; give it a plain one."
            )
        require(len(cond) == 1, "number of rows of conditioning", len(cond), "1: variants are made here")
        if cond.shape[-1] != plain.shape[-1]:
            raise ValueError(
                f"conditioning is {cond.shape[-1]} wide and what clip makes of the text {plain.shape[-1]}: it was made "
                "by another text encoder. Connect the same CLIP as to the node that made it."
            )
        if cond.shape[1] < plain.shape[1]:
            raise ValueError(
                f"conditioning has {cond.shape[1]} tokens, fewer than the {plain.shape[1]} of the text alone, so the "
                "text is not in it. Give both nodes the same text."
            )


def _place(cond: Tensor, plain: Tensor, moved: Tensor) -> Place:
    """Where the window of a conditioning `[1, L, D]` is that is most like the text alone, `[1, T, D]`, at the positions
    `moved` `[T]` that variants change: in front of the words may be a template that the conditioning has elsewhere."""
    own, whole = plain[0].float(), cond[0].float().to(plain.device)
    common = own.mean(0) if len(own) > 1 else torch.zeros_like(own[0])
    own, whole = F.normalize(own - common, dim=1), F.normalize(whole - common, dim=1)
    cosines = own @ whole.T
    at = moved.to(own) if bool(moved.any()) else torch.ones_like(own[:, 0])
    alike = torch.stack([cosines.diagonal(first) @ at / at.sum() for first in range(len(whole) - len(own) + 1)])
    first = int(alike.argmax())
    if not float(alike[first]) >= LEAST_RESEMBLANCE:
        raise ValueError(
            f"The text is not found in conditioning: nowhere are its {len(own)} tokens much like it (resemblance "
            f"{float(alike[first]):.2f}, at least {LEAST_RESEMBLANCE:g}). Give both nodes the same text and the same "
            "CLIP. A node that rewrites the text, or mixes it with others, gives a conditioning that cannot be varied "
            "here: vary what it is made of."
        )
    return Place(first, len(own), len(whole), float(alike[first]))


def _changed(
    extras: Mapping[str, Any], plain: Mapping[str, Any], varied: Mapping[str, Any], count: int
) -> dict[str, Any]:
    """What goes with the embeddings (pooled vectors, states of other encoders), changed likewise."""
    found = dict(extras)
    for name, before in plain.items():
        after = varied.get(name)
        if not (isinstance(before, Tensor) and isinstance(after, Tensor) and before.is_floating_point()):
            continue
        if len(after) != count or "mask" in name or not isinstance(extras.get(name), Tensor):
            continue
        own = extras[name]
        if own.shape != before.shape:
            raise ValueError(
                f"{name} of conditioning is of shape {list(own.shape)}, that of the text alone {list(before.shape)}, "
                "so the variants' change cannot be added to it. Give both nodes the same text and the same CLIP."
            )
        found[name] = own + (after - before).to(own)
    return found
