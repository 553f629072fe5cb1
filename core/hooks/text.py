"""Token embeddings in, prompt vectors or conditioning of N variants out, for every text encoder of ComfyUI."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.clip_model import CLIPTextModel
from comfy.sd1_clip import SDClipModel
from torch import Tensor
from torch.nn import functional as F

from .chunks import InChunks
from .gradients import gradients

Tokens = dict[str, Any]
KINDS = ("auto", "clip", "all")

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


@dataclass(frozen=True)
class Section:
    """One chunk of a prompt in one encoder: `embeds` `[T, D]`, the prompt's own positions, and the end (CLIP: EOS).

    Of its own positions the first `fixed` stay as they are, and the others are varied.
    """

    embeds: Tensor
    mask: Tensor
    first: int
    last: int  # exclusive
    end: int
    fixed: int = 0

    @property
    def start(self) -> int:
        """The first position that is varied."""
        return self.first + self.fixed

    @property
    def positions(self) -> int:
        """How many are varied."""
        return self.last - self.start


class PromptEncoder(InChunks):
    """One text encoder with one prompt: offsets on the prompt's token embeddings to prompt vectors `[N, E]`.

    CLIP's vector is the pooled output of the final layer norm, projected where the projection is real (see
    `projection_is_real`). Other encoders (T5, Qwen, Gemma, Llama ...) have none; theirs is a surrogate: the mean of the
    output over the prompt's positions, less the same mean over unrelated prompts, because all of these outputs point
    much the same way. A prompt of several chunks has the unit vectors of its chunks side by side.

    plain: a tokenized prompt of which `tokens` is a continuation; only what was added is varied then.
    """

    def __init__(self, clip: Any, name: str, key: str, tokens: Tokens, plain: Tokens | None = None) -> None:
        self.name, self.module = name, text_encoders(clip)[name]
        self._clip, self.key, self.is_continued = clip, key, plain is not None
        self.all_sections = self._tokenized(tokens)
        if plain is not None:
            shorter = self._tokenized(plain)
            self.all_sections = _last_alone(self.all_sections, sum(section.positions for section in shorter))
        if self.is_clip and not any(section.positions for section in self.all_sections):
            # A blank prompt: its end is the one token that can change the pooled vector besides BOS.
            self.all_sections = [replace(s, first=s.end, last=s.end + 1) for s in self.all_sections]
        self.sections = [section for section in self.all_sections if section.positions > 0]

    def _tokenized(self, tokens: Tokens) -> list[Section]:
        return _sections(self.module, tokens[self.key], self._clip.tokenize("")[self.key])

    @property
    def is_clip(self) -> bool:
        return isinstance(self.module.transformer, CLIPTextModel)

    @property
    def positions(self) -> int:
        return sum(section.positions for section in self.sections)

    @property
    def width(self) -> int:
        return self.sections[0].embeds.shape[1]

    @property
    def deviation(self) -> float:
        """Standard deviation of the prompt's token embeddings: what a small or a large offset is measured by."""
        own = [section.embeds[section.first : section.last] for section in self.sections]
        return torch.cat(own).std().item()

    @property
    def device(self) -> torch.device:
        return self.sections[0].embeds.device

    @cached_property
    def vector_name(self) -> str:
        if not self.is_clip:
            return "mean of the output, common mean removed"
        return "projected pooled" if self.projected else "unprojected pooled"

    @cached_property
    def projected(self) -> bool:
        return self.is_clip and projection_is_real(self.module)

    def embedding(self, word: str) -> Tensor:
        """Token embedding `[D]` of a word, of its first token where it has several."""
        section = self._tokenized(self._clip.tokenize(word))[0]
        return section.embeds[section.first]

    def reference(self) -> Tensor:
        """The prompt's own vector `[E]`."""
        with gradients():
            return self._plain(torch.zeros(1, self.positions, self.width, device=self.device))[0]

    def _vectors(self, offsets: Tensor) -> Tensor:
        found, at = [], 0
        for section in self.sections:
            own = offsets[:, at : at + section.positions]
            at += section.positions
            embeds = section.embeds.to(own).expand(len(own), -1, -1)
            embeds = torch.cat([embeds[:, : section.start], embeds[:, section.start : section.last] + own,
                                embeds[:, section.last :]], dim=1)  # fmt: skip
            found.append(self._section_vector(embeds, section))
        if len(found) == 1:
            return found[0]
        return torch.cat([F.normalize(vector, dim=1) for vector in found], dim=1)

    def _section_vector(self, embeds: Tensor, section: Section) -> Tensor:
        if self.is_clip:
            return clip_vector(self.module, embeds[:, : section.end + 1], self.projected)
        raw = surrogate_vector(self.module, embeds, section)
        return raw - self._common_mean.to(raw)

    @cached_property
    def _common_mean(self) -> Tensor:
        return torch.stack(self._unrelated_raw).mean(0)

    @cached_property
    def _unrelated_raw(self) -> list[Tensor]:
        """Vectors of the unrelated prompts, before any mean is removed."""
        found = []
        with gradients(self.module), torch.no_grad():
            for text in UNRELATED:
                sections = self._tokenized(self._clip.tokenize(text))
                for section in sections[:1]:
                    if section.positions > 0:
                        embeds = section.embeds[None]
                        found.append(
                            clip_vector(self.module, embeds[:, : section.end + 1], self.projected)[0]
                            if self.is_clip
                            else surrogate_vector(self.module, embeds, section)[0]
                        )
        return found

    def unrelated_cosine(self) -> float:
        """Mean cosine between unrelated prompts in this encoder's space of prompt vectors."""
        vectors = torch.stack(self._unrelated_raw)
        if not self.is_clip:
            vectors = vectors - vectors.mean(0)
        unit = F.normalize(vectors, dim=1)
        count = len(unit)
        return ((unit.sum(0).square().sum() - count) / (count * (count - 1))).item()

    def _bytes_per_row(self) -> int:
        """Of what autograd keeps: about 34 activations of the width in each layer, float32, and the attention."""
        longest = max(section.end + 1 if self.is_clip else len(section.embeds) for section in self.sections)
        layers = getattr(self.module, "num_layers", 12)
        return len(self.sections) * layers * longest * (34 * self.width + 16 * longest) * 4


