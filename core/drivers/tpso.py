"""A prompt and a CLIP in, conditioning of N variants out: TPSO on each text encoder in turn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import files
from ..hooks.gradients import gradients
from ..hooks.progress import Progress
from ..hooks.text import PromptEncoder, encode_variants, prompt_encoders
from ..methods.tpso import (
    HOLD_MARGIN,
    HOLD_WEIGHT,
    INITIAL_DEVIATION,
    LEAST_CHANGE,
    Settings,
    Variants,
    calibrated_kappa,
    directions_to_hold,
    initial_offsets,
    least_mean_pairwise,
    optimise_variants,
)

# Mean cosine between unrelated prompts where kappa is at home, the projected pooled vectors of the released CLIPs;
# every other space is calibrated to it. Chosen, not measured on those: with it a kappa of 0.8 is as far from the prompt
# as one swapped word is on the demo CLIP, 0.29 of the way to unrelated prompts (docs/use/tpso.md).
UNRELATED_COSINE = 0.3
# Adam's rate as a share of the deviation of the token embeddings, which differs a thousandfold between encoders.
SPREAD_RATE = 2.0
PUBLISHED_RATE = 0.01
# Where offsets start when variants spread, as a share of the same. At the published 1e-4 a variant is as near to the
# prompt as float32 can tell, so that rounding would choose the direction in which it leaves.
SPREAD_START = 0.1
# One token in every encoder, and next to no meaning.
NEUTRAL_WORD = "the"
# Of the vocabulary, to exchange a word for: among the nearest are its opposite and its kind (right: left; red: orange).
NEIGHBOURS = 6
_PROMPTS_AT_ONCE = 64
_TABLE_VALUES = 2**24  # of the vocabulary, 64 MiB as float32

OnStep = Callable[[str, Tensor, "Tensor | None"], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a prompt in one encoder. `kappa` is the cosine aimed at in this encoder's space, `tolerance` half
    the width of the band around it; `kept` says that the variants were found on disk, `added` how many tokens behind
    the prompt are varied in place of its words, `held` against how many changes of a word the prompt was held: None
    where that was not asked for."""

    encoder: str
    vector: str
    kappa: float
    variants: Variants
    tolerance: float
    kept: bool = False
    added: int = 0
    held: int | None = None

    @property
    def missed(self) -> int:
        """How many variants are outside the band."""
        # float32 gives a cosine to six digits.
        return int(((self.variants.cosines[-1] - self.kappa).abs() > self.tolerance + 1e-6).sum())

    @property
    def report(self) -> str:
        """One line in plain words."""
        cosines = self.variants.cosines[-1]
        text = (
            f"{self.encoder} ({self.vector}{self._what}): cosine to the prompt {cosines.min():.3f} to "
            f"{cosines.max():.3f}, aim {self.kappa:.3f}"
        )
        if len(cosines) > 1:
            least = least_mean_pairwise(self.kappa, len(cosines))
            text += f"; mean pairwise cosine {self.variants.spreads[-1]:.3f}, least possible {least:.3f}"
            text += " were no words kept" if self.held else ""
        else:
            text += "; one variant: it has no other to differ from, and only moves away from the prompt"
        if self.held == 0:
            text += "; keep_words does nothing here: there is no word to keep"
        elif self.held:
            text += f"; words kept against {self.held} changes of one of them"
        text += "; kept from an earlier run" if self.kept else f"; {len(self.variants.cosines) - 1} steps"
        if self.missed:
            text += ". The aim was NOT reached: try more steps, another learning_rate or less diversity"
            text += ", or switch keep_words off" if self.held else ""
        return text

    @property
    def _what(self) -> str:
        return f", {self.added} added {'token' if self.added == 1 else 'tokens'}" if self.added else ""


def check_clip(clip: Any) -> None:
    """Raises ValueError for a CLIP whose weights change during sampling (hook keyframes), which cannot be varied."""
    if clip.patcher.forced_hooks is not None and clip.use_clip_schedule:
        raise ValueError(
            "This CLIP has scheduled hooks (Set CLIP Hooks with schedule_clip on); its prompt variants would have to "
            "be optimised for every keyframe. Switch schedule_clip off."
        )


def plain_conditioning(clip: Any, tokens: dict[str, Any]) -> list:
    """Exactly what CLIP Text Encode gives."""
    return clip.encode_from_tokens_scheduled(tokens)


