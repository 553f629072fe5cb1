"""A token in a prompt whose embedding can be anything, for every text encoder of ComfyUI."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import files
from ..require import require
from .gradients import gradients
from .prompt import cut_rows, device_of, encode_rows, stack_rows
from .text import PromptEncoder, prompt_encoders

# By text encoder: [N, P, D] for N images and the P tokens that the word has in that encoder.
Embeddings = dict[str, Tensor]
POSITIONS = ("end", "start")
STARTS = ("auto", "word", "default", "gaussian", "white", "random word")
_PLACEHOLDER = "the"  # one token in every encoder; its own embedding is not used


@dataclass(frozen=True)
class _Part:
    """The token in one encoder: which entries `(section, entry)` of its tokenized prompt, and the word's embeddings."""

    encoder: PromptEncoder
    key: str
    places: tuple[tuple[int, int], ...]
    own: slice  # the same among the prompt's own positions, counted through all sections
    start: Tensor  # [P, D]

    @cached_property
    def sections(self) -> frozenset[int]:
        return frozenset(section for section, _ in self.places)


class LearnableToken:
    """A prompt with a word more, whose token embeddings can be replaced, one set for each image.

    word: where it starts; several words, or an `embedding:name`, are several tokens. "": nowhere in particular.
    begin, scale: see `start`; what is not "auto" or "word" is one token, whatever the word.
    position: "end" or "start" of the prompt.
    which: the text encoders that get the token, as in `prompt_encoders`; the others read the plain prompt.

    The CLIP must be loaded, and is not loaded again: that would push the diffusion model out in the middle of a run.
    Raises ValueError for an unknown position, beginning or choice of encoders, and for a word without tokens.
    """

    def __init__(
        self,
        clip: Any,
        text: str,
        word: str = "",
        position: str = "end",
        which: str = "auto",
        begin: str = "auto",
        scale: float = 1.0,
    ) -> None:
        if position not in POSITIONS:
            raise ValueError(f"position is {position!r}; it must be one of {', '.join(POSITIONS)}.")
        require(begin in STARTS, "start", begin, f"one of {', '.join(STARTS)}")
        scaled = begin in ("gaussian", "white")
        require(scale >= 0 and (scaled or scale == 1), "start_scale", scale, "0 or more; 1 but for gaussian and white")
        require(begin != "word" or bool(word.strip()), "initial_word", word, 'a word with start "word"')
        self._begin, self._scale = begin, scale
        self._clip = clip.clone()
        self._clip.load_model = lambda *_, **__: clip.patcher
        self._random = not word.strip() or begin not in ("auto", "word")
        added = _PLACEHOLDER if self._random else word.strip()
        # A blank at the end is a token of its own for some encoders.
        bare = text.strip()
        tokens = clip.tokenize((f"{bare} {added}" if position == "end" else f"{added} {bare}").strip())
        shorter = clip.tokenize(bare)
        with gradients(), torch.no_grad():
            encoders = prompt_encoders(self._clip, tokens, which)
            # Some tokenizers cut long prompts: an encoder that would not read the token goes without.
            more = {one.name: _more(one, shorter) for one in encoders}
            with_room = [one for one in encoders if more[one.name] or not _tokens_of(one, clip, added)]
            if not with_room:
                raise ValueError(f"{encoders[0].no_room} Shorten the prompt.")
            self._parts = {one.name: _part(one, tokens, more[one.name], position, added) for one in with_room}
        self._tokens = {**clip.tokenize(text), **{part.key: tokens[part.key] for part in self._parts.values()}}
        self._unchanged: dict[tuple[str, int], Any] = {}

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the text encoders that have the token."""
        return tuple(self._parts)

    @property
    def deviations(self) -> dict[str, float]:
        """Standard deviation of each encoder's token embeddings in this prompt; how far a token moves is told in it."""
        return {name: part.encoder.deviation for name, part in self._parts.items()}

    @property
    def counts(self) -> dict[str, int]:
        """How many tokens are learned in each encoder."""
        return {name: len(part.start) for name, part in self._parts.items()}

    @property
    def only_clip(self) -> bool:
        """Whether all encoders that have the token are of the CLIP kind."""
        return all(part.encoder.is_clip for part in self._parts.values())

    def start(self, count: int, seed: int) -> Embeddings:
        """Where the tokens of `count` images start, by what the token begins with:

        "auto": the word, or without one normal of the encoder's own deviation;
        "word": the word;
        "default": standard normal, as PyTorch fills new rows of an embedding table;
        "gaussian", "white": normal about the mean of the encoder's whole table, with the table's mean of x x^T as
            covariance (not centred, as the released code has it), or its variances alone; deviations times `scale`;
        "random word": any row of the table, each alike.

        An image's start does not depend on how many there are.
        """
        if not self._random:
            return {name: part.start.expand(count, -1, -1).clone() for name, part in self._parts.items()}
        generator = torch.Generator().manual_seed(seed)
        if self._begin not in ("auto", "word"):
            draw = {name: self._draw(part.encoder) for name, part in self._parts.items()}
            drawn = [{name: one(generator) for name, one in draw.items()} for _ in range(count)]
            return {
                name: torch.stack([row[name] for row in drawn])[:, None].to(part.start)
                for name, part in self._parts.items()
            }
        rows: list[dict[str, Tensor]] = []
        for _ in range(count):
            rows.append(
                {name: torch.randn(part.start.shape, generator=generator) for name, part in self._parts.items()}
            )
        return {
            name: torch.stack([row[name] for row in rows]).to(part.start) * part.encoder.deviation
            for name, part in self._parts.items()
        }

    def _draw(self, encoder: PromptEncoder) -> Callable[[torch.Generator], Tensor]:
        """What gives a random token embedding `[D]` of an encoder."""
        if self._begin == "default":
            return lambda generator: torch.randn(encoder.width, generator=generator)
        table = _table(encoder.module)
        if self._begin == "random word":
            return lambda generator: table[int(torch.randint(len(table), (1,), generator=generator))]
        mean = table.double().mean(0)
        if self._begin == "white":
            deviation = self._scale * (table.double().square().mean(0) - mean.square()).clamp(min=0).sqrt()
            return lambda generator: mean + deviation * torch.randn(len(mean), generator=generator)
        root = torch.linalg.cholesky((table.T @ table).double() / len(table))
        return lambda generator: mean + self._scale * root @ torch.randn(len(mean), generator=generator).double()

    def plain_vectors(self, embeddings: Embeddings) -> dict[str, Tensor]:
        """Unit prompt vectors `[N, E]` of each encoder that has the token, without a gradient: see `PromptEncoder`."""
        found = {}
        for name, part in self._parts.items():
            moved = embeddings[name].detach() - part.start
            offsets = moved.new_zeros(len(moved), part.encoder.positions, moved.shape[-1])
            offsets[:, part.own] = moved
            found[name] = F.normalize(part.encoder.vectors(offsets), dim=1)
        return found

    def prompt_encoder(self, name: str) -> PromptEncoder:
        """The encoder of this name, with the longer prompt."""
        return self._parts[name].encoder

    def encode(self, embeddings: Embeddings) -> dict[str, Any]:
        """What CLIP Text Encode gives for the prompt with these tokens, row k for image k: `cond` `[N, T, E]`,
        `pooled_output` and whatever else the encoder returns. Differentiable; call it inside `gradients(CLIP)`.

        Only the sections that hold the token are encoded again; the others, once. See `encode_rows`.
        """
        changed: dict[tuple[str, int], Any] = {}

        def encode(name: str, module: Any, sections: Sequence[list[Any]], row: int) -> Any:
            found = []
            for k, section in enumerate(sections):
                if name not in self._parts or k not in self._parts[name].sections:
                    found.append(self._section(module, name, k, section))
                    continue
                if (name, k) not in changed:
                    filled = self._filled(name, k, section, embeddings[name])
                    changed[name, k] = type(module).encode(module, filled)
                found.append(cut_rows(changed[name, k], slice(row, row + 1)))
            return stack_rows(found)

        return encode_rows(self._clip, self._tokens, len(next(iter(embeddings.values()))), encode)

    def _section(self, module: Any, name: str, index: int, section: list[Any]) -> Any:
        """A chunk without the token: the same for all images and all steps."""
        if (name, index) not in self._unchanged:
            with torch.no_grad():
                self._unchanged[name, index] = type(module).encode(module, [section])
        return self._unchanged[name, index]

    def _filled(self, name: str, index: int, section: list[Any], embeddings: Tensor) -> list[list[Any]]:
        """One chunk for each image, with the image's embeddings in place of the word's tokens."""
        rows = []
        for own in embeddings:
            row = list(section)
            for vector, (chunk, entry) in zip(own, self._parts[name].places, strict=True):
                if chunk == index:
                    row[entry] = vector
            rows.append(row)
        return rows


