"""Diverse prompts: many conditionings of one prompt (TPSO), one for each picture of a batch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.drivers.schedule import can_blend, scheduled
from ..core.drivers.tpso import Outcome, one_variant, plain_conditioning, unvaried, vary_prompt
from ..core.hooks.progress import Progress, show
from ..core.hooks.prompt import text_encoders
from ..core.hooks.text import KINDS
from ..core.methods.schedule import EASINGS, Window
from ..core.methods.tpso import Settings
from ..core.plot import variants_plot
from ._inputs import advanced

NO_SCHEDULE = "none"
SCHEDULES = (*EASINGS, NO_SCHEDULE)
# The negative's variants do not depend on the seed, so that one bank serves all runs; another number than people
# choose, since equal seeds start the variants of both prompts off in the same direction.
_NEGATIVE_SEED = 0x7B50
_DEFAULT, _WINDOW = Settings(), Window()
# Chosen on the demo world: this keeps the prompt where words that are varied for longer lose it (docs/use/tpso.md).
ADDED_TOKENS, RATIO = 4, 0.2
# ComfyUI keeps folders with such a name to itself, even where several users share it.
_BANK = Path("__diversity", "variants")

_Control = getattr(io, "ControlAfterGenerate", None)


def _prompt_inputs() -> list[io.Input]:
    return [
        io.Clip.Input("clip", tooltip="Any text encoder."),
        io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="The prompt, as in CLIP Text Encode."),
        io.String.Input(
            "negative_text",
            multiline=True,
            dynamic_prompts=True,
            tooltip="The negative prompt. The same for all pictures, unless vary_negative is on.",
        ),
        io.Int.Input(
            "variants", default=4, min=1, max=1024, tooltip="How many: as many as the batch of the latent has pictures."
        ),
        io.Float.Input(
            "similarity",
            default=_DEFAULT.kappa,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=(
                "Cosine of every variant to the prompt (kappa). Lower: more different pictures. Too low: they stop "
                "following the prompt. 1: no difference."
            ),
        ),
        io.Float.Input(
            "ratio",
            default=RATIO,
            min=-1.0,
            max=1.0,
            step=0.05,
            tooltip=(
                "Share of the sampling steps over which the variants fade into the prompt itself. Higher: more "
                "different pictures. 0: the variants are never in force. Negative: a window at the end, which harms "
                "quality."
            ),
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            # Older versions of ComfyUI cannot say which.
            control_after_generate=True if _Control is None else _Control.fixed,
            tooltip="Which variants. Leave it on fixed: another seed for the sampler alone is quicker.",
        ),
    ]


def _advanced_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "tolerance",
            default=_DEFAULT.tolerance,
            min=0.001,
            max=0.5,
            step=0.001,
            tooltip="How near similarity a variant must come: half the width of the band around it.",
        ),
        io.Float.Input(
            "diversity",
            default=_DEFAULT.diversity,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip=(
                "Weight of the pull apart against the pull to similarity. With 0 the variants do not heed each other."
            ),
        ),
        io.Int.Input(
            "steps",
            default=_DEFAULT.steps,
            min=0,
            max=2000,
            tooltip="At most so many steps of optimisation; it stops by itself. 0: the variants are the prompt.",
        ),
        io.Float.Input(
            "learning_rate",
            default=0.0,
            min=0.0,
            max=10.0,
            step=0.0001,
            tooltip=(
                "How far a step goes. 0 chooses it by the size of the encoder's token embeddings, or 0.01 (published) "
                "where spread is off."
            ),
        ),
        io.Boolean.Input(
            "spread",
            default=_DEFAULT.spread,
            tooltip=(
                "On: at the chosen similarity the variants go on moving apart, as far as is possible there. Off: each "
                "stops where it first reaches it, as published."
            ),
        ),
        io.Combo.Input(
            "encoders",
            options=list(KINDS),
            default=KINDS[0],
            tooltip=(
                'Which text encoders of a CLIP with several are varied. "clip": those of the CLIP kind. "all": also '
                'T5, Qwen, Gemma, Llama ... "auto": those of the CLIP kind, or all where the model follows others '
                "(FLUX, Qwen-Image ...)."
            ),
        ),
        io.Combo.Input(
            "schedule",
            options=list(SCHEDULES),
            default=_WINDOW.easing,
            tooltip=(
                'How the variants fade over ratio: "linear", "smooth" (slowly at both ends), "hold" (fully in force, '
                'then not at all). "none": in force for the whole run; for a Schedule Conditioning behind this node.'
            ),
        ),
        io.Int.Input(
            "perturbed_steps",
            default=_WINDOW.steps,
            min=0,
            max=1000,
            tooltip=(
                "For few-step models: the number of sampling steps in which the variants have a share, in place of "
                "ratio (whose sign still says which end). 0: ratio decides."
            ),
        ),
        io.Boolean.Input(
            "vary_negative",
            default=False,
            tooltip=(
                "Varies the negative prompt too, with the same similarity and schedule (part of the published method). "
                "Its variants are kept on disk: only the first run takes longer."
            ),
        ),
        io.Int.Input(
            "pick",
            default=0,
            min=0,
            max=1024,
            tooltip="0: all variants. k: variant k alone, to make picture k of a batch again by itself.",
        ),
        io.Int.Input(
            "added_tokens",
            default=ADDED_TOKENS,
            min=0,
            max=64,
            tooltip=(
                "So many tokens are put behind the prompt, and the variants differ in these alone: the prompt's own "
                "words stay as they are, and are followed better. 0: the words themselves are varied, as published."
            ),
        ),
        io.Boolean.Input(
            "keep_words",
            default=False,
            tooltip=(
                "On: variants are held back from directions in which a word of the prompt gets lost or changes. Helps "
                "where the words themselves are varied (added_tokens 0). Off: any direction, as published."
            ),
        ),
    ]


class DiversePrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityTPSO",
            display_name="Diverse Prompts (TPSO)",
            category="diversity/conditioning",
            description=(
                "In place of CLIP Text Encode: a variant of the prompt for each picture of the batch, all equally "
                "near the prompt and as far apart from each other as that allows. Needs no patched model."
            ),
            inputs=[*_prompt_inputs(), *(advanced(widget) for widget in _advanced_inputs())],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="Variant k for picture k of the batch, fading into the prompt by its own schedule.",
                ),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt; varied if so chosen."),
                io.Conditioning.Output(
                    display_name="plain", tooltip="The prompt itself: exactly what CLIP Text Encode gives."
                ),
                io.Image.Output(
                    display_name="plot",
                    tooltip="Cosines between the variants, and their way to the chosen similarity; one for an encoder.",
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
        tolerance: float,
        diversity: float,
        steps: int,
        learning_rate: float,
        spread: bool,
        encoders: str,
        schedule: str,
        perturbed_steps: int,
        vary_negative: bool,
        pick: int,
        added_tokens: int = ADDED_TOKENS,
        keep_words: bool = False,
    ) -> io.NodeOutput:
        if clip is None:
            raise ValueError("clip is empty: the checkpoint holds no text encoder. Use one from Load CLIP.")
        if pick > variants:
            raise ValueError(f"pick is {pick}; it must be 0 (all) or 1 to {variants}, the number of variants.")
        settings = Settings(similarity, tolerance, diversity, steps, spread=spread)
        window = None if schedule == NO_SCHEDULE else Window(ratio, 0.0, schedule, perturbed_steps)
        varied = partial(
            _varied, clip, variants, settings, encoders, learning_rate or None, window, pick, added_tokens, keep_words
        )

        positive, plain, outcomes = varied(text, seed)
        if vary_negative:
            bank = Path(folder_paths.get_user_directory()) / _BANK
            try:
                negative, _, negative_outcomes = varied(negative_text, _NEGATIVE_SEED, bank)
            except ValueError as error:
                raise ValueError(f"negative_text cannot be varied: {error} Or switch vary_negative off.") from error
        else:
            negative, negative_outcomes = plain_conditioning(clip, clip.tokenize(negative_text)), []

        report = _report(clip, outcomes, negative_outcomes, encoders, similarity, window, variants, pick)
        if keep_words and not spread:
            report += "\nkeep_words does nothing where spread is off: the published rule keeps none."
        show(report)
        return io.NodeOutput(positive, negative, plain, _plots([*outcomes, *negative_outcomes]), report)


def _varied(
    clip: Any,
    count: int,
    settings: Settings,
    encoders: str,
    learning_rate: float | None,
    window: Window | None,
    pick: int,
    added: int,
    keep_words: bool,
    text: str,
    seed: int,
    bank: Path | None = None,
) -> tuple[list, list, list[Outcome]]:
    """Scheduled variants, the prompt itself, and what was found."""
    plain = plain_conditioning(clip, clip.tokenize(text))
    bar = _Bar(settings.steps)
    found, outcomes = vary_prompt(
        clip, text, count, seed, settings, encoders, learning_rate, bar, bank, added, keep_words
    )
    if pick:
        found = one_variant(found, pick - 1)
    if window is None:
        return found, plain, outcomes
    # Encoders that do not fill every text up to one length.
    between = unvaried(clip, text, encoders, added) if added and not can_blend(found, plain) else None
    return scheduled(found, plain, window, between=between), plain, outcomes


class _Bar:
    """A progress bar that begins anew with each text encoder."""

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
    pick: int,
) -> str:
    lines = [outcome.report for outcome in outcomes]
    varied = {outcome.encoder for outcome in outcomes}
    why = "it reads no word of this prompt" if encoders == "all" else "encoders = all varies it too"
    lines += [f"{name}: as it is ({why})" for name in text_encoders(clip) if name not in varied]
    lines += [f"negative, {outcome.report}" for outcome in negative]
    if similarity >= 1:
        lines.append("similarity is 1: all variants are the prompt itself.")
    lines.append(_schedule_line(window))
    if pick:
        lines.append(f"Variant {pick} of {variants} alone.")
    elif variants > 1:
        lines.append(f"For a batch of {variants} pictures.")
    return "\n".join(lines)


def _schedule_line(window: Window | None) -> str:
    if window is None:
        return "No schedule: the variants are in force for the whole run."
    if window.steps:
        length = f"{window.steps} {'step' if window.steps == 1 else 'steps'}"
    elif window.ratio == 0:
        return "ratio is 0: the variants are never in force, and every picture gets the prompt itself."
    else:
        length = f"{abs(window.ratio):.0%} of the steps"
    return f"In force over the {'last' if window.ratio < 0 else 'first'} {length} ({window.easing})."


NODES = [DiversePrompts]