def one_variant(conditioning: list, index: int) -> list:
    """CONDITIONING of variant `index` (from 0) alone, out of what `vary_prompt` gave.

    Raises ValueError for a variant that is not there.
    """
    found = []
    for cond, extras in conditioning:
        count = len(cond)
        if not 0 <= index < count:
            raise ValueError(f"pick is {index + 1}; it must be 0 (all) or 1 to {count}, the number of variants.")
        rows = slice(index, index + 1)
        own = {name: value[rows] if _has_rows(value, count) else value for name, value in extras.items()}
        found.append([cond[rows], own])
    return found


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == count


def vary_prompt(
    clip: Any,
    text: str,
    count: int,
    seed: int,
    settings: Settings,
    which: str = "auto",
    learning_rate: float | None = None,
    on_step: OnStep | None = None,
    cache: Path | None = None,
    added: int = 0,
    keep_words: bool = False,
) -> tuple[list, list[Outcome]]:
    """CONDITIONING whose row k is variant k of the prompt, and what was found in each encoder.

    added: 0 varies the prompt's own words; otherwise so many words are put behind it, and only those are varied.
    learning_rate: None chooses one; it takes the place of the one in `settings`.
    cache: a folder in which the offsets are looked up, and kept for the next time.
    keep_words: variants are held back from the prompt with one of its words left out or exchanged. The published rule
        (`settings.spread` False) has no such thing.

    Raises ValueError for bad settings and for a prompt or CLIP that cannot be varied.
    """
    check_clip(clip)
    tokens, encoders = _to_vary(clip, text, which, added)
    needed = max(encoder.memory(count) for encoder in encoders)
    comfy.model_management.load_models_gpu([clip.patcher], memory_required=needed)
    outcomes, offsets = [], {}
    for encoder in encoders:
        outcome = _vary(encoder, count, seed, settings, learning_rate, on_step, cache, keep_words and settings.spread)
        outcomes.append(replace(outcome, added=encoder.positions if added else 0))
        offsets[encoder.name] = outcome.variants.offsets
    chunk = min(encoder.chunk or count for encoder in encoders)
    with torch.no_grad():
        return encode_variants(clip, tokens, offsets, encoders, chunk), outcomes


def unvaried(clip: Any, text: str, which: str, added: int) -> list:
    """CONDITIONING of the prompt with the words that `vary_prompt` adds, as they are."""
    return plain_conditioning(clip, _to_vary(clip, text, which, added)[0])


def _to_vary(clip: Any, text: str, which: str, added: int) -> tuple[dict[str, Any], list[PromptEncoder]]:
    plain = clip.tokenize(text)
    longer = clip.tokenize(_with_words(text, added)) if added else plain
    encoders = prompt_encoders(clip, longer, which, plain if added else None)
    # Encoders that are not varied read the prompt as it is.
    return {**plain, **{encoder.key: longer[encoder.key] for encoder in encoders}}, encoders


def _with_words(text: str, added: int) -> str:
    """The prompt with so many neutral words behind it."""
    if added < 0:
        raise ValueError(f"added_tokens is {added}; it must be 0 (vary the prompt's own words) or more.")
    # A blank at the end is a token of its own for some encoders.
    return " ".join([text.rstrip(), *[NEUTRAL_WORD] * added]).lstrip()


def _vary(
    encoder: PromptEncoder,
    count: int,
    seed: int,
    settings: Settings,
    learning_rate: float | None,
    on_step: OnStep | None,
    cache: Path | None,
    keep_words: bool,
) -> Outcome:
    kappa = native_kappa(encoder, settings.kappa)
    rate = learning_rate or (SPREAD_RATE * encoder.deviation if settings.spread else PUBLISHED_RATE)
    settings = replace(settings, kappa=kappa, learning_rate=rate)
    if kappa == 1:  # the prompt itself, and no way to go
        settings = replace(settings, steps=0)
    still = settings.steps == 0
    keep_words = keep_words and not still
    reference = encoder.reference()
    name = _key(encoder, reference, count, seed, settings, keep_words)
    path = None if cache is None else cache / f"{name}.safetensors"
    # Offsets are divided by the number of positions before they are added.
    deviation = SPREAD_START * encoder.deviation * encoder.positions if settings.spread else INITIAL_DEVIATION
    start = initial_offsets(count, encoder.positions, encoder.width, seed, 0.0 if still else deviation)
    known = None if path is None else files.load(path, {"offsets": tuple(start.shape), "held": (1,)})
    if known is not None:
        variants, held = _again(encoder, reference, known["offsets"]), int(known["held"].item())
    else:
        variants, held = _anew(encoder, reference, start, settings, on_step, keep_words)
        if path is not None:
            files.store(path, {"offsets": variants.offsets, "held": torch.tensor([held])})
    return Outcome(
        encoder.name,
        encoder.vector_name,
        kappa,
        variants,
        settings.tolerance,
        kept=known is not None,
        held=held if keep_words else None,
    )


