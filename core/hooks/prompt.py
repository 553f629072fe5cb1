"""A tokenized prompt as ComfyUI's text encoders read it: its sections, and encodings of it with other embeddings."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management
import torch
from comfy.sd1_clip import SDClipModel
from torch import Tensor

Tokens = dict[str, Any]
NO_ENCODER = (
    "clip has no text encoder that can be varied: this model reads the prompt's tokens itself (HiDream-O1), or its "
    "encoder is not of ComfyUI's usual kind (Lens)."
)

# Name of an encoder, the encoder, its tokenized sections, the row: what `SDClipModel.encode` returns for that row.
EncodeRow = Callable[[str, SDClipModel, Sequence[list[Any]], int], tuple[Any, ...]]


@dataclass(frozen=True, eq=False)
class Section:
    """One chunk of a prompt in one encoder: `embeds` `[T, D]`, the prompt's own positions, and the end (CLIP: EOS).

    Of its own positions the first `fixed` stay as they are, and the others are varied. behind: of a language model,
    where what its template writes behind the words ends, exclusive; None in encoders that have an end token.
    """

    embeds: Tensor
    mask: Tensor
    first: int
    last: int  # exclusive
    end: int
    fixed: int = 0
    behind: int | None = None

    @property
    def start(self) -> int:
        """The first position that is varied."""
        return self.first + self.fixed

    @property
    def positions(self) -> int:
        """How many are varied."""
        return self.last - self.start

    @property
    def summary(self) -> tuple[int, int]:
        """The positions, the last one exclusive, whose output has read all words: of an encoder that reads both ways
        the words; of a language model, which reads from left to right, what follows them, else the last of them."""
        if self.behind is None:
            return self.first, self.last
        return (self.last, self.behind) if self.behind > self.last else (self.last - 1, self.last)


def text_encoders(clip: Any) -> dict[str, SDClipModel]:
    """The text encoders inside a CLIP, by name."""
    modules = clip.cond_stage_model.named_modules()
    return {name: module for name, module in modules if isinstance(module, SDClipModel)}


def device_of(module: SDClipModel) -> torch.device:
    """Where an encoder computes, once it is loaded: newer versions of ComfyUI keep its weights elsewhere, and bring
    each one when it is used."""
    chosen = getattr(module, "execution_device", None)
    return module.transformer.get_input_embeddings().weight.device if chosen is None else chosen


@dataclass(frozen=True)
class Template:
    """What a tokenizer writes around a prompt: the tokens in front of its words and behind them, without padding.

    marks: of these tokens those, with their names, that set the parts of a chat apart and are no words.
    """

    head: tuple[Any, ...]
    tail: tuple[Any, ...]
    marks: Mapping[Any, str] = field(default_factory=dict)

    def words(self, row: Sequence[Any]) -> tuple[int, int]:
        """The range of a row, which has no padding, that the template does not explain."""
        first = _common(row, self.head)
        room = min(len(row), len(self.tail)) - first if self.head is self.tail else len(row) - first
        return first, len(row) - _common(row[first:][::-1], self.tail[::-1][: max(room, 0)])


_MARK = re.compile(r"<\S+>|\[\S+\]").fullmatch
# Two prompts that share neither their first token nor their last one.
_PROBES = ("a red house", "snow on high mountains")


def read_templates(clip: Any, name: str, key: str) -> list[Template]:
    """The templates of one encoder of a CLIP: that of a prompt with words, and that of an empty one.

    Some tokenizers have another template for an empty prompt, and some fill every prompt up to a length.
    """
    module = text_encoders(clip)[name]
    rows = [_without_padding(module, [word[0] for word in clip.tokenize(text)[key][0]])[1] for text in ("", *_PROBES)]
    empty, one, other = (tuple(row) for row in rows)
    head = _common(one, other)
    tail = _common(one[head:][::-1], other[head:][::-1])
    own = Template(one[:head], one[len(one) - tail :] if tail else ())
    names = getattr(getattr(clip.tokenizer, name, None), "inv_vocab", {})
    pad = module.special_tokens.get("pad")
    around = {*own.head[:1], *own.tail[:1], pad}
    return [
        replace(own, marks={mark: names[mark] for mark in around if _MARK(names.get(mark, ""))}),
        Template(empty, empty),
    ]


def _without_padding(module: SDClipModel, row: list[Any]) -> tuple[int, list[Any]]:
    """A row without the padding at its ends, and how much of it was in front."""
    pad = module.special_tokens.get("pad")
    first, last = 0, len(row)
    while first < last and _same(row[first], pad):
        first += 1
    while last > first and _same(row[last - 1], pad):
        last -= 1
    return first, row[first:last]


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many tokens two rows share from their start on."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if not _same(x, y)), min(len(a), len(b)))


def read_sections(module: SDClipModel, chunks: list[Any], templates: Sequence[Template]) -> list[Section]:
    """What an encoder is fed for the chunks of a tokenized prompt, whose words are what no template explains. Raises
    ValueError for a text with a mark of the template or the encoder's end token."""
    rows = [[word[0] for word in chunk] for chunk in chunks]
    device = device_of(module)
    with torch.inference_mode(False), torch.no_grad():
        embeds, masks, numbers = type(module).process_tokens(module, rows, device)[:3]
        return [
            _section(module, row, embeds[k].clone(), masks[k : k + 1].clone(), numbers[k], templates)
            for k, row in enumerate(rows)
        ]


