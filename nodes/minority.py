"""Rare images: a token learned while sampling (MinorityPrompt), as a model patch with its conditioning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..core.drivers.minority import to_learn, with_learning
from ..core.drivers.minority_learning import Learning
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
    check_clip,
    checked,
    mode_input,
    options_input,
    read_options,
)
from .minority_options import METHOD, NAME, OPTIONS_NAME, MinorityPromptOptions

_DEFAULT = Learning(clip=None, text="")
_ALLOWED = re.compile(r"[\w-]{0,64}")
_SUBFOLDER = "diversity"


class MinorityPrompt(CheckedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityMinorityPrompt",
            display_name=NAME,
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
                options_input(METHOD, OPTIONS_NAME),
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


NODES = [MinorityPrompt]
