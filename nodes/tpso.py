"""Diverse Prompts: conditionings of the variants of one prompt (TPSO), one for each image of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io
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
    CHOICES,
    choose_preset,
    draw_negative,
    remarks,
    rule_of,
    vary_as_released,
)
from ..core.hooks.progress import Progress, show
from ..core.hooks.prompt import text_encoders
from ..core.hooks.text import KINDS, has_clip
from ..core.methods.schedule import EASINGS, ReleasedWindow, Window
from ..core.methods.tpso import Settings
from ..core.plot import variants_plot
from ..core.require import require
from ._inputs import (
    AUTO,
    AUTO_NUMBER,
    OFF,
    PUBLISHED,
    RECOMMENDED,
    CheckedNode,
    Options,
    advanced,
    check_clip,
    checked,
    make_options,
    mode_input,
    optimiser_input,
    options_input,
    options_output,
    read_options,
)

ON = "on"
SCHEDULES = (*EASINGS, OFF)
# The negative's variants do not depend on the seed, so that every run finds them on disk. A number that people do not
# choose: with equal seeds the variants of both prompts would start in the same direction.
_NEGATIVE_SEED = 0x7B50
_DEFAULT, _WINDOW = Settings(), Window()
RATIO = 0.2  # chosen on the demo world (docs/use/tpso.md)
# ComfyUI does not serve folders with such a name, and they are kept apart from users' own.
_VARIANTS, _BANK = Path("__diversity", "variants"), Path("__diversity", "published_bank")

# What mode published takes of these options, and why nothing else; the others may be changed, and the report says so.
_NOT_PUBLISHED: dict[str, tuple[tuple[Any, ...], str]] = {
    "added_tokens": ((-1, 0), ", which varies the prompt's own words; or choose mode recommended"),
    "keep_words": ((False,), ", which does not have it; or choose mode recommended"),
    "schedule": (("linear", OFF), ", whose weights are evenly spaced; or choose mode recommended"),
    "perturbed_steps": ((0,), ", whose window is ratio; or choose mode recommended"),
    "optimiser": ((AUTO, "gradient"), ", which follows the gradient; or choose mode recommended"),
}
# What of these options goes with mode recommended; for the other values choose published.
_PUBLISHED_ALONE = {"preset": (AUTO,), "negative_bank": (AUTO, OFF), "published_diversity": (AUTO_NUMBER,)}

_Control = getattr(io, "ControlAfterGenerate", None)


def refuse_published_alone(chosen: dict[str, Any], where: str = f"with mode {RECOMMENDED}, which has none") -> None:
    """Raises ValueError for an option that mode published alone has; `where` it is not, in words."""
    for name, default in _PUBLISHED_ALONE.items():
        require(chosen[name] in default, name, chosen[name], f"{default[0]} {where}")


class DiversePromptsOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityTPSOOptions",
            display_name="Diverse Prompts Options",
            category="diversity/conditioning",
            description="More settings for Diverse Prompts (TPSO): what is varied, how, and when it is in force.",
            inputs=[
                io.Int.Input(
                    "added_tokens",
                    default=AUTO_NUMBER,
                    min=AUTO_NUMBER,
                    max=64,
                    tooltip=(
                        "Number of tokens appended to the prompt; only these are varied, so that the prompt's own "
                        "words keep their meaning. 0: the prompt's words themselves are varied, as in the paper. "
                        "-1 (auto): 4 with mode recommended, 0 with published."
                    ),
                ),
                io.Boolean.Input(
                    "keep_words",
                    default=False,
                    tooltip=(
                        "Keeps the variants away from prompts in which a word is missing or is another one. Useful "
                        "with added_tokens 0. Only with mode recommended."
                    ),
                ),
                io.Combo.Input(
                    "encoders",
                    options=list(KINDS),
                    default=KINDS[0],
                    tooltip=(
                        'Which text encoders of a CLIP with several are varied. "clip": those of the CLIP kind. '
                        '"all": also T5, Qwen, Gemma, Llama ... "auto": those of the CLIP kind, or all where the model '
                        "follows others (FLUX, Qwen-Image ...)."
                    ),
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default=_WINDOW.easing,
                    tooltip=(
                        'How the variants fade into the prompt over ratio: "linear", "smooth" (slowly at both ends), '
                        '"hold" (fully in force, then not at all). "off": in force for the whole run; for Schedule '
                        "Conditioning behind this node."
                    ),
                ),
                io.Int.Input(
                    "perturbed_steps",
                    default=_WINDOW.steps,
                    min=0,
                    max=1000,
                    tooltip=(
                        "For few-step models: number of sampling steps in which the variants are in force, in place "
                        "of ratio (whose sign still chooses the end). 0 (off): ratio decides."
                    ),
                ),
                io.Boolean.Input(
                    "vary_negative",
                    default=False,
                    tooltip=(
                        "Varies the negative prompt too, with the same similarity and schedule, as in the paper. Its "
                        "variants are stored on disk: only the first run takes longer."
                    ),
                ),
                io.Int.Input(
                    "variant",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Gives this variant alone, to make one image of a batch again. 0: all variants.",
                ),
                io.Int.Input(
                    "steps",
                    default=AUTO_NUMBER,
                    min=AUTO_NUMBER,
                    max=2000,
                    tooltip=(
                        "Maximum number of optimisation steps; it ends earlier when nothing is left to gain. 0: the "
                        "variants are the prompt itself. -1 (auto): 60 with mode recommended; with published the "
                        "preset's number of encodings, which is one more than steps: 50, or 200 for SD3.5."
                    ),
                ),
                advanced(
                    io.Float.Input(
                        "tolerance",
                        default=_DEFAULT.tolerance,
                        min=0.001,
                        max=0.5,
                        step=0.001,
                        tooltip="How far from similarity a variant may be.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "diversity",
                        default=_DEFAULT.diversity,
                        min=0.0,
                        max=100.0,
                        step=0.1,
                        tooltip="Weight of the repulsion between variants. 0 (off): each is optimised by itself.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "learning_rate",
                        default=float(AUTO_NUMBER),
                        min=float(AUTO_NUMBER),
                        max=10.0,
                        step=0.0001,
                        tooltip=(
                            "Learning rate of the optimisation. -1 (auto): by the size of the encoder's token "
                            "embeddings with mode recommended, 0.01 with published."
                        ),
                    )
                ),
                io.Combo.Input(
                    "preset",
                    options=list(CHOICES),
                    default=AUTO,
                    optional=True,
                    tooltip=(
                        'Only with mode published: "sd15" is the released rule for SD1.5 and SD2.1, "sd35" that for '
                        'SD3.5. "auto": by the text encoder; the report says which.'
                    ),
                ),
                io.Combo.Input(
                    "negative_bank",
                    options=[AUTO, ON, OFF],
                    default=AUTO,
                    optional=True,
                    tooltip=(
                        "Only with mode published: the negative is drawn from a bank of optimised blank prompts. "
                        '"auto": where negative_text is empty. The bank is made once, and stored on disk.'
                    ),
                ),
                advanced(
                    io.Float.Input(
                        "published_diversity",
                        default=float(AUTO_NUMBER),
                        min=float(AUTO_NUMBER),
                        max=100.0,
                        step=0.1,
                        optional=True,
                        tooltip=(
                            "Weight of the repulsion with mode published (the paper's lambda). -1 (auto): diversity "
                            "where that is not at its default, else the preset's: 1 for SD1.5 and SD2.1, 10 for SD3.5."
                        ),
                    )
                ),
                optimiser_input(
                    "the variants are searched by forward passes alone, for text encoders that give no gradient "
                    "(compiled, activations quantised)",
                    "Only with mode recommended. With added tokens a search spreads the variants less",
                ),
            ],
            outputs=[options_output("TPSO", "Diverse Prompts (TPSO)")],
        )

    @classmethod
    @checked
    def execute(cls, **values: Any) -> io.NodeOutput:
        return make_options("TPSO", values)


class DiversePrompts(CheckedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityTPSO",
            display_name="Diverse Prompts (TPSO)",
            category="diversity/conditioning",
            description=(
                "In place of CLIP Text Encode: a variant of the prompt for each image of the batch, all equally "
                "near the prompt and as far apart from each other as that allows. Needs no patched model."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="Any text encoder."),
                io.String.Input(
                    "text", multiline=True, dynamic_prompts=True, tooltip="The prompt, as in CLIP Text Encode."
                ),
                io.String.Input(
                    "negative_text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The negative prompt. The same for all images, unless vary_negative is on in the options.",
                ),
                io.Int.Input("variants", default=4, min=1, max=1024, tooltip="How many: the batch size of the latent."),
                io.Float.Input(
                    "similarity",
                    default=_DEFAULT.kappa,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Cosine of every variant to the prompt (the paper's kappa). Lower: more diverse images, which "
                        "follow the prompt less. 1: the variants are the prompt itself."
                    ),
                ),
                io.Float.Input(
                    "ratio",
                    default=RATIO,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "Share of the sampling steps over which the variants fade into the prompt itself (the paper: "
                        "0.4). Higher: more diverse images. 0 (off): the variants are never in force. Negative: at "
                        "the end of the run, which harms quality."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    # Older versions of ComfyUI cannot say which.
                    control_after_generate=True if _Control is None else _Control.fixed,
                    tooltip="Which variants. Leave it fixed and change the sampler's seed: then the variants are kept.",
                ),
                mode_input(
                    "what the paper's released code does, step for step, with the negative from its bank; the paper's "
                    "ratio is 0.4. The report says what else to connect."
                ),
                options_input("TPSO", "Diverse Prompts Options"),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="Variant k for image k of the batch, fading into the prompt by its own schedule.",
                ),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt; varied if so chosen."),
                io.Conditioning.Output(
                    display_name="plain", tooltip="The prompt itself: exactly what CLIP Text Encode gives."
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip=(
                        "For each encoder the cosines between the variants, and their cosine to the prompt by step."
                    ),
                ),
                io.String.Output(display_name="report", tooltip="What was done and reached, in words."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        clip: Any,
        text: str,
        negative_text: str,
        variants: int,
        similarity: float,
        ratio: float,
        seed: int,
        mode: str = RECOMMENDED,
        options: Options | None = None,
    ) -> io.NodeOutput:
        check_clip(clip)
        chosen = read_options(DiversePromptsOptions, options)
        variant = chosen["variant"]
        require(variant <= variants, "variant", variant, f"0 (all) or 1 to {variants}, the number of variants")
        run = _published if mode == PUBLISHED else _recommended
        found = run(clip, text, negative_text, variants, similarity, ratio, seed, chosen)
        report = _report(clip, found, chosen["encoders"], similarity, variants, variant)
        show(report)
        plots = _plots([*found.outcomes, *found.negative_outcomes])
        return io.NodeOutput(found.positive, found.negative, found.plain, plots, report)


@dataclass(frozen=True)
class _Found:
    """Conditionings, what came out in each encoder, the schedule (None: without), and what the report says besides."""

    positive: list
    negative: list
    plain: list
    outcomes: list[Outcome]
    negative_outcomes: list[Outcome]
    window: Window | None
    remarks: list[str]


def _recommended(
    clip: Any,
    text: str,
    negative_text: str,
    variants: int,
    similarity: float,
    ratio: float,
    seed: int,
    chosen: dict[str, Any],
) -> _Found:
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
        return _Found(positive, _encoded(clip, negative_text), plain, outcomes, [], window, [])
    try:
        negative, _, negative_outcomes = varied(negative_text, _NEGATIVE_SEED, _user_folder(_VARIANTS))
    except ValueError as error:
        raise ValueError(f"negative_text cannot be varied: {error} Or switch vary_negative off.") from error
    return _Found(positive, negative, plain, outcomes, negative_outcomes, window, [])


def _published(
    clip: Any,
    text: str,
    negative_text: str,
    variants: int,
    similarity: float,
    ratio: float,
    seed: int,
    chosen: dict[str, Any],
) -> _Found:
    for name, (values, why) in _NOT_PUBLISHED.items():
        shown = " or ".join(_shown(value) for value in values)
        require(chosen[name] in values, name, _shown(chosen[name]), f"{shown} with mode {PUBLISHED}{why}")
    preset, why = choose_preset(clip, chosen["preset"])
    diversity = _unless_auto(chosen["published_diversity"])
    if diversity is None and chosen["diversity"] != _DEFAULT.diversity:
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
        return _Found(in_force(varied, plain), plain_negative, plain, outcomes, [], window, [*lines, no_bank])
    folder, on_step = _user_folder(_BANK), _Bar(BANK_STEPS)
    drawn, drawn_outcomes = draw_negative(clip, negative_text, variants, seed, preset, rule, folder, on_step)
    negative = in_force(drawn, plain_negative)
    return _Found(in_force(varied, plain), negative, plain, outcomes, drawn_outcomes, window, lines)


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


def _plots(outcomes: list[Outcome]) -> Tensor:
    return torch.cat(
        [
            variants_plot(
                outcome.variants.pairwise.cpu(),
                outcome.variants.cosines.cpu(),
                outcome.kappa,
                f"{outcome.encoder} ({outcome.vector})",
            )
            for outcome in outcomes
        ]
    )


def _report(clip: Any, found: _Found, encoders: str, similarity: float, variants: int, variant: int) -> str:
    lines = [outcome.report for outcome in found.outcomes]
    varied = {outcome.encoder for outcome in found.outcomes}
    why = "it reads no word of this prompt" if encoders == "all" else "encoders = all varies it too"
    lines += [f"{name}: as it is ({why})" for name in text_encoders(clip) if name not in varied]
    lines += [f"negative, {outcome.report}" for outcome in found.negative_outcomes]
    if similarity >= 1:
        lines.append("similarity is 1: all variants are the prompt itself.")
    lines.append(_schedule_line(found.window))
    if variant:
        lines.append(f"Variant {variant} of {variants} alone.")
    elif variants > 1:
        lines.append(f"For a batch of {variants} images.")
    return "\n".join([*lines, *found.remarks])


def _schedule_line(window: Window | None) -> str:
    if window is None:
        return "No schedule: the variants are in force for the whole run."
    if window.steps:
        length = f"{window.steps} {'step' if window.steps == 1 else 'steps'}"
    elif window.ratio == 0:
        return "ratio is 0: the variants are never in force, and every image gets the prompt itself."
    else:
        length = f"{abs(window.ratio):.0%} of the steps"
    how = "linspace, 0 at the last of them" if isinstance(window, ReleasedWindow) else window.easing
    return f"In force over the {'last' if window.ratio < 0 else 'first'} {length} ({how})."


NODES = [DiversePrompts, DiversePromptsOptions]
