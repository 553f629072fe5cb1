"""Diverse Noise Options: how noise is optimised, what it starts from, and what the paper has besides."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.hooks.denoise import GRADIENTS
from ..core.methods.cno import DENOMINATORS, FORMS, PROJECTIONS, RECOMMENDED, TERMS
from ._inputs import AUTO, AUTO_NUMBER, checked, make_options, options_output

CATEGORY = "diversity/noise"
METHOD = "cno"
_DEFAULT = RECOMMENDED


class DiverseNoiseOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityCNOOptions",
            display_name="Diverse Noise Options",
            category=CATEGORY,
            description="More settings for the Diverse Noise nodes. They work without it.",
            inputs=[
                io.Combo.Input(
                    "gradient",
                    options=list(GRADIENTS),
                    default=GRADIENTS[0],
                    tooltip=(
                        '"stop": the network\'s output is held fixed within a step; cheap. "full": backpropagates '
                        "through the network; about twice the time and far more memory. With form release it "
                        "is always full."
                    ),
                ),
                io.Combo.Input(
                    "denominator",
                    options=[AUTO, *DENOMINATORS],
                    default=AUTO,
                    tooltip=(
                        'An image\'s own term in the denominator of the contrastive loss. "all": its similarity to '
                        'itself (the paper). "positive": its similarity to its first estimate (the paper\'s code); '
                        'more diverse, less faithful. "others": none. "auto" is all.'
                    ),
                ),
                io.Float.Input(
                    "temperature",
                    default=_DEFAULT.temperature,
                    min=0.01,
                    max=2.0,
                    step=0.01,
                    tooltip="Low: only the most similar images repel each other. High: all images do, equally.",
                ),
                io.Int.Input(
                    "window",
                    default=_DEFAULT.window,
                    min=1,
                    max=128,
                    tooltip=(
                        "Images are compared cell by cell on a grid of window x window cells. 1 compares the averages "
                        "of whole images."
                    ),
                ),
                io.Float.Input(
                    "gamma",
                    default=float(AUTO_NUMBER),
                    min=float(AUTO_NUMBER),
                    max=4.0,
                    step=0.01,
                    tooltip=(
                        "Temperature of the attraction to an image's first estimate, as a multiple of temperature; "
                        "lower attracts harder. -1: auto, 1 / (temperature * ln(batch - 1) + 1)."
                    ),
                ),
                io.Combo.Input(
                    "projection",
                    options=[AUTO, *PROJECTIONS],
                    default=AUTO,
                    tooltip=(
                        'What each noise keeps after every step. "spectrum": its energy in every frequency band. '
                        '"norm": its length. "off": nothing. "auto": norm in recommended mode, off in published mode.'
                    ),
                ),
                io.Int.Input(
                    "chunk_size",
                    default=AUTO_NUMBER,
                    min=AUTO_NUMBER,
                    max=4096,
                    tooltip=(
                        "Images that go through the model at once. -1: auto, all of them, and fewer when memory runs "
                        "out. All images of the batch repel each other at any chunk size."
                    ),
                ),
                io.Combo.Input(
                    "form",
                    options=list(FORMS),
                    default=FORMS[0],
                    optional=True,
                    tooltip=(
                        'Which published form, with mode published. "paper": all in the denominator, gamma in closed '
                        'form, the gradient stopped at the network. "release" (the paper\'s code): the positive in '
                        "the denominator, gamma 1, the full gradient, alphas taken one noise level late."
                    ),
                ),
                io.Combo.Input(
                    "terms",
                    options=list(TERMS),
                    default=TERMS[0],
                    optional=True,
                    tooltip=(
                        'The paper\'s ablations. "no attraction": nothing draws an image to its first estimate. "no '
                        'repulsion": nothing moves, since each image is where it is drawn to.'
                    ),
                ),
                io.Int.Input(
                    "cells",
                    default=AUTO_NUMBER,
                    min=AUTO_NUMBER,
                    max=128,
                    optional=True,
                    tooltip=(
                        "Only the coarse structure of the noise moves: its averages over a grid of cells x cells "
                        "blocks. More: finer structure. 0: all of it moves; set strength to 0.25 or less then. -1: "
                        "auto, 4 in recommended mode, 0 in published mode."
                    ),
                ),
                io.Float.Input(
                    "pink",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    tooltip=(
                        "More low frequencies in the noise before it is moved: its spectrum is 1 / f^pink. Costs no "
                        "time; with CFG it breaks more images. 0: off. With strength 0, pink noise alone."
                    ),
                ),
                io.Int.Input(
                    "candidates",
                    default=1,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip=(
                        "So many times as many noises as images are drawn, and the model's first estimates tell which "
                        "differ most; these are then moved. Images that differ by more than their noise (a prompt or "
                        "an image each) keep to their own. Each takes as long as one sampling step. 1: off. With "
                        "strength 0, the choice alone."
                    ),
                ),
                io.Float.Input(
                    "wide",
                    default=1.0,
                    min=1.0,
                    max=4.0,
                    step=0.05,
                    optional=True,
                    tooltip=(
                        "Before the noise is moved, its averages over 2 x 2 blocks are made so many times as large: "
                        "other layouts and tones, at no cost in time, for single images too. Above 2 more images "
                        "break. 1: off. With strength 0, wide noise alone."
                    ),
                ),
            ],
            outputs=[options_output(METHOD, "the Diverse Noise nodes")],
        )

    @classmethod
    @checked
    def execute(cls, **values: Any) -> io.NodeOutput:
        return make_options(METHOD, values)


NODES = [DiverseNoiseOptions]
