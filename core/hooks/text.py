"""From offsets on a prompt's token embeddings to prompt vectors or conditioning, for every text encoder of ComfyUI."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import comfy.ops
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
import comfy.text_encoders.sd3_clip
import torch
from comfy.clip_model import CLIPTextModel
from comfy.sd1_clip import SDClipModel
from torch import Tensor
from torch.nn import functional as F

from .chunks import InChunks
from .gradients import casts_weights, checkpointed, gradients, largest_layer
from .packed import LONGEST, can_be_packed, rows_at_once
from .prompt import (
    NO_ENCODER,
    Section,
    Template,
    Tokens,
    cut_rows,
    encode_blank,
    encode_rows,
    hidden_states_are_read,
    only_last_varied,
    patched,
    read_sections,
    read_templates,
    text_encoders,
)
from .prompt_vector import clip_vector, mean_output

KINDS = ("auto", "clip", "all")
# The vectors of encoders that are not CLIP: those that read both ways, and language models.
MEAN = "mean of the output, common mean removed"
BEHIND = "output behind the words, common mean removed"

# How far the output of rows that are read as one sequence may be from their own, as a share of how far two rows are.
_SAME = 0.1

# Short prompts that have nothing to do with one another: what "unrelated" means in a space of prompt vectors.
UNRELATED = (
    "a red house",
    "a small fish swimming",
    "portrait of an old man",
    "a bowl of soup on a table",
    "a city street at night",
    "an abstract pattern of lines",
    "a dog running on the beach",
    "snow on high mountains",
    "a blue balloon",
    "two people playing chess",
    "a steam train",
    "a tree in a field",
)


class PromptEncoder(InChunks):
    """One text encoder with one prompt: offsets on the prompt's token embeddings to prompt vectors `[N, E]`.

    CLIP's vector is the pooled output of the final layer norm, projected where the projection is trained (see
    `projection_is_real`). Other encoders have none and use a surrogate: the mean of the output over the prompt's
    positions (T5), or over what follows them (Qwen, Gemma, Llama ...: see `Section.summary`), minus the same mean over
    unrelated prompts, since all of these outputs have nearly the same direction. For a prompt of several chunks the
    unit vectors of its chunks are concatenated.

    plain: a tokenized prompt of which `tokens` is a continuation; then only what was added is varied.
    layer: of CLIP, the layer whose output goes through the final layer norm and is pooled; None is the last one.
    """

    layer: int | None = None
    reads_together = True  # what rows share is read once for all of them, where that is the same

    def __init__(self, clip: Any, name: str, key: str, tokens: Tokens, plain: Tokens | None = None) -> None:
        self.name, self.module, self.patcher = name, text_encoders(clip)[name], clip.patcher
        self._clip, self.key, self.is_continued = clip, key, plain is not None
        self._tried: dict[Section, int] = {}
        self.all_sections = self.read(tokens)
        if plain is not None:
            shorter = self.read(plain)
            self.all_sections = only_last_varied(self.all_sections, sum(section.positions for section in shorter))
        if self.is_clip and not any(section.positions for section in self.all_sections):
            # A blank prompt: its end is the one token that can change the pooled vector besides BOS.
            self.all_sections = [replace(s, first=s.end, last=s.end + 1) for s in self.all_sections]
        self.sections = [section for section in self.all_sections if section.positions > 0]

    def vary_first(self, count: int | None = None) -> None:
        """Of the first chunk only, vary the first `count` positions behind BOS, or all of its words. For CLIP alone.

        They may go on behind the words, through EOS and padding, which every text of CLIP has to its full length.
        """
        own, *others = self.all_sections
        if count is not None:
            own = replace(own, last=min(own.first + count, len(own.embeds) - 1))
        self.all_sections = [own, *(replace(other, last=other.first) for other in others)]
        self.sections = [own]

    def read(self, tokens: Tokens) -> list[Section]:
        """The sections of a tokenized prompt in this encoder."""
        return read_sections(self.module, tokens[self.key], self._templates)

    @cached_property
    def _templates(self) -> list[Template]:
        return read_templates(self._clip, self.name, self.key)

    @property
    def is_clip(self) -> bool:
        return isinstance(self.module.transformer, CLIPTextModel)

    @property
    def positions(self) -> int:
        return sum(section.positions for section in self.sections)

    @property
    def words_read(self) -> int:
        """How many positions are the prompt's own, varied or not."""
        return sum(section.last - section.first for section in self.all_sections)

    @property
    def no_room(self) -> str:
        """What to say where the tokenizer cut off all that was added to the prompt."""
        return (
            f"The prompt is too long for one word more: ComfyUI cuts it for the text encoder {self.name}, which reads "
            f"its first {self.words_read} tokens."
        )

    @property
    def width(self) -> int:
        return self.sections[0].embeds.shape[1]

    @property
    def deviation(self) -> float:
        """Standard deviation of the prompt's token embeddings, the unit in which offsets are measured."""
        own = [section.embeds[section.first : section.last] for section in self.sections]
        return torch.cat(own).std().item()

    @property
    def device(self) -> torch.device:
        return self.sections[0].embeds.device

    @cached_property
    def vector_name(self) -> str:
        if not self.is_clip:
            return MEAN if self.sections[0].behind is None else BEHIND
        return "projected pooled" if self.projected else "unprojected pooled"

    @cached_property
    def projected(self) -> bool:
        return self.is_clip and projection_is_real(self.module)

    def embedding(self, word: str) -> Tensor:
        """Token embedding `[D]` of a word, of its first token where it has several."""
        section = self.read(self._clip.tokenize(word))[0]
        return section.embeds[section.first]

    def words(self) -> Tensor:
        """Token embeddings `[W, D]` of the words of `UNRELATED`."""
        sections = [section for text in UNRELATED for section in self.read(self._clip.tokenize(text))]
        return torch.cat([section.embeds[section.first : section.last] for section in sections])

    def reference(self) -> Tensor:
        """The prompt's own vector `[E]`."""
        with gradients():
            return self._plain(torch.zeros(1, self.positions, self.width, device=self.device))[0]

    def _vectors(self, offsets: Tensor) -> Tensor:
        again = self._casts_weights and torch.is_grad_enabled()
        with checkpointed(self.module) if again else contextlib.nullcontext():
            return self._of_sections(offsets)

    @cached_property
    def _casts_weights(self) -> bool:
        """Whether a graph through the encoder would keep all of its weights once more, in the type of what goes through
        them."""
        return casts_weights(self.module, torch.float32, self.device)

    def _of_sections(self, offsets: Tensor) -> Tensor:
        found, at = [], 0
        for section in self.sections:
            shared = self._shared(section)
            own = offsets[:, at : at + section.positions]
            at += section.positions
            rows = rows_at_once(shared, self._length(section)) if shared else len(own)
            parts = [self._section_vector(_moved(section, some), section, shared) for some in own.split(rows)]
            found.append(torch.cat(parts) if len(parts) > 1 else parts[0])
        if len(found) == 1:
            return found[0]
        return torch.cat([F.normalize(vector, dim=1) for vector in found], dim=1)

    def _section_vector(self, embeds: Tensor, section: Section, shared: int) -> Tensor:
        """shared: so many positions in front are the same in all rows, and read once; 0 reads each row by itself."""
        if self.is_clip:
            return clip_vector(self.module, embeds[:, : section.end + 1], self.projected, self.layer, shared)
        raw = mean_output(self.module, embeds, section, *section.summary, shared)
        return raw - self._common_mean.to(raw)

    def _length(self, section: Section) -> int:
        """How many positions of a section are read where rows are read as one sequence."""
        return section.end + 1 if self.is_clip else section.summary[1]

    def _shared(self, section: Section) -> int:
        """How many positions of a section in front are read once for all rows; 0 where each row reads them: where that
        is as good, and where it is not the same, which is found by trying, since an encoder may be of any kind."""
        if not self.reads_together:
            return 0
        # By section: a copy of this encoder may have others.
        if section not in self._tried:
            self._tried[section] = section.start if self._reads_the_same(section) else 0
        return self._tried[section]

    def _reads_the_same(self, section: Section) -> bool:
        length = self._length(section)
        if not can_be_packed(self.module) or section.start < length - section.start:
            return False
        if rows_at_once(section.start, length) < 2:
            return False
        generator = torch.Generator().manual_seed(0)
        offsets = torch.randn(2, section.positions, self.width, generator=generator) * self.deviation
        rows = _moved(section, offsets.to(section.embeds))
        with torch.no_grad():
            apart, once = (self._section_vector(rows, section, shared) for shared in (0, section.start))
        return bool((once - apart).norm() <= _SAME * (apart[0] - apart[1]).norm())

    @cached_property
    def _common_mean(self) -> Tensor:
        return torch.stack(self._unrelated_raw).mean(0)

    @cached_property
    def _unrelated_raw(self) -> list[Tensor]:
        """Vectors of the unrelated prompts, before any mean is removed; those of one length in one call."""
        alike: dict[tuple[Any, ...], list[Section]] = {}
        for text in UNRELATED:
            section = self.read(self._clip.tokenize(text))[0]
            if section.positions > 0:
                key = (*section.mask.flatten().tolist(), section.end, *section.summary)
                alike.setdefault(key, []).append(section)
        found: list[Tensor] = []
        with gradients(self.module), torch.no_grad():
            for sections in alike.values():
                embeds = torch.stack([section.embeds for section in sections])
                if self.is_clip:
                    found += clip_vector(self.module, embeds[:, : sections[0].end + 1], self.projected, self.layer)
                else:
                    found += mean_output(self.module, embeds, sections[0], *sections[0].summary)
        return found

    def unrelated_cosine(self) -> float:
        """Mean cosine between unrelated prompts in this encoder's space of prompt vectors."""
        vectors = torch.stack(self._unrelated_raw)
        if not self.is_clip:
            vectors = vectors - vectors.mean(0)
        unit = F.normalize(vectors, dim=1)
        count = len(unit)
        return ((unit.sum(0).square().sum() - count) / (count * (count - 1))).item()

    def memory(self, count: int) -> int:
        """Bytes that a gradient of `count` rows at once takes, about: of what autograd keeps 34 activations of the
        width in each layer, float32, and the attention; of layers that are computed again what goes into each, and of
        one layer all of it and its weights, as they are kept and as they are cast."""
        found, layers = 0, getattr(self.module, "num_layers", 12)
        for section in self.sections:
            shared, span = self._shared(section), section.end + 1 if self.is_clip else len(section.embeds)
            positions = count * span
            if shared:
                length, span = self._length(section), LONGEST
                sequences = math.ceil(count / rows_at_once(shared, length))
                positions = sequences * shared + count * (length - shared)
            of_layer = 34 * self.width + 16 * span
            found += 4 * positions * (layers * self.width + of_layer if self._casts_weights else layers * of_layer)
        return found + (8 * largest_layer(self.module) if self._casts_weights else 0)