def _last_alone(sections: list[Section], fixed: int) -> list[Section]:
    """Sections in which the first `fixed` of the prompt's own positions, counted through all of them, stay."""
    found = []
    for section in sections:
        own = min(fixed, section.last - section.first)
        fixed -= own
        found.append(replace(section, fixed=own))
    return found


def clip_vector(module: SDClipModel, embeds: Tensor, projected: bool) -> Tensor:
    """Pooled vectors `[N, E]` of a CLIP text tower from token embeddings `[N, L, D]` whose last position is EOS.

    Attention is causal, so what follows EOS (padding) cannot change the pooled vector and is left out.
    """
    tower = module.transformer.text_model
    length = embeds.shape[1]
    position = tower.embeddings.position_embedding.weight[:length]
    x = embeds + comfy.ops.cast_to(position, dtype=embeds.dtype, device=embeds.device)
    lowest = -torch.finfo(x.dtype).max
    causal = torch.full((length, length), lowest, dtype=x.dtype, device=x.device).triu_(1)
    x = tower.final_layer_norm(tower.encoder(x, mask=causal, intermediate_output=None)[0])
    pooled = x[:, -1]
    pooled = module.transformer.text_projection(pooled) if projected else pooled
    return pooled.to(torch.promote_types(pooled.dtype, torch.float32))


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


def surrogate_vector(module: SDClipModel, embeds: Tensor, section: Section) -> Tensor:
    """Mean of the encoder's output over the prompt's own positions, `[N, D]`."""
    mask = section.mask.expand(len(embeds), -1) if module.enable_attention_masks else None
    layer = module.layer if isinstance(module.layer, list) or module.layer == "all" else module.layer_idx
    outputs = module.transformer(
        None,
        mask,
        embeds=embeds.clone(),  # Gemma scales it in place
        num_tokens=[section.end + 1] * len(embeds),
        intermediate_output=layer,
        final_layer_norm_intermediate=module.layer_norm_hidden_state,
        dtype=torch.float32,
        embeds_info=[],
    )
    z = (outputs[0] if module.layer == "last" else outputs[1]).float()
    if z.ndim == 4:  # several layers, [N, layers, T, D]
        z = z.mean(1)
    return z[:, section.first : section.last].mean(1)


def text_encoders(clip: Any) -> dict[str, SDClipModel]:
    """The text encoders inside a CLIP, by name."""
    found = {}
    for name, module in clip.cond_stage_model.named_modules():
        if isinstance(module, SDClipModel):
            found[name] = module
    return found


