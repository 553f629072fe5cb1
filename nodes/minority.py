"""Rare images: a token learned while sampling (MinorityPrompt), as a model patch with its conditioning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..core.drivers.minority import to_learn, with_learning
from ..core.drivers.minority_learning import Learning
from ..core.hooks.text import KINDS
from ..core.hooks.tokens import POSITIONS, STARTS
from ..core.methods.minority import (
    FIXED_LEVEL,
    OBJECTIVES,
    PRESETS,
    Preset,
    Settings,
    Steps,
    check_published,
    objective_of,
    preset_of,
)
from ..core.require import require
from ._inputs import (
    AUTO,
    AUTO_NUMBER,
    OFF,
    ON,
    PUBLISHED,
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

_METHOD, _NAME, _OPTIONS_NAME = "minority", "Minority Prompt", "Minority Prompt Options"
_DEFAULT = Learning(clip=None, text="")
_ALLOWED = re.compile(r"[\w-]{0,64}")
_SUBFOLDER = "diversity"


class MinorityPrompt(CheckedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityMinorityPrompt",
            display_name=_NAME,
            category="diversity/conditioning",
            description=(
                "Images from the rare side of what the model knows: while the sampler runs, each image learns a token "
                "at the end of its prompt that leads away from the usual. Goes between model, CLIP and any sampler."
            ),
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model."),
                io.Clip.Input("clip", tooltip="The text encoder of the prompt."),
                io.String.Input(
                    "text", multiline=True, dynamic_prompts=True, tooltip="The prompt, as in CLIP Text Encode."
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS[PUBLISHED]),
                    default=next(iter(PRESETS[PUBLISHED])),
                    tooltip=(
                        '"base model": learns at the steps in the first tenth of the noise schedule. "few-step model" '
                        "(Lightning, Turbo, distilled): learns more, at the first step alone. Sets all that the "
                        "options leave at -1. With mode published: the paper's settings for SD1.5 and SD2, those for "
                        'SDXL-Lightning on COCO, and "SDXL-Lightning, one image", for that mode alone, those of the '
                        'code\'s other script, which starts at "handsome" in place of "cool".'
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip=(
                        "How fast the token is learned, as a multiple of the learning rate. Higher: rarer; too high: "
                        "images stop following the prompt. 0 changes nothing: plain prompt."
                    ),
                ),
                io.String.Input(
                    "initial_word",
                    default=_DEFAULT.word,
                    tooltip=(
                        "Where the token starts: a word that fits any image. Several words, or an embedding:name, are "
                        "several tokens. Empty: at random, elsewhere for each image."
                    ),
                ),
                io.Combo.Input(
                    "objective",
                    options=list(OBJECTIVES),
                    default=next(iter(OBJECTIVES)),
                    tooltip=(
                        'What the token is learned for. "minority": images that the model holds for unlikely. '
                        '"diversity": images that differ within the batch. "both": the sum.'
                    ),
                ),
                mode_input(
                    "what the paper's code does: its iterations, steps, noise levels and learning rate (in the "
                    "embeddings' own unit), and a token that is kept to the end. Rarer, and much further from the "
                    "prompt."
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip=(
                        "The same text encoded already, where something is attached to it (ControlNet, area ...). "
                        "Empty: the node encodes the text."
                    ),
                ),
                options_input(_METHOD, _OPTIONS_NAME),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The same model; samplers learn the token on the way."),
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="The plain prompt, which carries what is to be learned. Connect both outputs.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        clip: Any,
        text: str,
        preset: str,
        strength: float,
        initial_word: str,
        objective: str,
        mode: str,
        positive: list | None = None,
        options: Options | None = None,
    ) -> io.NodeOutput:
        check_clip(clip)
        chosen, own = preset_of(mode, preset), read_options(MinorityPromptOptions, options)
        keep_until, published = _or(own["keep_until"], chosen.keep_until), mode == PUBLISHED
        word, start = initial_word, own["start"]
        if published:
            check_published(objective, keep_until, own["similarity"], own["typical"])
            # The widget's own default stands for the script's word.
            word = chosen.word if word == _DEFAULT.word else word
            start = start if start != AUTO else "word" if word.strip() else "default"
        learning = Learning(
            clip=clip,
            text=text,
            settings=Settings(
                iterations=_or(own["iterations"], chosen.iterations),
                learning_rate=strength * _or(own["learning_rate"], chosen.learning_rate),
                typical=own["typical"],
                decay=own["lr_decay"],
                scaled=not published,
            ),
            steps=Steps(own["start_percent"], _or(own["end_percent"], chosen.end), own["every"], published),
            objective=objective_of(objective, own["sg_lambda"], published),
            word=word,
            position=own["position"],
            encoders=own["encoders"],
            similarity=own["similarity"],
            renoise=_renoise(own["renoise"], own["anneal"], chosen),
            keep_until=keep_until,
            chunk_size=own["chunk_size"],
            checkpointing=own["checkpointing"],
            absolute=chosen.absolute,
            save=_path(own["save_as"]),
            published=published,
            late=own["late_alphas"],
            start=start,
            start_scale=own["start_scale"],
            notes=_unpublished(chosen, strength, own) if published else (),
            optimiser=_optimiser(own["optimiser"], mode),
        )
        if not learning.settings.active:
            plain = clip.encode_from_tokens_scheduled(clip.tokenize(text)) if positive is None else positive
            return io.NodeOutput(model, plain)
        return io.NodeOutput(with_learning(model), to_learn(learning, positive))


class MinorityPromptOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityMinorityPromptOptions",
            display_name=_OPTIONS_NAME,
            category="diversity/conditioning",
            description=f"More settings of {_NAME}: when and how fast the token is learned, and what becomes of it.",
            # Saved workflows keep widgets by position: append, never reorder.
            inputs=[*_common_options(), *(advanced(widget) for widget in (*_rare_options(), *_published_options()))],
            outputs=[options_output(_METHOD, _NAME)],
        )

    @classmethod
    @checked
    def execute(cls, **values: Any) -> io.NodeOutput:
        return make_options(_METHOD, values)


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


def _renoise(value: float, anneal: str, preset: Preset) -> float | None:
    """The level to noise again to, None for annealed. Raises ValueError for a level that is annealed and fixed."""
    if anneal == ON:
        require(value == AUTO_NUMBER, "renoise", value, "-1 (auto) with anneal on")
        return None
    return _or(value, FIXED_LEVEL if anneal == OFF else preset.renoise)


def _unpublished(preset: Preset, strength: float, own: dict[str, Any]) -> tuple[str, ...]:
    """Which of these settings the release does not have for this preset, in words."""
    rate = strength * _or(own["learning_rate"], preset.learning_rate)
    given = {
        "iterations": (_or(own["iterations"], preset.iterations), preset.iterations),
        "a learning rate of": (rate, preset.learning_rate),
        "end_percent": (_or(own["end_percent"], preset.end), preset.end),
        "start_percent": (own["start_percent"], 0.0),
    }
    return tuple(
        f"{name} {value:g} (it has {theirs:g})" for name, (value, theirs) in given.items() if abs(value - theirs) > 1e-9
    )


def _optimiser(choice: str, mode: str) -> str:
    """Raises ValueError for a search with the paper's rule, which is one for gradients."""
    if mode != PUBLISHED:
        return choice
    require(choice != "search", "optimiser", choice, 'auto or gradient with mode "published"')
    return "gradient"


def _or(value: Any, preset: Any) -> Any:
    """The value, or the preset's where it is -1 (auto)."""
    return preset if value == AUTO_NUMBER else value


def _path(name: str) -> Path | None:
    """Where a learned token is saved. Raises ValueError for a name that is no file's, or that another embedding has."""
    if not _ALLOWED.fullmatch(name):
        raise ValueError(f"save_as is {name!r}; it must be up to 64 letters, digits, '_' or '-', or empty.")
    if not name:
        return None
    folders = [Path(folder) for folder in folder_paths.get_folder_paths("embeddings")]
    own = folders[0] / _SUBFOLDER
    for folder in folders:
        for found in folder.rglob(f"{name}*.*"):
            taken = re.fullmatch(rf"{re.escape(name)}(_\d+)?", found.stem) is not None
            if taken and found.parent != own:
                raise ValueError(
                    f"save_as is {name!r}, but there is an embedding of that name: {found}. Choose another."
                )
    return own / f"{name}.safetensors"


NODES = [MinorityPrompt, MinorityPromptOptions]
