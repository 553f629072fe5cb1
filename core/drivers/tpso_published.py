"""TPSO at run time as its authors released it: what is varied in which encoder, and the bank of unconditional prompts.

docs/published/tpso.md lists every rule of the release, and which of them are the same here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..hooks.chunks import load_for_gradients
from ..hooks.gradients import gradients
from ..hooks.text import (
    BEHIND,
    MEAN,
    PromptEncoder,
    clip_kind,
    encode_variants,
    has_clip,
    normed_layer,
    prompt_encoders,
    words_of,
)
from ..methods.tpso import Variants
from ..methods.tpso_published import ROOM, Rule, drawn_rows, optimise_as_released, released_start
from ..require import require
from . import tpso_search
from .tpso import RECOMMENDED_START, OnStep, Outcome, check_clip, measured


@dataclass(frozen=True)
class Preset:
    """What the release does for one kind of model.

    models: which these are.
    rule: of the prompt's variants.
    by_words: as many positions are varied as the prompt has words between blanks; False is all of its tokens.
    normed: prompt vectors are of the layer that the model reads, where that goes through the final layer norm.
    bank_rows, bank_group: rows of the bank of unconditional prompts, and how many of them repel each other.
    bank_diversity: lambda in the bank; None is the prompt's.
    bank_seed: of the bank's start. Not the run's seed, which draws from the bank.
    steps, cfg, step_noise: how images are made: sampling steps, CFG, and what noise is added after every step.
    """

    name: str
    models: str
    rule: Rule
    by_words: bool
    normed: bool
    bank_rows: int
    bank_group: int
    bank_diversity: float | None
    bank_seed: int
    steps: int
    cfg: float
    step_noise: float


SD15 = Preset(
    name="sd15",
    models="SD1.5 and SD2.1",
    rule=Rule(diversity=1.0, steps=50),
    by_words=True,
    normed=True,
    bank_rows=350,
    bank_group=35,
    bank_diversity=None,
    bank_seed=2024,
    steps=50,
    cfg=7.5,
    step_noise=0.0,
)
SD35 = Preset(
    name="sd35",
    models="SD3.5",
    rule=Rule(diversity=10.0, steps=200, past=True),
    by_words=False,
    normed=False,
    bank_rows=300,
    bank_group=30,
    bank_diversity=0.0,
    bank_seed=2026,
    steps=35,
    cfg=7.0,
    step_noise=0.03,
)
PRESETS = {preset.name: preset for preset in (SD15, SD35)}
AUTO = "auto"
CHOICES = (AUTO, *PRESETS)

RATIO = 0.4
BANK_POSITIONS = 20
BANK_STEPS = 200
# Of the text encoders that ComfyUI loads for released models, those of which the model is known not to be a flow.
_NOT_FLOW = {"sd15": "SD1.5", "sd21": "SD2", "sdxl": "SDXL"}


# What to say of a prompt vector that is not the release's.
_VECTORS = {
    "unprojected pooled": "no text projection is loaded, which the release has from CLIP's own files; similarity is "
    "that of the unprojected vector.",
    MEAN: "not a CLIP, so that the paper has no rule for it; similarity is that of the mean of its output.",
    BEHIND: "a language model, for which the paper has no rule; similarity is that of its output behind the words.",
}


def choose_preset(clip: Any, chosen: str = AUTO) -> tuple[Preset, str]:
    """The preset for a CLIP, and why that one.

    Raises ValueError for an unknown choice, and for SD3.5's with a text encoder of models that are not flow-matching.
    """
    require(chosen in CHOICES, "preset", chosen, f"one of {', '.join(CHOICES)}")
    kind = clip_kind(clip)
    if chosen != AUTO:
        allowed = (
            f"{AUTO} or {SD15.name} with this text encoder, which is {_NOT_FLOW.get(kind or '')}'s: SD3.5's rule is "
            "for flow-matching models"
        )
        require(chosen != SD35.name or kind not in _NOT_FLOW, "preset", chosen, allowed)
        return PRESETS[chosen], "as chosen"
    if kind == "sd3":
        return SD35, "by the text encoder"
    known = kind in ("sd15", "sd21")
    return SD15, "by the text encoder" if known else "the paper has no model with this text encoder"


def rule_of(
    preset: Preset,
    kappa: float = Rule.kappa,
    tolerance: float = Rule.tolerance,
    diversity: float | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
) -> Rule:
    """The preset's rule with other values; None is the preset's own. Raises ValueError as `Rule` does."""
    given = {"diversity": diversity, "steps": steps, "learning_rate": learning_rate}
    own: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(preset.rule, kappa=kappa, tolerance=tolerance, **own)


def vary_as_released(
    clip: Any,
    text: str,
    count: int,
    seed: int,
    preset: Preset,
    rule: Rule,
    which: str = AUTO,
    on_step: OnStep | None = None,
) -> tuple[list, list[Outcome]]:
    """CONDITIONING whose row k is variant k of the prompt, and what came out in each encoder.

    which: "auto" or "clip", encoders of the CLIP kind, or all where there are none; "all".
    on_step: called after every encoding with the encoder's name, the cosines `[N]` and the mean pairwise cosine.

    Raises ValueError for a prompt without words, and for a CLIP that cannot be varied.
    """
    check_clip(clip)
    words = len(words_of(text))
    require(words > 0, "text", text, "a prompt with words with mode published, which varies words alone")
    tokens = clip.tokenize(text)
    encoders = prompt_encoders(clip, tokens, "clip" if which != "all" and has_clip(clip) else "all")
    tokens_of = {encoder.name: encoder.positions for encoder in encoders}
    for encoder in encoders:
        _set_up(encoder, preset, words if preset.by_words else None)
    _load(clip, encoders, count)
    outcomes = []
    for encoder, start in zip(encoders, _starts(encoders, count, seed, rule), strict=True):
        variants = _optimised(encoder, start, rule, on_step)
        note = f"{encoder.positions} of {tokens_of[encoder.name]} tokens varied"
        outcomes.append(_outcome(encoder, rule, variants, note))
    return _encoded(clip, tokens, encoders, {one.encoder: one.variants.offsets for one in outcomes}), outcomes


@dataclass(frozen=True)
class Bank:
    """Unconditional prompts of one text encoder, optimised once and for all.

    offsets: `[M, P, D]`, to be added to the embeddings of a blank prompt's first positions behind BOS.
    cosines: to the blank prompt, `[M]`.
    course: these cosines at every encoding, `[S, M]`; None for a bank that was found on disk.
    """

    offsets: Tensor
    cosines: Tensor
    course: Tensor | None = None


def remarks(
    clip: Any, text: str, preset: Preset, why: str, rule: Rule, ratio: float, outcomes: Sequence[Outcome]
) -> list[str]:
    """What has to be said of a run: whose rule it was, what in it is not as published, and what else has to be
    connected for the published result."""
    lines = [f"Mode published, preset {preset.name} ({why}): as released for {preset.models}."]
    lines += [f"{one.encoder}: {words}" for one in outcomes if (words := _VECTORS.get(one.vector))]
    lines += [
        f"{encoder.name}: the release cuts a prompt off at {ROOM} tokens; here its first chunk is varied, and the rest "
        "is read as it is."
        for encoder in prompt_encoders(clip, clip.tokenize(text), "clip" if has_clip(clip) else "all")
        if encoder.is_clip and len(encoder.all_sections) > 1
    ]
    own = replace(rule_of(preset), freezing=rule.freezing, past=rule.past)
    values = {
        "similarity": (rule.kappa, own.kappa),
        "tolerance": (rule.tolerance, own.tolerance),
        "lambda": (rule.diversity, own.diversity),
        "steps": (rule.steps, own.steps),
        "learning_rate": (rule.learning_rate, own.learning_rate),
        "ratio": (ratio, RATIO),
    }
    other = [f"{name} {value:g} (published: {usual:g})" for name, (value, usual) in values.items() if value != usual]
    lines += [f"Other than published: {', '.join(other)}."] if other else []
    noise = f" with noise_per_step {preset.step_noise:g} and noise_on_last_step on" if preset.step_noise else ""
    lines.append(
        f"For the whole published result also: Use Shared Noise{noise} in front of the sampler, {preset.steps} "
        f"sampling steps, CFG {preset.cfg:g}."
    )
    return lines


def bank_rule(preset: Preset, rule: Rule) -> Rule:
    """How the bank is made that goes with a prompt's rule: from it are kappa and, for SD1.5 and SD2.1, lambda."""
    diversity = rule.diversity if preset.bank_diversity is None else preset.bank_diversity
    own = replace(preset.rule, kappa=rule.kappa, diversity=diversity, group=preset.bank_group)
    # With a repulsion all rows move to the end; without one a row in the band has no gradient.
    return replace(own, freezing=False, steps=BANK_STEPS, past=False) if diversity > 0 else own


