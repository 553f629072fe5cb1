"""A text in, complete CLIP vision outputs out: OVI through a CLIP's two towers (see `core.methods.ovi`).

The text tower says where an image embedding should point, in the space that the two towers share; the vision tower is
what tokens are optimised through.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.clip_vision
import comfy.model_management
import torch
from torch import Tensor
from torch.nn import functional as F

from ..hooks.gradients import gradients
from ..hooks.prompt import text_encoders
from ..hooks.text import PromptEncoder, clip_vector, prompt_encoders
from ..hooks.vision import PAIRS, VisionTower
from ..methods.image_bank import ImageBank
from ..methods.ovi import (
    MAHALANOBIS_WEIGHT,
    NEAREST_WEIGHT,
    PUBLISHED_MAHALANOBIS_WEIGHT,
    PUBLISHED_NEAREST_WEIGHT,
    AfterStep,
    Constraint,
    Inversion,
    Settings,
    initial_tokens,
    invert,
    mahalanobis,
    mahalanobis_distance,
    nearest_member,
    nearest_neighbour,
)
from ..require import require

# Name in the node: constraint of a bank, and its weight.
Constraints = dict[str, tuple[Callable[[ImageBank, Tensor], Constraint], float] | None]
# With the weight at which each gives the paper's cosines.
CONSTRAINTS: Constraints = {
    "off": None,
    "nearest neighbour": (nearest_neighbour, NEAREST_WEIGHT),
    "mahalanobis": (mahalanobis, MAHALANOBIS_WEIGHT),
}
# With the paper's weight.
PUBLISHED_CONSTRAINTS: Constraints = {
    "off": None,
    "nearest neighbour": (nearest_member, PUBLISHED_NEAREST_WEIGHT),
    "mahalanobis": (mahalanobis_distance, PUBLISHED_MAHALANOBIS_WEIGHT),
}
PUBLISHED_STEPS, PUBLISHED_RATE = 1000, 0.02


@dataclass(frozen=True)
class Plan:
    """How a text becomes embeddings.

    settings, tokens: of the optimisation.
    weight: of the constraint, as a multiple of the one in `constraints`.
    match_length: whether embeddings are rescaled to the length of real ones.
    constraints: the forms of the constraints.
    """

    settings: Settings
    tokens: int
    weight: float
    match_length: bool
    constraints: Constraints = field(default_factory=lambda: CONSTRAINTS)

    @property
    def is_published(self) -> bool:
        return self.constraints is PUBLISHED_CONSTRAINTS

    def unpublished(self) -> str:
        """In a sentence, what in a published plan is not as published; "" for nothing."""
        settings, other = self.settings, []
        if settings.steps != PUBLISHED_STEPS:
            other.append(f"{settings.steps} steps (it has {PUBLISHED_STEPS})")
        if settings.learning_rate != PUBLISHED_RATE:
            other.append(f"a learning rate of {settings.learning_rate:g} (it has {PUBLISHED_RATE})")
        if self.weight != 1:
            other.append(f"{self.weight:g} times its weight of the constraint")
        return f"Not as published: {', '.join(other)}." if other and self.is_published else ""


def recommended(
    *,
    weight: float = 1.0,
    tokens: int = 16,
    steps: int = 500,
    learning_rate: float = 0.02,
    target_cosine: float = 0.0,
    match_length: bool = True,
) -> Plan:
    """Stops early where nothing is gained any more and keeps the lowest loss. Raises ValueError as `Settings`."""
    return Plan(Settings(steps, learning_rate, target=target_cosine), tokens, weight, match_length)


def published(
    *,
    weight: float = 1.0,
    tokens: int = 6,
    steps: int = PUBLISHED_STEPS,
    learning_rate: float = PUBLISHED_RATE,
    target_cosine: float = 0.0,
    match_length: bool = False,
) -> Plan:
    """As in arXiv 2511.20821: 1 to 6 tokens, a fixed number of steps whose last result counts, its own length, and the
    constraints at the paper's weights.

    Raises ValueError for what that does not have, and as `Settings`.
    """
    where = "in published mode"
    require(1 <= tokens <= 6, "tokens", tokens, f"from 1 to 6 {where}")
    require(target_cosine == 0, "target_cosine", target_cosine, f"0 (off) {where}: its number of steps is fixed")
    require(not match_length, "match_length", "on", f"off {where}")
    settings = Settings(steps, learning_rate, patience=0, keep_last=True)
    return Plan(settings, tokens, weight, match_length, PUBLISHED_CONSTRAINTS)


@dataclass(frozen=True)
class Target:
    """Where embeddings should point: `vectors` `[N, E]`, not normalised, and in words what they are."""

    vectors: Tensor
    source: str


def text_target(clip: Any, text: str, width: int) -> Target:
    """The text's projected pooled vector `[1, E]` in the one of the CLIP's encoders that is `width` wide.

    Of a text of several chunks (more than 75 tokens) the mean of the chunks' unit vectors. That encoder and tower were
    trained together cannot be seen from the files: of two CLIPs of one width each has its own space.

    Raises ValueError when no encoder is of that width, and for one whose projection was never loaded.
    """
    encoder = _matching_encoder(clip, _tokens(clip, text), width)
    vectors = _chunk_vectors(encoder)
    source = f"{encoder.name}, projected pooled vector"
    if len(vectors) == 1:
        return Target(vectors, source)
    mean = F.normalize(vectors, dim=1).mean(0, keepdim=True) * vectors.norm(dim=1).mean()
    return Target(mean, f"{source}, mean of {len(vectors)} chunks")


def conditioning_targets(clip: Any, text: str, prompts: list, width: int) -> Target:
    """The pooled vectors `[N, E]` of a CONDITIONING that was made with the same CLIP, as projected vectors.

    Whether they are projected already is found by encoding the text and comparing. Raises ValueError as `text_target`,
    for a conditioning without pooled vectors or of another width, and where its vectors are not this encoder's.
    """
    tokens = _tokens(clip, text)
    encoder = _matching_encoder(clip, tokens, width)
    pooled = [extras.get("pooled_output") for _, extras in prompts]
    if not pooled or any(vectors is None for vectors in pooled):
        raise ValueError(
            "prompts has no pooled vectors. Connect the positive of Diverse Prompts (TPSO) with the same CLIP, or "
            "leave it empty: then the variants come from different random starts."
        )
    rows = torch.cat([vectors.float().cpu() for vectors in pooled])
    if rows.shape[1] != width:
        raise ValueError(
            f"The pooled vectors of prompts are {rows.shape[1]} wide, the embeddings of clip_vision {width}: they come "
            f"from other encoders. {PAIRS}"
        )
    with torch.no_grad():
        stock = clip.encode_from_tokens(tokens, return_pooled=True)[1].float().cpu()
    own = _chunk_vectors(encoder)[:1].cpu()  # ComfyUI's pooled vector is the first chunk's
    weight = encoder.module.transformer.text_projection.weight.detach().float().cpu()
    source = f"{encoder.name}, {len(rows)} pooled vectors of prompts"
    if stock.shape == own.shape:
        if F.cosine_similarity(stock, own).item() > 0.999:
            return Target(rows, source)
        if F.cosine_similarity(stock @ weight.T, own).item() > 0.999:
            return Target(rows @ weight.T, f"{source}, projected")
    raise ValueError(
        f"The pooled vector of this CLIP's conditioning is not that of {encoder.name}, so those of prompts cannot be "
        "compared with embeddings of clip_vision. Leave prompts empty: then the variants come from different random "
        "starts."
    )


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
    constraint: str = "off",
    strength: float = 1.0,
    bank: ImageBank | None = None,
    after_step: AfterStep | None = None,
    constraints: Constraints = CONSTRAINTS,
) -> Outcome:
    """`count` embeddings that point the way of the target, from `count` random starts.

    tokens: pseudo-tokens of each, 1 to the tower's patch count.
    constraint: one of `constraints`; `strength` is a multiple of the weight that it has there.

    Raises ValueError for an unknown constraint, one without a bank, and a bank of another tower.
    """
    require(constraint in constraints, "constraint", constraint, f"one of {', '.join(constraints)}")
    require(1 <= tokens <= tower.patches, "tokens", tokens, f"1 to {tower.patches}, the patches of this vision tower")
    if constraints[constraint] is not None and bank is None:
        raise ValueError(
            f"constraint is {constraint!r}, which needs a bank of real images: connect one from Image Embedding Bank "
            'or Load Image Bank, or set constraint to "off".'
        )
    if bank is not None:
        tower.check_bank(bank)
    tower.load(count)
    with gradients():
        own_bank = None if bank is None else bank.to(tower.device)
        targets = target.vectors.detach().clone().to(tower.device, torch.float32)
        each = targets.expand(count, -1)
        make, weight = constraints[constraint] or (None, 0.0)
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


def _tokens(clip: Any, text: str) -> dict[str, Any]:
    if clip is None:
        raise ValueError("clip is empty: the checkpoint holds no text encoder. Use one from Load CLIP.")
    return clip.tokenize(text)


def _matching_encoder(clip: Any, tokens: dict[str, Any], width: int) -> PromptEncoder:
    clip.load_model()
    encoders = [encoder for encoder in prompt_encoders(clip, tokens, "all") if encoder.is_clip]
    if not encoders:
        raise ValueError(
            f"clip has no text encoder of the CLIP kind (it has {', '.join(text_encoders(clip))}), and only those "
            f"share a space with images. {PAIRS}"
        )
    fitting = [encoder for encoder in encoders if _projected_width(encoder) == width]
    if not fitting:
        widths = ", ".join(f"{encoder.name}: {_projected_width(encoder)}" for encoder in encoders)
        raise ValueError(
            f"clip and clip_vision are not of one CLIP: the embeddings of clip_vision are {width} wide, the text "
            f"vectors of clip {widths}. {PAIRS}"
        )
    real = [encoder for encoder in fitting if encoder.projected]
    if not real:
        raise ValueError(
            f"The text projection of {fitting[0].name} was never loaded: SD1.5 and SDXL checkpoints hold none for "
            "CLIP-L. Load a stand-alone clip_l file by Load CLIP (type stable_diffusion), and connect that one."
        )
    return real[0]


def _projected_width(encoder: PromptEncoder) -> int:
    return int(encoder.module.transformer.text_projection.weight.shape[0])


def _chunk_vectors(encoder: PromptEncoder) -> Tensor:
    """Projected pooled vectors of the prompt's chunks, `[S, E]`. (word:weights) do not reach them, as in ComfyUI."""
    with gradients(encoder.module), torch.no_grad():
        return torch.cat(
            [
                clip_vector(encoder.module, section.embeds[None, : section.end + 1], True)
                for section in encoder.all_sections
            ]
        )
