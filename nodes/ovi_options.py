"""Text to Vision Embedding Options: how the embedding is optimised, and when it is good enough."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ._inputs import AUTO, AUTO_NUMBER, OFF, ON, checked, make_options, options_output
from .image_bank import CATEGORY

METHOD = "ovi"
NAME, OPTIONS_NAME = "Text to Vision Embedding (OVI)", "Text to Vision Embedding Options"


class TextToVisionOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityOVIOptions",
            display_name="Text to Vision Embedding Options",
            category=CATEGORY,
            description="More settings for Text to Vision Embedding (OVI), which works without it.",
            # Saved workflows keep widgets by position: append, never reorder.
            inputs=[
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip=(
                        "Weight of the constraint, as a multiple of the one that gives the paper's cosines; in "
                        "published mode of the paper's own (0.5 for the nearest neighbour, 0.009 for Mahalanobis). "
                        "Higher: nearer to the bank and further from the text. Far too high: every text gives the same "
                        "embedding. 0: off."
                    ),
                ),
                io.Int.Input(
                    "tokens",
                    default=AUTO_NUMBER,
                    min=AUTO_NUMBER,
                    max=4096,
                    tooltip=(
                        "Pseudo-tokens that take the place of an image's patches, at most as many as the tower has "
                        "patches. More tokens come nearer to the text. -1: auto, 16, or 6 in published mode (which "
                        "has 1 to 6)."
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=AUTO_NUMBER,
                    min=AUTO_NUMBER,
                    max=10_000,
                    tooltip=(
                        "Optimisation steps. -1: auto, at most 500, fewer for a variant that no longer improves; in "
                        "published mode always 1000. 0: off, the random start."
                    ),
                ),
                io.Float.Input(
                    "learning_rate",
                    default=float(AUTO_NUMBER),
                    min=float(AUTO_NUMBER),
                    max=10.0,
                    step=0.001,
                    tooltip="How far a step moves a token's values. -1: auto, 0.02 as published.",
                ),
                io.Float.Input(
                    "target_cosine",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="A variant stops as soon as its cosine to the text reaches this. 0: off.",
                ),
                io.Combo.Input(
                    "match_length",
                    options=[AUTO, ON, OFF],
                    default=AUTO,
                    tooltip=(
                        '"on": the embedding is rescaled to the mean length of the bank\'s (without a bank: to the '
                        'negative\'s), which keeps the prompt better. "off": as the tower gives it, often shorter '
                        'than an image\'s. "auto": on, and off in published mode. Hidden states are not rescaled.'
                    ),
                ),
            ],
            outputs=[options_output(METHOD, NAME)],
        )

    @classmethod
    @checked
    def execute(cls, **values: Any) -> io.NodeOutput:
        return make_options(METHOD, values)


NODES = [TextToVisionOptions]
