"""What Diverse Prompts does in each of its modes, from its inputs to conditionings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
from torch import Tensor

from ..core.drivers.schedule import can_blend, scheduled
from ..core.drivers.tpso import (
    Outcome,
    Recipe,
    check_rows,
    one_variant,
    plain_conditioning,
    recommended,
    unvaried,
    vary_prompt,
)
from ..core.drivers.tpso_published import (
    BANK_STEPS,
    choose_preset,
    draw_negative,
    remarks,
    rule_of,
    vary_as_released,
)
from ..core.hooks.progress import Progress
from ..core.hooks.text import has_clip
from ..core.methods.schedule import ReleasedWindow, Window
from ..core.methods.tpso import Settings
from ..core.require import require
from ._inputs import AUTO, AUTO_NUMBER, OFF, ON, PUBLISHED
from .tpso_options import refuse_published_alone

# The negative's variants do not depend on the seed, so that every run finds them on disk. A number that people do not
# choose: with equal seeds the variants of both prompts would start in the same direction.
_NEGATIVE_SEED = 0x7B50
# ComfyUI does not serve folders with such a name, and they are kept apart from users' own.
_VARIANTS, _BANK = Path("__diversity", "variants"), Path("__diversity", "published_bank")

# What mode published takes of Diverse Prompts Options, and why nothing else; the other options may be changed, and the
# report says so.
_NOT_PUBLISHED: dict[str, tuple[tuple[Any, ...], str]] = {
    "added_tokens": ((-1, 0), ", which varies the prompt's own words; or choose mode recommended"),
    "keep_words": ((False,), ", which does not have it; or choose mode recommended"),
    "schedule": (("linear", OFF), ", whose weights are evenly spaced; or choose mode recommended"),
    "perturbed_steps": ((0,), ", whose window is ratio; or choose mode recommended"),
    "optimiser": ((AUTO, "gradient"), ", which follows the gradient; or choose mode recommended"),
}


@dataclass(frozen=True)
class Found:
    """Conditionings, what came out in each encoder, the schedule (None: without), and what the report says besides."""

    positive: list
    negative: list
    plain: list
    outcomes: list[Outcome]
    negative_outcomes: list[Outcome]
    window: Window | None
    remarks: list[str]


def run_recommended(
    clip: Any,
    text: str,
    negative_text: str,
    variants: int,
    similarity: float,
    ratio: float,
    seed: int,
    chosen: dict[str, Any],
) -> Found:
    refuse_published_alone(chosen)
    recipe = recommended(
        similarity,
        chosen["tolerance"],
        chosen["diversity"],
        _unless_auto(chosen["steps"]),
        _unless_auto(chosen["learning_rate"]),
        _unless_auto(chosen["added_tokens"]),
        chosen["keep_words"],
    )
    recipe = replace(recipe, optimiser=chosen["optimiser"])
    easing, encoders = chosen["schedule"], chosen["encoders"]
    window = None if easing == OFF else Window(ratio, 0.0, easing, chosen["perturbed_steps"])
    varied = partial(_varied, clip, variants, recipe, encoders, window, chosen["variant"])
    positive, plain, outcomes = varied(text, seed)
    if not chosen["vary_negative"]:
        return Found(positive, _encoded(clip, negative_text), plain, outcomes, [], window, [])
    try:
        negative, _, negative_outcomes = varied(negative_text, _NEGATIVE_SEED, _user_folder(_VARIANTS))
    except ValueError as error:
        raise ValueError(f"negative_text cannot be varied: {error} Or switch vary_negative off.") from error
    return Found(positive, negative, plain, outcomes, negative_outcomes, window, [])


def run_published(
    clip: Any,
    text: str,
    negative_text: str,
    variants: int,
    similarity: float,
    ratio: float,
    seed: int,
    chosen: dict[str, Any],
) -> Found:
    for name, (values, why) in _NOT_PUBLISHED.items():
        shown = " or ".join(_shown(value) for value in values)
        require(chosen[name] in values, name, _shown(chosen[name]), f"{shown} with mode {PUBLISHED}{why}")
    preset, why = choose_preset(clip, chosen["preset"])
    diversity = _unless_auto(chosen["published_diversity"])
    if diversity is None and chosen["diversity"] != Settings().diversity:
        diversity = chosen["diversity"]
    steps, rate = _unless_auto(chosen["steps"]), _unless_auto(chosen["learning_rate"])
    rule = rule_of(preset, similarity, chosen["tolerance"], diversity, steps, rate)
    window = None if chosen["schedule"] == OFF else ReleasedWindow(ratio)
    with_bank, no_bank = _from_bank(clip, negative_text, chosen)
    allowed = f"1 to {preset.bank_rows}, the number of negatives in the bank; or switch negative_bank off"
    require(not with_bank or 1 <= variants <= preset.bank_rows, "variants", variants, allowed)

    def in_force(varied: list, plain: list) -> list:
        if variant := chosen["variant"]:
            varied = one_variant(varied, variant - 1)
        return varied if window is None else scheduled(varied, plain, window)

    plain, plain_negative = _encoded(clip, text), _encoded(clip, negative_text)
    check_rows(plain, 1 if chosen["variant"] else variants)
    on_step = _Bar(max(rule.steps, 1))
    varied, outcomes = vary_as_released(clip, text, variants, seed, preset, rule, chosen["encoders"], on_step)
    lines = remarks(clip, text, preset, why, rule, ratio, outcomes)
    if not with_bank:
        return Found(in_force(varied, plain), plain_negative, plain, outcomes, [], window, [*lines, no_bank])
    folder, on_step = _user_folder(_BANK), _Bar(BANK_STEPS)
    drawn, drawn_outcomes = draw_negative(clip, negative_text, variants, seed, preset, rule, folder, on_step)
    negative = in_force(drawn, plain_negative)
    return Found(in_force(varied, plain), negative, plain, outcomes, drawn_outcomes, window, lines)


def _from_bank(clip: Any, negative_text: str, chosen: dict[str, Any]) -> tuple[bool, str]:
    """Whether the negative is from the bank of blank prompts; if not, how that differs from the paper."""
    bank = chosen["negative_bank"]
    wanted = bank == ON or chosen["vary_negative"]
    require(not (bank == OFF and chosen["vary_negative"]), "negative_bank", bank, "auto or on with vary_negative on")
    if negative_text.strip():
        allowed = f"empty with mode {PUBLISHED}, whose negatives are blank prompts; or switch "
        allowed += "negative_bank to auto" if bank == ON else "vary_negative off"
        require(not wanted, "negative_text", negative_text, allowed)
        return (
            False,
            "Other than published: a negative prompt with words, not varied (published: blank, varied).",
        )
    if not has_clip(clip):
        name, value = ("negative_bank", bank) if bank == ON else ("vary_negative", ON)
        require(not wanted, name, value, f"off with mode {PUBLISHED} and this text encoder, which is not a CLIP")
        return False, "The negative is not varied: there is no bank for a text encoder that is not a CLIP."
    return bank != OFF, "Other than published: the negative is not varied (negative_bank is off)."


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return ON if value else OFF
    return "-1 (auto)" if value == AUTO_NUMBER else str(value)


def _unless_auto(value: Any) -> Any:
    return None if value == AUTO_NUMBER else value


def _user_folder(name: Path) -> Path:
    return Path(folder_paths.get_user_directory()) / name


def _encoded(clip: Any, text: str) -> list:
    return plain_conditioning(clip, clip.tokenize(text))


def _varied(
    clip: Any,
    count: int,
    recipe: Recipe,
    encoders: str,
    window: Window | None,
    variant: int,
    text: str,
    seed: int,
    bank: Path | None = None,
) -> tuple[list, list, list[Outcome]]:
    """Scheduled variants, the prompt itself, and what came out in each encoder."""
    plain = _encoded(clip, text)
    check_rows(plain, 1 if variant else count)
    found, outcomes = vary_prompt(clip, text, count, seed, recipe, encoders, _Bar(recipe.settings.steps), bank)
    if variant:
        found = one_variant(found, variant - 1)
    if window is None:
        return found, plain, outcomes
    # Encoders that do not pad every text to one length need a prompt of the variants' length to fade into.
    added = recipe.added_tokens
    between = unvaried(clip, text, encoders, added) if added and not can_blend(found, plain) else None
    return scheduled(found, plain, window, between=between), plain, outcomes


class _Bar:
    """A progress bar that starts again with each text encoder."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._encoder = ""

    def __call__(self, encoder: str, cosines: Tensor, spread: Tensor | None) -> None:
        if encoder != self._encoder:
            self._encoder, self._progress = encoder, Progress(self._steps)
        apart = "" if spread is None else f", between variants {spread:.3f}"
        self._progress.step(f"{encoder}: cosine to the prompt {cosines.mean():.3f}{apart}")
