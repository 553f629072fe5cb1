"""Rare pictures: a token learned while sampling (MinorityPrompt), as a model patch with its conditioning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..core.drivers.minority import Learning, to_learn, with_learning
from ..core.hooks.text import KINDS
from ..core.hooks.tokens import POSITIONS
from ..core.methods.minority import OBJECTIVES, PRESETS, Settings, Steps
from ._inputs import advanced

_DEFAULT = Learning(clip=None, text="")
_ALLOWED = re.compile(r"[\w-]{0,64}")
_SUBFOLDER = "diversity"


def _main_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="Any diffusion model."),
        io.Clip.Input("clip", tooltip="The text encoder of the prompt."),
        io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="The prompt, as in CLIP Text Encode."),
        io.Combo.Input(
            "preset",
            options=list(PRESETS),
            default=next(iter(PRESETS)),
            tooltip=(
                '"base model": learns at the steps in the first tenth of the noise schedule. "few-step model" '
                "(Lightning, Turbo, distilled): learns more, at the first step alone. Sets iterations, learning_rate "
                "and end_percent where they are 0."
            ),
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip="How fast the token is learned, as a multiple of learning_rate. 0 changes nothing: plain prompt.",
        ),
        io.String.Input(
            "initial_word",
            default=_DEFAULT.word,
            tooltip=(
                "Where the token starts: a word that fits any picture. Several words, or an embedding:name, are "
                "several tokens. Empty: at random, elsewhere for each picture."
            ),
        ),
    ]


def _advanced_inputs() -> list[io.Input]:
    """Saved workflows keep widgets by position: append, never reorder."""
    return [
        io.Combo.Input(
            "objective",
            options=list(OBJECTIVES),
            default=next(iter(OBJECTIVES)),
            tooltip=(
                'What the token is learned for. "minority": pictures that the model holds for unlikely. "diversity": '
                'pictures that differ within the batch. "both": the sum.'
            ),
        ),
        io.Int.Input(
            "iterations",
            default=0,
            min=0,
            max=200,
            tooltip=(
                "Learning steps at each chosen sampling step. Each costs two passes through the model and two back "
                '(with "diversity" one each). 0: the preset\'s.'
            ),
        ),
        io.Float.Input(
            "learning_rate",
            default=0.0,
            min=0.0,
            max=10.0,
            step=0.001,
            tooltip=(
                "How far a learning step moves the token's values, in standard deviations of the encoder's token "
                "embeddings. 0: the preset's."
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
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Sampling steps that begin before this share of the noise schedule learn. 0: the preset's.",
        ),
        io.Int.Input(
            "every",
            default=_DEFAULT.steps.every,
            min=1,
            max=100,
            tooltip="Learns at every n-th of these sampling steps only; the others use the token as it is.",
        ),
        io.Float.Input(
            "keep_until",
            default=_DEFAULT.keep_until,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=(
                "Share of the noise schedule after which the plain prompt takes over, so that the picture follows it "
                "still. Higher: rarer, and further from the prompt. 1: never (published). 0: as soon as nothing is "
                "learned any more."
            ),
        ),
        io.Float.Input(
            "bound",
            default=_DEFAULT.settings.bound,
            min=0.0,
            max=100.0,
            step=0.05,
            tooltip=(
                "Furthest that the token may go from where it started, in standard deviations of token embeddings (1 "
                "is about as far as one word is from another). 0: no bound."
            ),
        ),
        io.Float.Input(
            "similarity",
            default=_DEFAULT.similarity,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=(
                "Least cosine of the prompt with the learned token to the prompt with the initial word. Higher: keeps "
                "closer to the prompt. 0: no limit."
            ),
        ),
        io.Float.Input(
            "renoise",
            default=_DEFAULT.renoise,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip=(
                "How noisy a picture is made again to see whether the model would come back to it, as a share of the "
                "noise schedule. 0: as noisy as the run has left behind, little at first (published)."
            ),
        ),
        io.Combo.Input(
            "position",
            options=list(POSITIONS),
            default=_DEFAULT.position,
            tooltip="Whether the token goes to the end or the start of the prompt. The end is better as a rule.",
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
            tooltip="The other way round: more likely, more alike.",
        ),
        io.Int.Input(
            "chunk",
            default=_DEFAULT.chunk,
            min=0,
            max=4096,
            tooltip=(
                "Pictures that go through the models at once while the token is learned. 0: all, and fewer when memory "
                "runs out. Fewer take less memory and up to half as much time again."
            ),
        ),
        io.String.Input(
            "save_as",
            default="",
            tooltip=(
                "Name under which the learned token is kept, for embedding:name in any prompt; for a batch name_1, "
                "name_2 and so on. Goes to the folder embeddings/diversity. Empty: not kept."
            ),
        ),
    ]


class MinorityPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityMinorityPrompt",
            display_name="Minority Prompt",
            category="diversity/conditioning",
            description=(
                "Pictures from the rare side of what the model knows: while the sampler runs, each picture learns a "
                "token at the end of its prompt that leads away from the usual. Goes between model, CLIP and any "
                "sampler."
            ),
            inputs=[
                *_main_inputs(),
                *(advanced(widget) for widget in _advanced_inputs()),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip=(
                        "The same text encoded already, where something is attached to it (ControlNet, area ...). "
                        "Empty: the node encodes the text."
                    ),
                ),
                advanced(
                    io.Boolean.Input(
                        "checkpointing",
                        default=_DEFAULT.checkpointing,
                        optional=True,
                        tooltip=(
                            "Learns with a fraction of the memory, in up to a third more time: layers are computed "
                            "again in place of being kept. Begins by itself when memory runs out for one picture."
                        ),
                    )
                ),
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
    def execute(
        cls,
        model: Any,
        clip: Any,
        text: str,
        preset: str,
        strength: float,
        initial_word: str,
        objective: str,
        iterations: int,
        learning_rate: float,
        start_percent: float,
        end_percent: float,
        every: int,
        keep_until: float,
        bound: float,
        similarity: float,
        renoise: float,
        position: str,
        encoders: str,
        typical: bool,
        chunk: int,
        save_as: str,
        positive: list | None = None,
        checkpointing: bool = _DEFAULT.checkpointing,
    ) -> io.NodeOutput:
        if clip is None:
            raise ValueError("clip is empty: the checkpoint holds no text encoder. Use one from Load CLIP.")
        chosen = PRESETS[preset]
        learning = Learning(
            clip=clip,
            text=text,
            settings=Settings(
                iterations=iterations or chosen.iterations,
                learning_rate=strength * (learning_rate or chosen.learning_rate),
                bound=bound,
                held=similarity > 0,
                typical=typical,
            ),
            steps=Steps(start_percent, end_percent or chosen.end, every),
            objective=OBJECTIVES[objective],
            word=initial_word,
            position=position,
            encoders=encoders,
            similarity=similarity,
            renoise=renoise,
            keep_until=keep_until,
            chunk=chunk,
            checkpointing=checkpointing,
            save=_path(save_as),
        )
        if not learning.settings.active:
            plain = clip.encode_from_tokens_scheduled(clip.tokenize(text)) if positive is None else positive
            return io.NodeOutput(model, plain)
        return io.NodeOutput(with_learning(model), to_learn(learning, positive))


def _path(name: str) -> Path | None:
    """Where a learned token is kept. Raises ValueError for a name that is no file's, or that another embedding has."""
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
