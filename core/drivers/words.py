"""A prompt with one of its words left out or exchanged: what its variants must not turn into."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..hooks.gradients import gradients
from ..hooks.progress import Progress
from ..hooks.text import PromptEncoder

# Of the vocabulary, to exchange a word for: among the nearest are its opposite and its kind (right: left; red: orange).
NEIGHBOURS = 6
_AT_ONCE = 64  # prompts
_PART = 2**24  # values of the vocabulary, 64 MiB as float32


def changed_prompts(encoder: PromptEncoder, neutral: Tensor) -> Tensor:
    """Prompt vectors `[M, E]` of the encoder's prompt with one of its own tokens changed, for each in turn: `neutral`
    `[D]`, the embedding of a word that says nothing, in its place, and each of the nearest tokens of the vocabulary.

    What is added behind a prompt is not changed. M is 0 for a prompt without words.
    """
    whole = copy.copy(encoder)
    whole.sections = [replace(section, fixed=0) for section in encoder.sections]
    own = torch.cat([s.embeds[s.first : s.last] for s in whole.sections])
    at = _positions_of_words(encoder)
    if not at:
        return torch.zeros(0, len(encoder.reference()), device=encoder.device)
    with gradients():  # out of inference mode
        near = _nearest(encoder.module, own[at])
        rows = [(p, other) for p, others in zip(at, near, strict=True) for other in (neutral.to(own), *others)]
        found, progress = [], Progress(math.ceil(len(rows) / _AT_ONCE))
        for some in range(0, len(rows), _AT_ONCE):
            found.append(whole.vectors(_offsets(rows[some : some + _AT_ONCE], own)))
            progress.step(f"{encoder.name}: the prompt with another word, {some + len(found[-1])} of {len(rows)}")
    return torch.cat(found)


def _positions_of_words(encoder: PromptEncoder) -> list[int]:
    """Among all positions of the sections, those of the prompt's own words."""
    found, before = [], 0
    for section in encoder.sections:
        end = section.last - section.first
        words = section.fixed if encoder.is_continued else end
        if encoder.is_clip and section.first == section.end:  # the end of a blank prompt is no word
            words = 0
        found += range(before, before + words)
        before += end
    return found


def _offsets(changes: list[tuple[int, Tensor]], own: Tensor) -> Tensor:
    offsets = own.new_zeros(len(changes), *own.shape)
    for row, (position, other) in enumerate(changes):
        offsets[row, position] = other - own[position]
    return offsets


def _nearest(module: Any, embeds: Tensor) -> Tensor:
    """The nearest other tokens of the vocabulary, by cosine: embeddings `[P, NEIGHBOURS, D]` for `[P, D]`."""
    table = module.transformer.get_input_embeddings().weight.detach()
    unit = F.normalize(embeds.float(), dim=1)
    cosines = torch.cat([unit @ F.normalize(part.to(unit), dim=1).T for part in _in_parts(table)], dim=1)
    cosines[cosines > 0.999] = -1  # the token itself
    nearest = cosines.topk(min(NEIGHBOURS, len(table)), dim=1).indices
    return table[nearest.to(table.device)].to(embeds)


def _in_parts(table: Tensor) -> Iterator[Tensor]:
    """A vocabulary may have 250,000 rows, in any type of number: never all of them as float32 at once."""
    return iter(table.split(max(1, _PART // table.shape[1])))