def _section(
    module: SDClipModel, row: list[Any], embeds: Tensor, mask: Tensor, number: int, templates: Sequence[Template]
) -> Section:
    if module.special_tokens.get("end") is not None:
        _check_end(module, row)
        end = max(number - 1, 0)
        first = 1 if module.special_tokens.get("start") is not None and row[0] == module.special_tokens["start"] else 0
        return Section(embeds, mask, first, max(end, first), end)
    # No end token: the prompt is what the template around it does not explain.
    if len(row) != len(embeds):
        return Section(embeds, mask, 0, 0, len(embeds) - 1)
    padding, own = _without_padding(module, row)
    first, last = min((template.words(own) for template in templates), key=lambda words: words[1] - words[0])
    for mark in (token for token in own[first:last] if any(token in template.marks for template in templates)):
        raise ValueError(
            f"The text contains {templates[0].marks[mark]}, a mark of the chat template that ComfyUI writes around a "
            "prompt, so that it cannot be told which words are the prompt's own. Write the prompt alone."
        )
    return Section(embeds, mask, padding + first, padding + last, len(embeds) - 1, behind=padding + len(own))


def _check_end(module: SDClipModel, row: list[Any]) -> None:
    """Raises ValueError for an end token among the words: an encoder reads no further."""
    end, pad = module.special_tokens["end"], module.special_tokens.get("pad")
    behind = itertools.dropwhile(lambda token: not _same(token, end), row)
    if any(not _same(token, end) and not _same(token, pad) for token in behind):
        raise ValueError(
            "The text contains an end-of-text token (<|endoftext|> or </s>), behind which the text encoder reads "
            "nothing. Leave it out."
        )


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a == b


def only_last_varied(sections: list[Section], fixed: int) -> list[Section]:
    """Sections in which the first `fixed` of the prompt's own positions, counted through all of them, stay."""
    found = []
    for section in sections:
        own = min(fixed, section.last - section.first)
        fixed -= own
        found.append(replace(section, fixed=own))
    return found