def _table(module: Any) -> Tensor:
    """All token embeddings `[V, D]` of a text encoder, float32 on the CPU."""
    layer = module.transformer.get_input_embeddings()
    with torch.inference_mode(False), torch.no_grad():
        rows = torch.arange(len(layer.weight), device=device_of(module))
        return torch.cat([layer(some, out_dtype=torch.float32).cpu() for some in rows.split(4096)])


def _more(encoder: PromptEncoder, shorter: dict[str, Any]) -> int:
    """How many tokens the encoder's prompt has more than a shorter one."""
    return encoder.words_read - sum(section.positions for section in encoder.read(shorter))


def _tokens_of(encoder: PromptEncoder, clip: Any, word: str) -> int:
    """How many tokens a word has in an encoder, alone."""
    return sum(section.positions for section in encoder.read(clip.tokenize(word)))


def _part(encoder: PromptEncoder, tokens: dict[str, Any], count: int, position: str, word: str) -> _Part:
    """count: how many tokens the prompt has more than without the word, which may be another number in each encoder."""
    own = [(k, at) for k, section in enumerate(encoder.all_sections) for at in range(section.first, section.last)]
    if count <= 0:
        raise ValueError(f"initial_word is {word!r}, which has no token in {encoder.name}. Choose another word.")
    chosen = slice(len(own) - count, len(own)) if position == "end" else slice(0, count)
    chunks = tokens[encoder.key]
    places = tuple((k, _entry(chunks[k], at, encoder.width)) for k, at in own[chosen])
    start = torch.stack([encoder.all_sections[k].embeds[at] for k, at in own[chosen]])
    return _Part(encoder, encoder.key, places, chosen, start)