def draw_negative(
    clip: Any,
    text: str,
    count: int,
    seed: int,
    preset: Preset,
    rule: Rule,
    folder: Path,
    on_step: OnStep | None = None,
) -> tuple[list, list[Outcome]]:
    """CONDITIONING of so many rows of the bank, which this seed draws without replacement, and what they are in each
    encoder of the CLIP kind. `text` is blank. The bank is kept in a folder, and made where it is not there yet.

    Raises ValueError for more rows than the bank has, and for a CLIP without an encoder of the CLIP kind.
    """
    check_clip(clip)
    rows = drawn_rows(preset.bank_rows, count, seed)
    tokens = clip.tokenize(text)
    encoders = prompt_encoders(clip, tokens, "clip")
    for encoder in encoders:
        _set_up(encoder, preset, BANK_POSITIONS)
    _load(clip, encoders, preset.bank_rows)
    own_rule, outcomes = bank_rule(preset, rule), []
    for encoder, bank in zip(encoders, _banks(encoders, preset, own_rule, folder, on_step), strict=True):
        offsets = bank.offsets[rows].to(encoder.device)
        found = measured(encoder, encoder.vectors(torch.zeros_like(offsets[:1]))[0], offsets)
        if bank.course is not None:
            found = replace(found, cosines=bank.course[:, rows])
        inside = int(own_rule.in_band(bank.cosines).sum())
        note = (
            f"{count} of the bank's {len(bank.cosines)} blank prompts, of which {inside} are in the band, the lowest "
            f"at {bank.cosines.min():.3f}"
        )
        outcome = _outcome(encoder, own_rule, found, note)
        outcomes.append(replace(outcome, from_disk=bank.course is None, past=outcome.past and bank.course is not None))
    return _encoded(clip, tokens, encoders, {one.encoder: one.variants.offsets for one in outcomes}), outcomes


