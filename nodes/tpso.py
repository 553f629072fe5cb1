"""Diverse Prompts: conditionings of the variants of one prompt (TPSO), one for each image of a batch."""

from __future__ import annotations

from dataclasses import replace
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
    published,
    recommended,
    unvaried,
    vary_prompt,
)
from ..core.hooks.progress import Progress, show
from ..core.hooks.prompt import text_encoders
from ..core.hooks.text import KINDS
from ..core.methods.schedule import EASINGS, Window
from ..core.methods.tpso import Settings
from ..core.plot import variants_plot
from ..core.require import require
from ._inputs import (
    AUTO_NUMBER,
    OFF,
    PUBLISHED,
    RECOMMENDED,
    CheckedNode,
    Options,
    advanced,
    check_choices,
    make_options,
    mode_input,
    optimiser_input,
    options_input,
    options_output,
    read_options,
)

SCHEDULES = (*EASINGS, OFF)
# The negative's variants do not depend on the seed, so that every run finds them on disk. A number that people do not
# choose: with equal seeds the variants of both prompts would start in the same direction.
_NEGATIVE_SEED = 0x7B50
_DEFAULT, _WINDOW = Settings(), Window()
RATIO = 0.2  # chosen on the demo world (docs/use/tpso.md)
# ComfyUI does not serve folders with such a name, and they are kept apart from users' own.
_BANK = Path("__diversity", "variants")

_Control = getattr(io, "ControlAfterGenerate", None)


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
                        "variants are the prompt itself. -1 (auto): 60 with mode recommended, 50 with published."
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
                optimiser_input(
                    "the variants are searched by forward passes alone, for text encoders that give no gradient "
                    "(compiled, activations quantised)",
                    "Only with mode recommended. With added tokens a search spreads the variants less",
                ),
            ],
            outputs=[options_output("TPSO", "Diverse Prompts (TPSO)")],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        return make_options(cls, "TPSO", values)


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
                    "the paper's rule, which varies the prompt's own words and stops each variant where it first "
                    "reaches similarity. The paper also has ratio 0.4 and vary_negative on."
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
        if clip is None:
            raise ValueError("clip is empty: the checkpoint holds no text encoder. Use one from Load CLIP.")
        check_choices(cls, {"mode": mode})
        chosen = read_options(DiversePromptsOptions, options)
        variant = chosen["variant"]
        require(variant <= variants, "variant", variant, f"0 (all) or 1 to {variants}, the number of variants")
        recipe = replace(_recipe(mode, similarity, chosen), optimiser=chosen["optimiser"])
        easing = chosen["schedule"]
        window = None if easing == OFF else Window(ratio, 0.0, easing, chosen["perturbed_steps"])
        encoders = chosen["encoders"]
        varied = partial(_varied, clip, variants, recipe, encoders, window, variant)

        positive, plain, outcomes = varied(text, seed)
        if chosen["vary_negative"]:
            bank = Path(folder_paths.get_user_directory()) / _BANK
            try:
                negative, _, negative_outcomes = varied(negative_text, _NEGATIVE_SEED, bank)
            except ValueError as error:
                raise ValueError(f"negative_text cannot be varied: {error} Or switch vary_negative off.") from error
        else:
            negative, negative_outcomes = plain_conditioning(clip, clip.tokenize(negative_text)), []

        report = _report(clip, outcomes, negative_outcomes, encoders, similarity, window, variants, variant)
        show(report)
        return io.NodeOutput(positive, negative, plain, _plots([*outcomes, *negative_outcomes]), report)


def _recipe(mode: str, similarity: float, options: dict[str, Any]) -> Recipe:
    choose = published if mode == PUBLISHED else recommended
    return choose(
        similarity,
        options["tolerance"],
        options["diversity"],
        _unless_auto(options["steps"]),
        _unless_auto(options["learning_rate"]),
        _unless_auto(options["added_tokens"]),
        options["keep_words"],
    )


def _unless_auto(value: Any) -> Any:
    return None if value == AUTO_NUMBER else value


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
    plain = plain_conditioning(clip, clip.tokenize(text))
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


def _report(
    clip: Any,
    outcomes: list[Outcome],
    negative: list[Outcome],
    encoders: str,
    similarity: float,
    window: Window | None,
    variants: int,
    variant: int,
) -> str:
    lines = [outcome.report for outcome in outcomes]
    varied = {outcome.encoder for outcome in outcomes}
    why = "it reads no word of this prompt" if encoders == "all" else "encoders = all varies it too"
    lines += [f"{name}: as it is ({why})" for name in text_encoders(clip) if name not in varied]
    lines += [f"negative, {outcome.report}" for outcome in negative]
    if similarity >= 1:
        lines.append("similarity is 1: all variants are the prompt itself.")
    lines.append(_schedule_line(window))
    if variant:
        lines.append(f"Variant {variant} of {variants} alone.")
    elif variants > 1:
        lines.append(f"For a batch of {variants} images.")
    return "\n".join(lines)


def _schedule_line(window: Window | None) -> str:
    if window is None:
        return "No schedule: the variants are in force for the whole run."
    if window.steps:
        length = f"{window.steps} {'step' if window.steps == 1 else 'steps'}"
    elif window.ratio == 0:
        return "ratio is 0: the variants are never in force, and every image gets the prompt itself."
    else:
        length = f"{abs(window.ratio):.0%} of the steps"
    return f"In force over the {'last' if window.ratio < 0 else 'first'} {length} ({window.easing})."


NODES = [DiversePrompts, DiversePromptsOptions]
