"""unCLIP per Image: of several vision embeddings one for each image of the batch."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.drivers.unclip import per_image
from ._inputs import checked


class UnclipPerImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityUnclipPerImage",
            display_name="unCLIP per Image",
            category="diversity/conditioning",
            description=(
                "In place of unCLIPConditioning, which gives all images the sum of its embeddings: image k of the "
                "batch gets embedding k. Needs no patched model."
            ),
            is_input_list=True,
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The prompt; one conditioning."),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    tooltip=(
                        "Embeddings, as a list (as OVI gives them) or of a batch of images. A larger batch uses them "
                        "again from the first."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="As in unCLIPConditioning: the embedding is multiplied by it. 0: no embedding at all.",
                ),
                io.Float.Input(
                    "noise_augmentation",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="As in unCLIPConditioning: how much of the embedding is noise. Higher: follows it less.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="CONDITIONING", tooltip="The prompt with an embedding for each image."
                )
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        conditioning: list[list],
        clip_vision_output: list[Any],
        strength: list[float],
        noise_augmentation: list[float],
    ) -> io.NodeOutput:
        if len(conditioning) != 1:
            raise ValueError(f"conditioning is a list of {len(conditioning)}; it must be one conditioning.")
        return io.NodeOutput(per_image(conditioning[0], clip_vision_output, strength[0], noise_augmentation[0]))


NODES = [UnclipPerImage]