def _banks(
    encoders: Sequence[PromptEncoder], preset: Preset, rule: Rule, folder: Path, on_step: OnStep | None
) -> list[Bank]:
    count, paths = preset.bank_rows, [folder / f"{_key(encoder, preset, rule)}.safetensors" for encoder in encoders]
    found: list[Bank | None] = []
    for encoder, path in zip(encoders, paths, strict=True):
        shapes: dict[str, tuple[int, ...]] = {
            "offsets": (count, encoder.positions, encoder.width),
            "cosines": (count,),
        }
        stored = files.load(path, shapes)
        found.append(None if stored is None else Bank(stored["offsets"], stored["cosines"]))
    if all(bank is not None for bank in found):
        return [bank for bank in found if bank is not None]
    # The starts of all encoders come from one generator, one after the other.
    starts, banks = _starts(encoders, count, preset.bank_seed, rule), []
    for encoder, start, path, bank in zip(encoders, starts, paths, found, strict=True):
        if bank is None:
            variants = _optimised(encoder, start, rule, on_step)
            course = variants.cosines.cpu()
            bank = Bank(variants.offsets.cpu(), course[-1], course)
            files.keep(path, {"offsets": bank.offsets, "cosines": bank.cosines})
        banks.append(bank)
    return banks


def _key(encoder: PromptEncoder, preset: Preset, rule: Rule) -> str:
    # The blank prompt's own vector and embeddings stand for the encoder: any change of its weights shows in them.
    own = [encoder.reference(), encoder.sections[0].embeds[: encoder.sections[0].end + 1]]
    return files.key(own, "published bank", encoder.name, encoder.vector_name, preset.name, preset.bank_seed, rule)


def _set_up(encoder: PromptEncoder, preset: Preset, positions: int | None) -> None:
    # The paper says nothing of other encoders.
    if encoder.is_clip:
        encoder.vary_first(positions)
        encoder.layer = normed_layer(encoder.module) if preset.normed else None


def _load(clip: Any, encoders: Sequence[PromptEncoder], count: int) -> None:
    # More goes through in chunks.
    load_for_gradients(clip.patcher, encoders, min(count, 32))


def _starts(encoders: Sequence[PromptEncoder], count: int, seed: int, rule: Rule) -> list[Tensor]:
    """One generator for all encoders, as in the release."""
    generator = torch.Generator().manual_seed(seed)
    starts = [released_start(count, encoder.positions, encoder.width, generator) for encoder in encoders]
    return starts if rule.steps else [torch.zeros_like(start) for start in starts]


def _optimised(encoder: PromptEncoder, start: Tensor, rule: Rule, on_step: OnStep | None) -> Variants:
    def after(cosines: Tensor, spread: Tensor | None) -> None:
        if on_step is not None:
            on_step(encoder.name, cosines, spread)

    if rule.steps:
        # The start itself is so near the prompt that rounding would hide its gradient.
        tpso_search.require_gradient(encoder, RECOMMENDED_START * encoder.deviation / start.std() * start[:1])
    with gradients():
        start = start.to(encoder.device)
        reference = encoder.vectors(torch.zeros_like(start[:1]))[0]
        return optimise_as_released(start, reference, encoder, rule, after)


def _outcome(encoder: PromptEncoder, rule: Rule, variants: Variants, note: str) -> Outcome:
    past = rule.past and rule.freezing and rule.steps > 0
    return Outcome(encoder.name, encoder.vector_name, rule.kappa, variants, rule.tolerance, note=note, past=past)


def _encoded(clip: Any, tokens: dict[str, Any], encoders: Sequence[PromptEncoder], offsets: dict[str, Tensor]) -> list:
    count = len(next(iter(offsets.values())))
    chunk = min(encoder.chunk or count for encoder in encoders)
    with torch.no_grad():
        return encode_variants(clip, tokens, offsets, encoders, chunk)