def _moved(section: Section, offsets: Tensor) -> Tensor:
    """Token embeddings `[N, T, D]` of a section with offsets `[N, P, D]` on the positions that are varied."""
    embeds = section.embeds.to(offsets).expand(len(offsets), -1, -1)
    moved = embeds[:, section.start : section.last] + offsets
    return torch.cat([embeds[:, : section.start], moved, embeds[:, section.last :]], dim=1)


def normed_layer(module: SDClipModel) -> int | None:
    """The layer of a CLIP text tower that the model reads through the final layer norm: -2 for SD2.1; None is the last
    one. Models that read a layer without the norm (SDXL, SD3) have their pooled vector from the last one."""
    kind, layer, _ = module.options_default
    return layer if kind == "hidden" and module.layer_norm_hidden_state else None


def clip_kind(clip: Any) -> str | None:
    """Whose text encoder a CLIP is: "sd15", "sd21", "sdxl" or "sd3"; None for any other."""
    if isinstance(clip.cond_stage_model, comfy.text_encoders.sd3_clip.SD3ClipModel):
        return "sd3"
    if isinstance(clip.cond_stage_model, comfy.sdxl_clip.SDXLClipModel):
        return "sdxl"
    kinds = {comfy.sd1_clip.SD1CheckpointClipModel: "sd15", comfy.text_encoders.sd2_clip.SD2ClipHModel: "sd21"}
    modules = list(text_encoders(clip).values())
    return next((name for kind, name in kinds.items() if len(modules) == 1 and isinstance(modules[0], kind)), None)


