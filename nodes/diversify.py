"""Diversify: the methods of this pack behind one strength, for the common case."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.drivers.diversify import diversified_model, diversified_prompt
from ..core.hooks.progress import running_node
from ._inputs import checked

CATEGORY = "diversity"
STRENGTH = 0.5

_Control = getattr(io, "ControlAfterGenerate", None)


def _strength_input() -> io.Input:
    return io.Float.Input(
        "strength",
        default=STRENGTH,
        min=0.0,
        max=1.0,
        step=0.05,
        tooltip=(
            "How much images of one prompt are made to differ. 0: off. Higher: more, and some of them follow the "
            "prompt less or come out broken. A report on the node says what was done."
        ),
    )


def _model_input() -> io.Input:
    return io.Model.Input("model", tooltip="Any diffusion model, with its LoRAs.")


def _model_output() -> io.Output:
    return io.Model.Output(display_name="model", tooltip="For the sampler or the guider.")


class _ReportingNode(io.ComfyNode):
    """Its outputs carry its id, under which they report when they are used."""

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str | None:
        """The same node under another id is another one."""
        return running_node()


class Diversify(_ReportingNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityDiversify",
            display_name="Diversify",
            category=CATEGORY,
            description=(
                "Makes the images of one prompt differ, with one strength. Goes in place of CLIP Text Encode and "
                "between the model and any sampler; chooses what to do by the sampler's steps, CFG and batch, and "
                "reports it."
            ),
            inputs=[
                _model_input(),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.String.Input(
                    "text", multiline=True, dynamic_prompts=True, tooltip="The prompt, as in CLIP Text Encode."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    # Older versions of ComfyUI cannot say which.
                    control_after_generate=True if _Control is None else _Control.fixed,
                    tooltip=(
                        "Used for single images only: which set of variants of the prompt. Leave it fixed and change "
                        "the sampler's seed, which is faster."
                    ),
                ),
                _strength_input(),
            ],
            outputs=[
                _model_output(),
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="The prompt. A single image gets its own variant of it.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, clip: Any, text: str, seed: int, strength: float) -> io.NodeOutput:
        if clip is None:
            raise ValueError(
                "clip is empty: the checkpoint holds no text encoder. Use one from Load CLIP; or take the prompt from "
                "elsewhere and use Diversify (Model Only), which does without variants of the prompt."
            )
        node = running_node()
        positive = diversified_prompt(clip, text, seed, strength, node)
        return io.NodeOutput(diversified_model(model, strength, node, prompt=True), positive)


class DiversifyModel(_ReportingNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityDiversifyModel",
            display_name="Diversify (Model Only)",
            category=CATEGORY,
            description=(
                "Diversify for a prompt that comes from elsewhere: goes between the model and any sampler, and leaves "
                "the prompt alone. Batches come out as with Diversify."
            ),
            inputs=[_model_input(), _strength_input()],
            outputs=[_model_output()],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, strength: float) -> io.NodeOutput:
        return io.NodeOutput(diversified_model(model, strength, running_node(), prompt=False))


NODES = [Diversify, DiversifyModel]