def prompt_encoders(clip: Any, tokens: Tokens, which: str = "auto", plain: Tokens | None = None) -> list[PromptEncoder]:
    """The encoders of `clip` that can vary this prompt, or what it has more than `plain`; loads the model.

    which: "clip", those with a contrastive vector; "all"; "auto", those with a contrastive vector, or all where the
        model reads the hidden states of none of these (FLUX: of CLIP only the pooled vector).

    Raises ValueError for an unknown choice, and when nothing is left to vary.
    """
    if which not in KINDS:
        raise ValueError(f"encoders is {which!r}; it must be one of {', '.join(KINDS)}.")
    keys, outputs = _blank_prompt(clip)
    encoders = [PromptEncoder(clip, name, key, tokens, plain) for name, key in keys.items()]
    clips = [encoder for encoder in encoders if encoder.is_clip]
    mixed = len(clips) < len(encoders)
    everything = which == "all" or (which == "auto" and mixed and not _are_read(clip, clips, outputs))
    chosen = encoders if everything else clips
    chosen = [encoder for encoder in chosen if encoder.sections]
    if not chosen:
        names = ", ".join(text_encoders(clip)) or "none"
        raise ValueError(
            f"encoders is {which!r}, but none of this CLIP's text encoders ({names}) has words "
            "of this prompt to vary. Write a prompt, or choose other encoders."
        )
    return chosen