def encode_rows(clip: Any, tokens: Tokens, count: int, encode: EncodeRow) -> dict[str, Any]:
    """What CLIP Text Encode gives for a prompt, with `encode(name, module, sections, row)` in place of every encoder's
    own `encode`: `cond` `[N, T, E]`, `pooled_output` and whatever else the CLIP returns; row k for row k.

    All else is ComfyUI's own code: weights, chunks of 77 and the joining of several encoders. Attention masks stay
    `[1, T]`, since the rows share their tokens. What `encode` returns is copied, and may be a view. Differentiable.
    Raises ComfyUI's interrupt on Cancel.
    """
    found: list[dict[str, Any]] = []
    for row in range(count):
        with contextlib.ExitStack() as stack:
            for name, module in text_encoders(clip).items():

                def encode_row(
                    sections: Sequence[list[Any]], module: SDClipModel = module, name: str = name, row: int = row
                ) -> Any:
                    return _copied(encode(name, module, sections, row))

                stack.enter_context(patched(module, encode=encode_row))
            found.append(clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True))
        comfy.model_management.throw_exception_if_processing_interrupted()
    return {name: _joined(name, [one.get(name) for one in found]) for name in found[0]}


def _joined(name: str, values: list[Any]) -> Any:
    first = values[0]
    rows = all(isinstance(value, Tensor) for value in values) and first.ndim > 1 and len(first) == 1
    # Else it is of the tokens, which all rows share.
    return torch.cat(values) if rows and "mask" not in name else first


def cut_rows(value: Any, rows: slice) -> Any:
    """These rows of an encoder's output, as views."""
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, dict):
        return {name: cut_rows(item, rows) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(cut_rows(item, rows) for item in value)
    return value


def stack_rows(outputs: Sequence[Any]) -> Any:
    """Outputs of an encoder as one that has the rows of all."""
    first = outputs[0]
    if len(outputs) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, dict):
        return {name: stack_rows([output[name] for output in outputs]) for name in first}
    if isinstance(first, tuple):
        return tuple(stack_rows(values) for values in zip(*outputs, strict=True))
    return first


def encode_blank(clip: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Of the empty prompt: which part of a tokenized prompt each encoder reads, found by watching the stock encoding,
    and what each encoder makes of it."""
    blank = clip.tokenize("")
    keys: dict[str, str] = {}
    outputs: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for name, module in text_encoders(clip).items():

            def watch(pairs: Any, module: Any = module, name: str = name) -> Any:
                keys.update((name, key) for key, value in blank.items() if value is pairs)
                outputs[name] = type(module).encode_token_weights(module, pairs)
                return _copied(outputs[name])

            stack.enter_context(patched(module, encode_token_weights=watch))
        clip.encode_from_tokens(blank, return_pooled=True)
    return keys, outputs


def hidden_states_are_read(clip: Any, names: Sequence[str], outputs: dict[str, Any]) -> bool:
    """Whether the hidden states of any of these encoders are in the conditioning; if not, only pooled vectors are.

    Found by trying: do other hidden states give another conditioning? The encoders themselves do not run: `outputs` is
    what `encode_blank` found.
    """
    modules, blank = text_encoders(clip), clip.tokenize("")

    def conditioning(moved: Sequence[str]) -> Tensor:
        with contextlib.ExitStack() as stack:
            for name, (hidden, *rest) in outputs.items():
                output = (hidden + 1 if name in moved else hidden, *rest)
                stack.enter_context(
                    patched(modules[name], encode_token_weights=lambda _, output=output: _copied(output))
                )
            return clip.encode_from_tokens(blank)

    return not torch.equal(conditioning([]), conditioning(names))


def _copied(output: Any) -> Any:
    """ComfyUI takes attention masks out of what an encoder returns, and writes weighted words into it."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, dict):
        return {name: _copied(value) for name, value in output.items()}
    if isinstance(output, tuple):
        return tuple(_copied(value) for value in output)
    return output


@contextlib.contextmanager
def patched(module: torch.nn.Module, **methods: Callable[..., Any]) -> Iterator[None]:
    """Methods of this one object are replaced inside, and as they were again afterwards, also after an error."""
    missing = object()
    before = {name: module.__dict__.get(name, missing) for name in methods}
    module.__dict__.update(methods)
    try:
        yield
    finally:
        for name, method in before.items():
            if method is missing:
                del module.__dict__[name]
            else:
                module.__dict__[name] = method