def has_clip(clip: Any) -> bool:
    """Whether one of the text encoders is of the CLIP kind."""
    return any(isinstance(module.transformer, CLIPTextModel) for module in text_encoders(clip).values())


def words_of(text: str) -> list[str]:
    """What stands between blanks in a prompt, its weights left out as ComfyUI leaves them out."""
    parts = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
    return comfy.sd1_clip.unescape_important("".join(part for part, _ in parts)).split()


def projection_is_real(module: SDClipModel) -> bool:
    """Whether a CLIP text tower's projection was ever loaded.

    ComfyUI never loads it for SD1.5 checkpoints, nor is it in SDXL checkpoints for CLIP-L: the matrix is then memory as
    it was found, mostly zeros.
    """
    return is_trained(getattr(getattr(module.transformer, "text_projection", None), "weight", None))


def is_trained(weight: Tensor | None) -> bool:
    """Whether a projection matrix is one that was trained: every row and column is alive and of about one size."""
    if weight is None:
        return False
    matrix = weight.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(matrix).all()):
        return False
    for lengths in (matrix.norm(dim=0), matrix.norm(dim=1)):
        middle = lengths.median()
        if not bool(middle > 0) or bool((lengths < middle / 100).any()) or bool((lengths > middle * 100).any()):
            return False
    # The identity, which stands in for a projection in some files, changes nothing and would be "real" in vain.
    return bool((matrix != 0).float().mean() > 0.5)


