"""Minority Prompt Options: when and how fast the token is learned, and what becomes of it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.drivers.minority_learning import Learning
from ..core.hooks.text import KINDS
from ..core.hooks.tokens import POSITIONS, STARTS
from ._inputs import AUTO, AUTO_NUMBER, OFF, ON, advanced, checked, make_options, optimiser_input, options_output

METHOD, NAME, OPTIONS_NAME = "minority", "Minority Prompt", "Minority Prompt Options"
_DEFAULT = Learning(clip=None, text="")


class MinorityPromptOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityMinorityPromptOptions",
            display_name=OPTIONS_NAME,
            category="diversity/conditioning",
            description=f"More settings of {NAME}: when and how fast the token is learned, and what becomes of it.",
            # Saved workflows keep widgets by position: append, never reorder.
            inputs=[*_common_options(), *(advanced(widget) for widget in (*_rare_options(), *_published_options()))],
            outputs=[options_output(METHOD, NAME)],
        )

    @classmethod
    @checked
    def execute(cls, **values: Any) -> io.NodeOutput:
        return make_options(METHOD, values)


def _common_options() -> list[io.Input]:
    return [
        io.Int.Input(
            "iterations",
            default=AUTO_NUMBER,
            min=AUTO_NUMBER,
            max=200,
            tooltip=(
                "Iterations at each sampling step that learns; each costs two passes through the model and two back. "
                "-1: the preset's. 0: plain prompt."
            ),
        ),
        io.Float.Input(
            "learning_rate",
            default=float(AUTO_NUMBER),
            min=float(AUTO_NUMBER),
            max=10.0,
            step=0.001,
            tooltip=(
                "How far an iteration moves the token's values, in standard deviations of the encoder's token "
                'embeddings; with mode "published", in their own unit. -1: the preset\'s. 0: plain prompt.'
            ),
        ),
        io.Float.Input(
            "start_percent",
            default=_DEFAULT.steps.start,
            min=0.0,
            max=0.99,
            step=0.01,
            tooltip="From here on in the model's noise schedule (0 is pure noise) the token is learned.",
        ),
        io.Float.Input(
            "end_percent",
            default=float(AUTO_NUMBER),
            min=float(AUTO_NUMBER),
            max=1.0,
            step=0.01,
            tooltip="Sampling steps that begin before this share of the noise schedule learn. -1: the preset's.",
        ),
        io.Float.Input(
            "keep_until",
            default=float(AUTO_NUMBER),
            min=float(AUTO_NUMBER),
            max=1.0,
            step=0.01,
            tooltip=(
                "Share of the noise schedule after which the plain prompt takes over, so that the image still follows "
                'it. Higher: rarer, and further from the prompt. -1: 0.15, or 1 with mode "published". 0: dropped as '
                "soon as it is not learned any more. 1: kept to the end."
            ),
        ),
        io.Float.Input(
            "similarity",
            default=_DEFAULT.similarity,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=(
                "Lower bound of the cosine between the prompt with the learned token and the prompt with the initial "
                "word. Higher: closer to the prompt. 0: off."
            ),
        ),
        io.Float.Input(
            "renoise",
            default=float(AUTO_NUMBER),
            min=float(AUTO_NUMBER),
            max=1.0,
            step=0.05,
            tooltip=(
                "How noisy the clean estimate is made again to see whether the model would come back to it, as a "
                "share of the noise schedule. -1: as noisy as the run has left behind, little at first; as published "
                "for base models 0.75."
            ),
        ),
        io.String.Input(
            "save_as",
            default="",
            tooltip=(
                "Name under which the learned token is saved, for embedding:name in any prompt; for a batch name_1, "
                "name_2 and so on. Goes to the folder embeddings/diversity. Empty: not saved."
            ),
        ),
    ]


def _rare_options() -> list[io.Input]:
    return [
        io.Int.Input(
            "every",
            default=_DEFAULT.steps.every,
            min=1,
            max=100,
            tooltip="Learns at every n-th of these sampling steps only; the others use the token as it is.",
        ),
        io.Combo.Input(
            "position",
            options=list(POSITIONS),
            default=_DEFAULT.position,
            tooltip="Whether the token goes to the end or the start of the prompt. The end is usually better.",
        ),
        io.Combo.Input(
            "encoders",
            options=list(KINDS),
            default=_DEFAULT.encoders,
            tooltip=(
                'Which text encoders get a token of their own. "clip": those of the CLIP kind. "all": also T5, Qwen, '
                'Gemma, Llama ... "auto": those of the CLIP kind, or all where the model follows others (FLUX, '
                "Qwen-Image ...)."
            ),
        ),
        io.Boolean.Input(
            "typical",
            default=_DEFAULT.settings.typical,
            tooltip="Descends the objective instead: more likely images, more alike.",
        ),
        io.Int.Input(
            "chunk_size",
            default=_DEFAULT.chunk_size,
            min=AUTO_NUMBER,
            max=4096,
            tooltip=(
                "Images that go through the models at once while the token is learned. -1: all, and fewer when memory "
                "runs out. Fewer take less memory and up to half as much time again."
            ),
        ),
        io.Boolean.Input(
            "checkpointing",
            default=_DEFAULT.checkpointing,
            tooltip=(
                "Gradient checkpointing: a fraction of the memory for up to a third more time. Begins by itself when "
                "memory runs out for a single image."
            ),
        ),
    ]


def _published_options() -> list[io.Input]:
    """What the released code has options for, and how the token is found."""
    return [
        io.Float.Input(
            "sg_lambda",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.05,
            optional=True,
            tooltip=(
                "Weight of the second term of the objective minority, the one whose gradient goes through the estimate "
                "under the prompt with the token."
            ),
        ),
        io.Float.Input(
            "lr_decay",
            default=_DEFAULT.settings.decay,
            min=0.0,
            max=1.0,
            step=0.001,
            optional=True,
            tooltip="At step n of the run, from 0, the learning rate is (1 - n * lr_decay) times that. 0: off.",
        ),
        io.Combo.Input(
            "start",
            options=list(STARTS),
            default=AUTO,
            optional=True,
            tooltip=(
                'Where the token starts. "auto": at initial_word, or at random where that is empty. The others are the '
                'code\'s. "word": initial_word. "default": standard normal, as new rows of an embedding table are. '
                '"gaussian": normal with mean and covariance of all the encoder\'s token embeddings. "white": with '
                'their variances alone. "random word": any token of the encoder.'
            ),
        ),
        io.Float.Input(
            "start_scale",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.05,
            optional=True,
            tooltip='Standard deviations of the starts "gaussian" and "white", as a multiple of the encoder\'s.',
        ),
        io.Combo.Input(
            "anneal",
            options=[AUTO, ON, OFF],
            default=AUTO,
            optional=True,
            tooltip=(
                'How noisy the clean estimate is made again. "on": as noisy as the run has left behind (t = T - t). '
                '"off": as renoise says, 0.75 where that is -1. "auto": off where renoise is set, and as published for '
                "base models; else on."
            ),
        ),
        io.Boolean.Input(
            "late_alphas",
            default=False,
            optional=True,
            tooltip=(
                "Reads clean estimates with the alphas of the noise level one below the network's timestep, as the "
                "paper's code does (0.6 % at the first step). For models with discrete timesteps (SD1.5, SD2, SDXL)."
            ),
        ),
        optimiser_input(
            "the token is searched by forward passes alone, for models and text encoders that give no gradient "
            "(compiled, activations quantised)",
            "Only with mode recommended. A search makes images far less rare and diverse",
        ),
    ]


NODES = [MinorityPromptOptions]