def _blank_prompt(clip: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Which part of a tokenized prompt each encoder reads, found by watching the stock encoding of an empty one; and
    what each encoder makes of it."""
    blank = clip.tokenize("")
    keys: dict[str, str] = {}
    outputs: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for name, module in text_encoders(clip).items():

            def watch(pairs: Any, module: Any = module, name: str = name) -> Any:
                keys.update((name, key) for key, value in blank.items() if value is pairs)
                outputs[name] = type(module).encode_token_weights(module, pairs)
                return _copied(outputs[name])

            stack.enter_context(_patched(module, encode_token_weights=watch))
        clip.encode_from_tokens(blank, return_pooled=True)
    return keys, outputs


def _are_read(clip: Any, encoders: Sequence[PromptEncoder], outputs: dict[str, Any]) -> bool:
    """Whether the hidden states of any of these encoders are in the conditioning; if not, only pooled vectors are.

    Found by trying: do other hidden states give another conditioning? The encoders themselves do not run.
    """
    modules, blank = text_encoders(clip), clip.tokenize("")

    def conditioning(moved: Sequence[str]) -> Tensor:
        with contextlib.ExitStack() as stack:
            for name, (hidden, *rest) in outputs.items():
                output = (hidden + 1 if name in moved else hidden, *rest)
                stack.enter_context(
                    _patched(modules[name], encode_token_weights=lambda _, output=output: _copied(output))
                )
            return clip.encode_from_tokens(blank)

    return not torch.equal(conditioning([]), conditioning([encoder.name for encoder in encoders]))


def _copied(output: Any) -> Any:
    """ComfyUI takes attention masks out of what an encoder returns, and writes into it."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, dict):
        return {name: _copied(value) for name, value in output.items()}
    if isinstance(output, tuple):
        return tuple(_copied(value) for value in output)
    return output


def _sections(module: SDClipModel, chunks: list[Any], empty: list[Any]) -> list[Section]:
    """What an encoder is fed for the chunks of a tokenized prompt; `empty` are those of an empty one."""
    rows = [[word[0] for word in chunk] for chunk in chunks]
    device = module.transformer.get_input_embeddings().weight.device
    with torch.inference_mode(False), torch.no_grad():
        embeds, masks, numbers = type(module).process_tokens(module, rows, device)[:3]
        blank = [word[0] for word in empty[0]]
        return [
            _section(module, row, embeds[k].clone(), masks[k : k + 1].clone(), numbers[k], blank)
            for k, row in enumerate(rows)
        ]


def _section(
    module: SDClipModel, row: list[Any], embeds: Tensor, mask: Tensor, number: int, empty: list[Any]
) -> Section:
    if module.special_tokens.get("end") is not None:
        end = max(number - 1, 0)
        first = 1 if module.special_tokens.get("start") is not None and row[0] == module.special_tokens["start"] else 0
        return Section(embeds, mask, first, max(end, first), end)
    # No end token: the prompt is what differs from the template around an empty one.
    if len(row) != len(embeds):
        return Section(embeds, mask, 0, 0, len(embeds) - 1)
    first = 0
    while first < min(len(row), len(empty)) and _same(row[first], empty[first]):
        first += 1
    tail = 0
    while tail < min(len(row), len(empty)) - first and _same(row[-1 - tail], empty[-1 - tail]):
        tail += 1
    return Section(embeds, mask, first, len(row) - tail, len(embeds) - 1)


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a == b


@contextlib.contextmanager
def _patched(module: torch.nn.Module, **methods: Callable[..., Any]) -> Iterator[None]:
    """Methods of this one object are replaced inside, and the class's again afterwards, also after an error."""
    for name, method in methods.items():
        module.__dict__[name] = method
    try:
        yield
    finally:
        for name in methods:
            del module.__dict__[name]


def encode_variants(
    clip: Any, tokens: Tokens, offsets: dict[str, Tensor], encoders: Sequence[PromptEncoder], chunk: int = 0
) -> list:
    """CONDITIONING whose row k is the prompt with `offsets[name][k]` `[N, P, D]` on its tokens.

    Every encoder's own code runs, once for `chunk` variants (0: all) or once in all for an encoder without offsets:
    weights, chunks of 77, clip skip and the joining of several encoders stay what they are. Attention masks stay
    `[1, T]`, since the variants share their tokens.
    """
    count = len(next(iter(offsets.values())))
    found: list[dict[str, Any]] = []
    size = chunk or count
    shared: dict[str, Any] = {}
    for at in range(0, count, size):
        found += _encode_some(clip, tokens, {k: v[at : at + size] for k, v in offsets.items()}, encoders, shared)
        comfy.model_management.throw_exception_if_processing_interrupted()
    joined = {name: _joined(name, [one.get(name) for one in found]) for name in found[0]}
    return [[joined.pop("cond"), joined]]


def _joined(name: str, values: list[Any]) -> Any:
    tensors = all(isinstance(value, Tensor) for value in values)
    if not tensors or "mask" in name:
        return values[0]
    return torch.cat(values)


def _encode_some(
    clip: Any,
    tokens: Tokens,
    offsets: dict[str, Tensor],
    encoders: Sequence[PromptEncoder],
    shared: dict[str, Any],
) -> list[dict[str, Any]]:
    count = len(next(iter(offsets.values())))
    by_name = {encoder.name: encoder for encoder in encoders}
    cache: dict[str, Any] = {}
    current = {"variant": 0}
    with contextlib.ExitStack() as stack:
        for name, module in text_encoders(clip).items():
            own = offsets.get(name)

            def process(rows: Any, device: Any, module: Any = module, name: str = name, own: Any = own) -> Any:
                result = type(module).process_tokens(module, rows, device)
                if own is None:
                    return result
                embeds = result[0].expand(count, *result[0].shape) + _placed(own, by_name[name], result[0])
                return (embeds.flatten(0, 1), result[1].repeat(count, 1), list(result[2]) * count, *result[3:])

            def encode(rows: Any, module: Any = module, name: str = name, own: Any = own) -> Any:
                store = shared if own is None else cache
                if name not in store:
                    store[name] = type(module).encode(module, rows)
                output = store[name]
                sections = len(rows)
                first = 0 if own is None else current["variant"] * sections
                # A copy: ComfyUI writes the weighted words into it.
                return tuple(_rows(value, first, sections) for value in output)

            stack.enter_context(_patched(module, process_tokens=process, encode=encode))
        found = []
        for variant in range(count):
            current["variant"] = variant
            found.append(clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True))
    return found


def _rows(value: Any, first: int, sections: int) -> Any:
    if isinstance(value, Tensor):
        return value[first : first + sections].clone()
    if isinstance(value, dict):
        return {name: _rows(item, first, sections) for name, item in value.items()}
    return value


def _placed(offsets: Tensor, encoder: PromptEncoder, embeds: Tensor) -> Tensor:
    """Offsets `[N, P, D]` where they belong in `[N, S, T, D]`; zero elsewhere."""
    placed = torch.zeros(len(offsets), *embeds.shape, dtype=embeds.dtype, device=embeds.device)
    at = 0
    for k, section in enumerate(encoder.all_sections):
        placed[:, k, section.start : section.last] = offsets[:, at : at + section.positions].to(embeds)
        at += section.positions
    return placed
