"""Diverse Prompts: conditionings of the variants of one prompt (TPSO), one for each image of a batch."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..core.drivers.tpso import Outcome
from ..core.hooks.progress import show
from ..core.hooks.prompt import text_encoders
from ..core.methods.schedule import ReleasedWindow, Window
from ..core.methods.tpso import Settings
from ..core.plot import variants_plot
from ..core.require import require
from ._inputs import (
    PUBLISHED,
    RECOMMENDED,
    CheckedNode,
    Options,
    check_clip,
    checked,
    mode_input,
    options_input,
    read_options,
)
from ._tpso_runs import Found, run_published, run_recommended
from .tpso_options import DiversePromptsOptions

RATIO = 0.2  # chosen on the demo world (docs/use/tpso.md)

_Control = getattr(io, "ControlAfterGenerate", None)


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
                    default=Settings().kappa,
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
        run = run_published if mode == PUBLISHED else run_recommended
        found = run(clip, text, negative_text, variants, similarity, ratio, seed, chosen)
        report = _report(clip, found, chosen["encoders"], similarity, variants, variant)
        show(report)
        plots = _plots([*found.outcomes, *found.negative_outcomes])
        return io.NodeOutput(found.positive, found.negative, found.plain, plots, report)


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


def _report(clip: Any, found: Found, encoders: str, similarity: float, variants: int, variant: int) -> str:
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


NODES = [DiversePrompts]