def _entry(chunk: list[Any], position: int, width: int) -> int:
    """Which entry of a tokenized chunk is at this position; ComfyUI leaves embeddings of another width out."""
    kept = [
        k
        for k, (token, *_) in enumerate(chunk)
        if isinstance(token, numbers.Integral) or not isinstance(token, Tensor) or token.shape[-1] == width
    ]
    return kept[position]


def check_embedding_names(clip: Any, encoders: Sequence[str]) -> dict[str, str]:
    """The key under which ComfyUI looks an `embedding:name` up in a file, by encoder.

    Raises ValueError for an encoder that reads none.
    """
    keys = {}
    for name in encoders:
        tokenizer = getattr(clip.tokenizer, name, None)
        if tokenizer is None or getattr(tokenizer, "embedding_directory", None) is None:
            raise ValueError(
                f"save_as is set, but ComfyUI reads no embeddings (embedding:name) for the text encoder {name}, so a "
                "saved token could not be used. Leave save_as empty."
            )
        keys[name] = getattr(tokenizer, "embedding_key", name)
    return keys


def save_embedding(path: Path, embeddings: dict[str, Tensor], keys: dict[str, str]) -> None:
    """Writes one image's tokens `{encoder: [P, D]}` as a textual inversion, which `embedding:name` loads anywhere."""
    files.store(path, {keys[name]: rows.float() for name, rows in embeddings.items()})
