"""A text's vector in, complete CLIP vision outputs out: OVI through a vision tower (see `core.methods.ovi`)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import comfy.clip_vision
import comfy.model_management
import torch
from torch import Tensor
from torch.nn import functional as F

from ..hooks.gradients import gradients
from ..hooks.vision import VisionTower
from ..methods.image_bank import ImageBank
from ..methods.ovi import (
    MAHALANOBIS_WEIGHT,
    NEAREST_WEIGHT,
    AfterStep,
    Constraint,
    Inversion,
    Settings,
    initial_tokens,
    invert,
    mahalanobis,
    nearest_neighbour,
)
from .text_target import Target

# Name in the node: constraint of a bank, and the weight at which it gives the paper's cosines.
CONSTRAINTS: dict[str, tuple[Callable[[ImageBank, Tensor], Constraint], float] | None] = {
    "none": None,
    "nearest neighbour": (nearest_neighbour, NEAREST_WEIGHT),
    "mahalanobis": (mahalanobis, MAHALANOBIS_WEIGHT),
}


@dataclass(frozen=True)
class Outcome:
    """Embeddings for a text.

    outputs: one complete CLIP vision output for each variant, batch 1.
    cosines: of their embeddings to the text, `[N]`; nearest: to the nearest member of the bank, or None without one.
    """

    inversion: Inversion
    outputs: list[comfy.clip_vision.Output]
    cosines: Tensor
    nearest: Tensor | None


def invert_text(
    tower: VisionTower,
    target: Target,
    count: int,
    tokens: int,
    seed: int,
    settings: Settings,
    constraint: str = "none",
    strength: float = 1.0,
    bank: ImageBank | None = None,
    after_step: AfterStep | None = None,
) -> Outcome:
    """`count` embeddings that point the way of the target, from `count` random starts.

    tokens: pseudo-tokens of each, 1 to the tower's patch count.
    constraint: one of `CONSTRAINTS`; `strength` is a multiple of the weight that it is calibrated to.

    Raises ValueError for an unknown constraint, one without a bank, and a bank of another tower.
    """
    if constraint not in CONSTRAINTS:
        raise ValueError(f"constraint is {constraint!r}; it must be one of {', '.join(CONSTRAINTS)}.")
    if not 1 <= tokens <= tower.patches:
        raise ValueError(f"tokens is {tokens}; it must be 1 to {tower.patches}, the patches of this vision tower.")
    if CONSTRAINTS[constraint] is not None and bank is None:
        raise ValueError(
            f"constraint is {constraint!r}, which needs a bank of real pictures: connect one from Image Embedding Bank "
            'or Load Image Bank, or set constraint to "none".'
        )
    if bank is not None:
        tower.check_bank(bank)
    tower.load(count)
    with gradients():
        own_bank = None if bank is None else bank.to(tower.device)
        targets = target.vectors.detach().clone().to(tower.device, torch.float32)
        each = targets.expand(count, -1)
        make, weight = CONSTRAINTS[constraint] or (None, 0.0)
        inversion = invert(
            initial_tokens(count, tokens, tower.token_width, seed).to(tower.device),
            targets,
            tower,
            settings,
            None if make is None or own_bank is None else make(own_bank, each),
            weight * strength,
            after_step,
        )
    outputs = []
    for own in inversion.tokens:
        comfy.model_management.throw_exception_if_processing_interrupted()
        outputs.append(tower.output(own))
    embeddings = torch.cat([output.image_embeds for output in outputs]).float().cpu()
    cosines = F.cosine_similarity(embeddings, target.vectors.float().cpu(), dim=1)
    nearest = None if bank is None else bank.nearest(embeddings)[0]
    return Outcome(inversion, outputs, cosines, nearest)


def natural_length(tower: VisionTower, bank: ImageBank | None) -> float:
    """The length that the tower's embeddings have: the bank's mean, or without one that of the all-zero input's."""
    return tower.negative.image_embeds.float().norm().item() if bank is None else bank.length


def rescaled(output: comfy.clip_vision.Output, length: float) -> comfy.clip_vision.Output:
    """The same output with embeddings of this length; the given one is left as it is."""
    own = copy.copy(output)
    own["image_embeds"] = F.normalize(output.image_embeds.float(), dim=1).to(output.image_embeds) * length
    return own


def text_as_output(tower: VisionTower, target: Target, length: float) -> comfy.clip_vision.Output:
    """The first of the target's vectors, rescaled to `length`, as a CLIP vision output.

    A text has no patches: the hidden states are those of the all-zero input.
    """
    output = copy.copy(tower.negative)
    output["image_embeds"] = target.vectors[:1].to(tower.negative.image_embeds)
    return rescaled(output, length)
