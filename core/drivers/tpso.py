"""TPSO at run time: from a prompt and a CLIP to the conditioning of N variants, by each text encoder in turn.

These are the recommended settings; the paper's procedure is in core/drivers/tpso_published.py.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import files
from ..hooks.chunks import load_for_gradients
from ..hooks.gradients import gradients
from ..hooks.progress import Progress
from ..hooks.text import PromptEncoder, encode_variants, prompt_encoders
from ..methods.tpso import (
    KEEP_MARGIN,
    KEEP_WEIGHT,
    LEAST_CHANGE,
    Settings,
    Variants,
    calibrated_kappa,
    directions_to_keep,
    initial_offsets,
    least_mean_pairwise,
    optimise_variants,
)
from ..methods.tpso_search import search_variants
from ..require import require
from . import tpso_search

# Mean cosine between unrelated prompts in the space for which kappa was chosen, the projected pooled vectors of the
# released CLIPs; every other space is calibrated to it. An assumption, not a measurement: with it a kappa of 0.8 is as
# far from the prompt as one exchanged word on the demo CLIP, 0.29 of the distance to unrelated ones (docs/use/tpso.md).
UNRELATED_COSINE = 0.3
# Adam's rate as a share of the deviation of the token embeddings, which differs a thousandfold between encoders.
RECOMMENDED_RATE = 2.0
# Standard deviation of the offsets at the start, as a share of the same. At the published 1e-4 a variant is so near to
# the prompt that rounding in float32 would choose the direction in which it leaves.
RECOMMENDED_START = 0.1
# Chosen on the demo world: the prompt's own words keep their meaning (docs/use/tpso.md).
ADDED_TOKENS = 4
# One token in every encoder, with next to no meaning.
NEUTRAL_WORD = "the"
# How many tokens of the vocabulary a word is exchanged for: its opposite and its kind are among the nearest (right:
# left; red: orange).
NEIGHBOURS = 6
_PROMPTS_AT_ONCE = 64
_ONE_BY_ONE = "Set variant in Diverse Prompts Options to make them one after another (1, 2, 3 ...)."
_TABLE_VALUES = 2**24  # of the vocabulary at once, 64 MiB as float32

OnStep = Callable[[str, Tensor, "Tensor | None"], None]


@dataclass(frozen=True)
class Recipe:
    """How a prompt is varied.

    settings: of the optimisation; its learning rate is replaced by the one below.
    added_tokens: so many neutral tokens are appended to the prompt, and only those are varied; 0 varies its own words.
    keep_words: variants are kept away from the prompt with one of its words left out or exchanged.
    learning_rate: None chooses one for each encoder.
    optimiser: see `core.drivers.tpso_search`.

    Raises ValueError for a negative number of tokens, a choice that there is not, and a learning rate that is not
    above 0.
    """

    settings: Settings
    added_tokens: int = 0
    keep_words: bool = False
    learning_rate: float | None = None
    optimiser: str = "auto"

    def __post_init__(self) -> None:
        tpso_search.check(self.optimiser)
        require(self.added_tokens >= 0, "added_tokens", self.added_tokens, "0 (vary the prompt's own words) or more")
        rate = self.learning_rate
        require(rate is None or (math.isfinite(rate) and rate > 0), "learning_rate", rate, "above 0, or chosen (auto)")


def recommended(
    kappa: float = Settings.kappa,
    tolerance: float = Settings.tolerance,
    diversity: float = Settings.diversity,
    steps: int | None = None,
    learning_rate: float | None = None,
    added_tokens: int | None = None,
    keep_words: bool = False,
    optimiser: str = "auto",
) -> Recipe:
    """The settings chosen by measurement; None takes their value. Raises ValueError as `Settings` and `Recipe` do."""
    settings = Settings(kappa, tolerance, diversity, Settings.steps if steps is None else steps)
    return Recipe(
        settings, ADDED_TOKENS if added_tokens is None else added_tokens, keep_words, learning_rate, optimiser
    )


@dataclass(frozen=True)
class Outcome:
    """What came out of varying a prompt in one encoder.

    vector: which vector of a prompt was used.
    kappa: the cosine aimed at in this encoder's space, and `tolerance` half the width of the band around it.
    from_disk: the variants were found on disk.
    added_tokens: how many tokens were varied in place of the prompt's own words; 0 for its words.
    words_kept: from how many changes of a word the variants were kept away; None where that was not asked for.
    note: what else is to be known of how it was done.
    past: the last step only led past the band, and what was reached is judged by the one before.
    searched: why the variants were found by search, without gradients; None where gradients were used.
    """

    encoder: str
    vector: str
    kappa: float
    variants: Variants
    tolerance: float
    from_disk: bool = False
    added_tokens: int = 0
    words_kept: int | None = None
    note: str = ""
    past: bool = False
    searched: str | None = None

    @property
    def missed(self) -> int:
        """How many variants are outside the band."""
        reached = self.variants.cosines[-2 if self.past else -1]
        # float32 gives a cosine to six digits.
        return int(((reached - self.kappa).abs() > self.tolerance + 1e-6).sum())

    @property
    def report(self) -> str:
        """One line in plain words."""
        cosines = self.variants.cosines[-1]
        text = (
            f"{self.encoder} ({self.vector}{self._what}): cosine to the prompt {cosines.min():.3f} to "
            f"{cosines.max():.3f}, aim {self.kappa:.3f}"
        )
        if len(cosines) > 1:
            bound = least_mean_pairwise(self.kappa, len(cosines))
            text += f"; mean pairwise cosine {self.variants.spreads[-1]:.3f}, "
            text += f"lower bound {'without keep_words ' if self.words_kept else ''}{bound:.3f}"
        else:
            text += "; a single variant only moves away from the prompt"
        if self.words_kept == 0:
            text += "; keep_words has no effect: there is no word to keep"
        elif self.words_kept:
            text += f"; kept away from {self.words_kept} prompts with another word"
        text += "" if self.searched is None else f"; {tpso_search.report(self.searched, self.added_tokens)}"
        unit = "steps" if self.searched is None else "rounds"
        text += "; loaded from an earlier run" if self.from_disk else f"; {self._steps} {unit}"
        if self.missed:
            text += ". The aim was NOT reached: try more steps, another learning_rate or less diversity"
            text += ", or switch keep_words off" if self.words_kept else ""
        return text

    @property
    def _steps(self) -> int:
        return len(self.variants.cosines) - (2 if self.past else 1)

    @property
    def _what(self) -> str:
        count = self.added_tokens
        added = f", {count} added {'token' if count == 1 else 'tokens'}" if count else ""
        return added + (f", {self.note}" if self.note else "")


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
        require(0 <= index < count, "variant", index + 1, f"0 (all) or 1 to {count}, the number of variants")
        rows = slice(index, index + 1)
        own = {name: value[rows] if _has_rows(value, count) else value for name, value in extras.items()}
        found.append([cond[rows], own])
    return found


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 1 and len(value) == count


def check_rows(plain: list, count: int) -> None:
    """Raises ValueError for several variants of a prompt, whose CONDITIONING is `plain`, of which the model reads more
    than embeddings: that cannot have rows."""
    found = [(name, value) for _, extras in plain for name, value in extras.items()]
    names = [name for name, value in found if isinstance(value, Tensor) and value.ndim == 1]
    if count > 1 and names:
        raise ValueError(
            f"This model (Anima) reads the prompt's {names[0]} besides its embeddings, and of one prompt only, so a "
            f"batch cannot have {count} variants. {_ONE_BY_ONE}"
        )


def vary_prompt(
    clip: Any,
    text: str,
    count: int,
    seed: int,
    recipe: Recipe,
    which: str = "auto",
    on_step: OnStep | None = None,
    cache: Path | None = None,
) -> tuple[list, list[Outcome]]:
    """CONDITIONING whose row k is variant k of the prompt, and what came out in each encoder.

    which: the encoders, see `prompt_encoders`.
    on_step: called after every step with the encoder's name, the cosines `[N]` and the mean pairwise cosine.
    cache: a folder in which offsets are looked up, and stored for the next time.

    Raises ValueError for a prompt or CLIP that cannot be varied.
    """
    check_clip(clip)
    tokens, encoders = to_vary(clip, text, which, recipe.added_tokens)
    load_for_gradients(clip.patcher, encoders, count)
    outcomes = [_vary(encoder, count, seed, recipe, on_step, cache) for encoder in encoders]
    offsets = {outcome.encoder: outcome.variants.offsets for outcome in outcomes}
    chunk = min(encoder.chunk or count for encoder in encoders)
    with torch.no_grad():
        rows = encode_variants(clip, tokens, offsets, encoders, chunk)
    if any(outcome.variants.offsets.any() for outcome in outcomes) and not _differ(
        rows if count > 1 else [*rows, *unvaried(clip, text, which, recipe.added_tokens)]
    ):
        raise ValueError(
            f"encoders is {which!r}, but the model reads nothing of what was varied there. Shorten the prompt, set "
            "added_tokens to 0, or set encoders to all."
        )
    return rows, outcomes


def _differ(conditionings: list) -> bool:
    """Whether any row differs from the first one in what a model reads."""
    parts = [[cond for cond, _ in conditionings]]
    for name, value in conditionings[0][1].items():
        if _has_rows(value, len(conditionings[0][0])):
            parts.append([extras[name] for _, extras in conditionings])
    return any(not torch.equal(row, rows[0][:1]) for rows in parts for value in rows for row in value.split(1))


def unvaried(clip: Any, text: str, which: str, added_tokens: int) -> list:
    """CONDITIONING of the prompt with the tokens that `vary_prompt` appends, as they are."""
    return plain_conditioning(clip, to_vary(clip, text, which, added_tokens)[0])


def to_vary(clip: Any, text: str, which: str, added: int) -> tuple[dict[str, Any], list[PromptEncoder]]:
    """The tokens of a prompt with so many neutral ones behind it, and the encoders in which these are varied; without
    any, its own words. which: see `prompt_encoders`."""
    plain = clip.tokenize(text)
    longer = clip.tokenize(_with_neutral_words(text, added)) if added else plain
    encoders = prompt_encoders(clip, longer, which, plain if added else None)
    # Encoders that are not varied read the prompt as it is.
    return {**plain, **{encoder.key: longer[encoder.key] for encoder in encoders}}, encoders


def _with_neutral_words(text: str, count: int) -> str:
    # A blank at the end is a token of its own for some encoders.
    return " ".join([text.rstrip(), *[NEUTRAL_WORD] * count]).lstrip()


def _vary(
    encoder: PromptEncoder, count: int, seed: int, recipe: Recipe, on_step: OnStep | None, cache: Path | None
) -> Outcome:
    settings = _calibrated(encoder, recipe)
    unmoved = settings.steps == 0
    keep_words = recipe.keep_words and not unmoved
    reference = encoder.reference()
    # Offsets are divided by the number of positions before they are added.
    deviation = RECOMMENDED_START * encoder.deviation * encoder.positions
    start = initial_offsets(count, encoder.positions, encoder.width, seed, 0.0 if unmoved else deviation)
    at = start[:1] / encoder.positions
    searched = None if unmoved else tpso_search.reason(encoder, at, recipe.optimiser)
    name = _key(encoder, reference, count, seed, settings, keep_words, searched is not None)
    path = None if cache is None else cache / f"{name}.safetensors"
    stored = None if path is None else files.load(path, {"offsets": tuple(start.shape), "words_kept": (1,)})
    if stored is not None:
        variants, kept = measured(encoder, reference, stored["offsets"]), int(stored["words_kept"].item())
    else:
        if searched is not None:
            start = tpso_search.candidates(encoder, count, seed, deviation, recipe.added_tokens > 0)
        variants, kept = _optimised(
            encoder, reference, start, settings, on_step, keep_words, None if searched is None else (count, seed)
        )
        if path is not None:
            files.keep(path, {"offsets": variants.offsets, "words_kept": torch.tensor([kept])})
    return Outcome(
        encoder.name,
        encoder.vector_name,
        settings.kappa,
        variants,
        settings.tolerance,
        from_disk=stored is not None,
        added_tokens=encoder.positions if recipe.added_tokens else 0,
        words_kept=kept if keep_words else None,
        searched=searched,
    )


def _calibrated(encoder: PromptEncoder, recipe: Recipe) -> Settings:
    """The settings as they are meant for this encoder."""
    settings = recipe.settings
    kappa = native_kappa(encoder, settings.kappa)
    chosen = RECOMMENDED_RATE * encoder.deviation
    steps = 0 if kappa == 1 else settings.steps  # with a kappa of 1 variants are the prompt itself
    return replace(settings, kappa=kappa, learning_rate=recipe.learning_rate or chosen, steps=steps)


def _optimised(
    encoder: PromptEncoder,
    reference: Tensor,
    start: Tensor,
    settings: Settings,
    on_step: OnStep | None,
    keep_words: bool,
    search: tuple[int, int] | None = None,
) -> tuple[Variants, int]:
    """Variants, and from how many changes of a word they were kept away.

    search: how many variants are searched among the candidates `start`, and the seed; None where gradients are used.
    """

    def after(cosines: Tensor, spread: Tensor | None) -> None:
        if on_step is not None:
            on_step(encoder.name, cosines, spread)

    with gradients():
        keep = None
        if keep_words:
            changed = changed_prompts(encoder, encoder.embedding(NEUTRAL_WORD))
            keep = directions_to_keep(reference.clone(), changed)
        start, reference = start.to(encoder.device), reference.clone()
        if search is None:
            variants = optimise_variants(start, reference, encoder, settings, after, keep)
        else:
            count, seed = search
            variants = search_variants(start, count, reference, encoder.forward_only, settings, after, keep, seed)
    return variants, 0 if keep is None else len(keep)


def measured(encoder: PromptEncoder, reference: Tensor, offsets: Tensor) -> Variants:
    """Given offsets, measured as a search of no rounds would."""
    start = (offsets * encoder.positions).to(encoder.device)
    with gradients():
        found = search_variants(start, len(start), reference.clone(), encoder.vectors, Settings(steps=0))
    return replace(found, offsets=offsets.to(encoder.device))


def _key(
    encoder: PromptEncoder,
    reference: Tensor,
    count: int,
    seed: int,
    settings: Settings,
    keep_words: bool,
    searched: bool,
) -> str:
    # The prompt's own vector and embeddings stand for the encoder: any change of its weights (LoRA) shows in them.
    embeds = [section.embeds[: section.end + 1] for section in encoder.sections]
    # The last digits of what was measured on the encoder differ with the number of threads.
    settings = replace(settings, kappa=round(settings.kappa, 3), learning_rate=float(f"{settings.learning_rate:.3g}"))
    # The constants too, so that variants of an older version are not taken for this one's.
    constants = (RECOMMENDED_START, keep_words and (NEUTRAL_WORD, NEIGHBOURS, LEAST_CHANGE, KEEP_WEIGHT, KEEP_MARGIN))
    return files.key(
        [reference, *embeds],
        encoder.name,
        encoder.vector_name,
        count,
        seed,
        settings,
        constants,
        *["search"] * searched,
    )


def native_kappa(encoder: PromptEncoder, kappa: float) -> float:
    """The cosine in this encoder's space of prompt vectors that means what kappa means for CLIP's projected ones."""
    if encoder.projected:
        return kappa
    return calibrated_kappa(kappa, min(encoder.unrelated_cosine(), 0.999), UNRELATED_COSINE)


def changed_prompts(encoder: PromptEncoder, neutral: Tensor) -> Tensor:
    """Prompt vectors `[M, E]` of the encoder's prompt with one of its own tokens replaced, for each token in turn:
    by `neutral` `[D]`, the embedding of a word with next to no meaning, and by the nearest tokens of the vocabulary.

    Tokens appended to the prompt are not replaced. M is 0 for a prompt without words.
    """
    whole = copy.copy(encoder)
    whole.sections = [replace(section, fixed=0) for section in encoder.sections]
    own = torch.cat([s.embeds[s.first : s.last] for s in whole.sections])
    at = _positions_of_words(encoder)
    if not at:
        return torch.zeros(0, len(encoder.reference()), device=encoder.device)
    with gradients():  # leaves inference mode
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
        if encoder.is_clip and section.first == section.end:  # the end of a blank prompt is not a word
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
    """A vocabulary may have 250,000 rows of any type: never all of them as float32 at once."""
    return iter(table.split(max(1, _TABLE_VALUES // table.shape[1])))