def _anew(
    encoder: PromptEncoder,
    reference: Tensor,
    start: Tensor,
    settings: Settings,
    on_step: OnStep | None,
    keep_words: bool,
) -> tuple[Variants, int]:
    """Variants, and against how many changes of a word they were held."""

    def after(cosines: Tensor, spread: Tensor | None) -> None:
        if on_step is not None:
            on_step(encoder.name, cosines, spread)

    with gradients():
        held = None
        if keep_words:
            changed = changed_prompts(encoder, encoder.embedding(NEUTRAL_WORD))
            held = directions_to_hold(reference.clone(), changed)
        variants = optimise_variants(start.to(encoder.device), reference.clone(), encoder, settings, after, held)
    return variants, 0 if held is None else len(held)


def _again(encoder: PromptEncoder, reference: Tensor, offsets: Tensor) -> Variants:
    """Known offsets, measured as an optimisation of no steps would."""
    with gradients():
        still = optimise_variants(
            (offsets * encoder.positions).to(encoder.device), reference.clone(), encoder, Settings(steps=0)
        )
    return replace(still, offsets=offsets.to(encoder.device))


def _key(encoder: PromptEncoder, reference: Tensor, count: int, seed: int, settings: Settings, keep_words: bool) -> str:
    # The prompt's own vector and embeddings stand for the encoder: any change of its weights (LoRA) shows in them.
    embeds = [section.embeds[: section.end + 1] for section in encoder.sections]
    # The last digits of what was measured on the encoder differ with the number of threads.
    settings = replace(settings, kappa=round(settings.kappa, 3), learning_rate=float(f"{settings.learning_rate:.3g}"))
    # With the constants that decide what is found: what an older version kept must not pass for this one's.
    constants = (SPREAD_START, keep_words and (NEUTRAL_WORD, NEIGHBOURS, LEAST_CHANGE, HOLD_WEIGHT, HOLD_MARGIN))
    return files.key([reference, *embeds], encoder.name, encoder.vector_name, count, seed, settings, constants)


def native_kappa(encoder: PromptEncoder, kappa: float) -> float:
    """The cosine in this encoder's space of prompt vectors that means what kappa means for CLIP's projected ones."""
    if encoder.projected:
        return kappa
    return calibrated_kappa(kappa, min(encoder.unrelated_cosine(), 0.999), UNRELATED_COSINE)


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
        near = nearest_tokens(encoder.module, own[at])
        rows = [(p, other) for p, others in zip(at, near, strict=True) for other in (neutral.to(own), *others)]
        found, progress = [], Progress(math.ceil(len(rows) / _PROMPTS_AT_ONCE))
        for some in range(0, len(rows), _PROMPTS_AT_ONCE):
            found.append(whole.vectors(_offsets(rows[some : some + _PROMPTS_AT_ONCE], own)))
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


def nearest_tokens(module: Any, embeds: Tensor) -> Tensor:
    """The nearest other tokens of the vocabulary, by cosine: embeddings `[P, NEIGHBOURS, D]` for `[P, D]`."""
    table = module.transformer.get_input_embeddings().weight.detach()
    unit = F.normalize(embeds.float(), dim=1)
    cosines = torch.cat([unit @ F.normalize(part.to(unit), dim=1).T for part in _in_parts(table)], dim=1)
    cosines[cosines > 0.999] = -1  # the token itself
    nearest = cosines.topk(min(NEIGHBOURS, len(table)), dim=1).indices
    return table[nearest.to(table.device)].to(embeds)


def _in_parts(table: Tensor) -> Iterator[Tensor]:
    """A vocabulary may have 250,000 rows, in any type of number: never all of them as float32 at once."""
    return iter(table.split(max(1, _TABLE_VALUES // table.shape[1])))