class NoRoom(ValueError):
    """A prompt is so long that nothing behind it is read."""


def prompt_encoders(clip: Any, tokens: Tokens, which: str = "auto", plain: Tokens | None = None) -> list[PromptEncoder]:
    """The encoders of `clip` that can vary this prompt, or what it has more than `plain`; loads the model.

    which: "clip", those with a contrastive vector; "all"; "auto", those with a contrastive vector, or all where the
        model reads the hidden states of none of these (FLUX: of CLIP only the pooled vector).

    Raises ValueError for an unknown choice, and when nothing is left to vary: NoRoom where `plain` fills all encoders.
    """
    if which not in KINDS:
        raise ValueError(f"encoders is {which!r}; it must be one of {', '.join(KINDS)}.")
    if not text_encoders(clip):
        raise ValueError(NO_ENCODER)
    keys, outputs = encode_blank(clip)
    encoders = [PromptEncoder(clip, name, key, tokens, plain) for name, key in keys.items()]
    clips = [encoder for encoder in encoders if encoder.is_clip]
    mixed = len(clips) < len(encoders)
    everything = which == "all" or (
        which == "auto" and mixed and not hidden_states_are_read(clip, [encoder.name for encoder in clips], outputs)
    )
    chosen = encoders if everything else clips
    full = [encoder for encoder in chosen if plain is not None and not encoder.sections and encoder.words_read]
    chosen = [encoder for encoder in chosen if encoder.sections]
    if full and not chosen:
        raise NoRoom(f"{full[0].no_room} Shorten the prompt, or set added_tokens to 0: that varies what is read.")
    if not chosen:
        names = ", ".join(text_encoders(clip))
        raise ValueError(
            f"encoders is {which!r}, but none of this CLIP's text encoders ({names}) has words "
            "of this prompt to vary. Write a prompt, or choose other encoders."
        )
    return chosen


def encode_variants(
    clip: Any, tokens: Tokens, offsets: dict[str, Tensor], encoders: Sequence[PromptEncoder], chunk: int = 0
) -> list:
    """CONDITIONING whose row k is the prompt with `offsets[name][k]` `[N, P, D]` on its tokens.

    Every encoder runs once for `chunk` variants (0: all), or once in all if it has no offsets; see `encode_rows`.
    """
    count = len(next(iter(offsets.values())))
    size = chunk or count
    by_name = {encoder.name: encoder for encoder in encoders}
    latest: dict[str, tuple[int, Any]] = {}

    def encode(name: str, module: SDClipModel, sections: Sequence[list[Any]], row: int) -> Any:
        part = row // size if name in offsets else 0
        if latest.get(name, (-1,))[0] != part:
            if name in offsets:
                own = offsets[name][part * size : (part + 1) * size]
                latest[name] = part, _encode_moved(module, sections, by_name[name], own)
            else:
                latest[name] = part, type(module).encode(module, sections)
        first = row % size * len(sections) if name in offsets else 0
        return cut_rows(latest[name][1], slice(first, first + len(sections)))

    found = encode_rows(clip, tokens, count, encode)
    return [[found.pop("cond"), found]]


def _encode_moved(module: SDClipModel, sections: Sequence[list[Any]], encoder: PromptEncoder, offsets: Tensor) -> Any:
    """Output of an encoder for `[N * S]` sections: those of a prompt with offsets `[N, P, D]` on its tokens."""
    count = len(offsets)

    def process(rows: Any, device: Any) -> Any:
        embeds, masks, numbers, *rest = type(module).process_tokens(module, rows, device)
        moved = embeds.expand(count, *embeds.shape) + _placed(offsets, encoder, embeds)
        return (moved.flatten(0, 1), masks.repeat(count, 1), list(numbers) * count, *rest)

    with patched(module, process_tokens=process):
        return type(module).encode(module, sections)


def _placed(offsets: Tensor, encoder: PromptEncoder, embeds: Tensor) -> Tensor:
    """Offsets `[N, P, D]` where they belong in `[N, S, T, D]`; zero elsewhere."""
    placed = torch.zeros(len(offsets), *embeds.shape, dtype=embeds.dtype, device=embeds.device)
    at = 0
    for k, section in enumerate(encoder.all_sections):
        placed[:, k, section.start : section.last] = offsets[:, at : at + section.positions].to(embeds)
        at += section.positions
    return placed
