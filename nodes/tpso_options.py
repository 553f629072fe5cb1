"""Diverse Prompts Options: what else can be chosen of Diverse Prompts (TPSO)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.drivers.tpso_published import CHOICES
from ..core.hooks.text import KINDS
from ..core.methods.schedule import EASINGS, Window
from ..core.methods.tpso import Settings
from ..core.require import require
from ._inputs import (
    AUTO,
    AUTO_NUMBER,
    OFF,
    ON,
    RECOMMENDED,
    advanced,
    checked,
    make_options,
    optimiser_input,
    options_output,
)

SCHEDULES = (*EASINGS, OFF)
_DEFAULT, _WINDOW = Settings(), Window()
# What of these options goes with mode recommended; for the other values choose published.
_PUBLISHED_ALONE = {"preset": (AUTO,), "negative_bank": (AUTO, OFF), "published_diversity": (AUTO_NUMBER,)}


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


NODES = [DiversePromptsOptions]
