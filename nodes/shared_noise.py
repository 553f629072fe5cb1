"""The same initial noise for every image of a batch."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.drivers.shared_noise import SharedNoise, with_shared_noise
from ._inputs import checked

CATEGORY = "diversity/noise"


class UseSharedNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversitySharedNoiseModel",
            display_name="Use Shared Noise",
            category=CATEGORY,
            description=(
                "Samplers start all images of a batch from the same noise, so that the images differ by their prompt "
                "variants alone. Without variants all images come out alike."
            ),
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model."),
                io.Float.Input(
                    "noise_per_step",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "Standard deviation of the fresh noise that each image gets after every step but the last. "
                        "For flow-matching models (SD3, FLUX, Qwen-Image ...) only; published for SD3.5: 0.03. 0: off."
                    ),
                ),
                io.Boolean.Input(
                    "noise_on_last_step",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Adds noise_per_step after the last step too, where it stays in the image: as published for "
                        "SD3.5. No effect while noise_per_step is 0."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL", tooltip="The same model; samplers give all images the same noise."
                )
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, noise_per_step: float, noise_on_last_step: bool = False) -> io.NodeOutput:
        return io.NodeOutput(with_shared_noise(model, noise_per_step, noise_on_last_step))


class SharedNoiseForCustomSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversitySharedNoise",
            display_name="Shared Noise for Custom Sampler",
            category=CATEGORY,
            description=(
                "For SamplerCustomAdvanced: every image of a batch gets the noise of the first one, so that the images "
                "differ by their prompt variants alone. Goes between a noise and the sampler."
            ),
            inputs=[io.Noise.Input("noise", tooltip="The noise to share, for instance of Random Noise.")],
            outputs=[io.Noise.Output(display_name="NOISE", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    @checked
    def execute(cls, noise: Any) -> io.NodeOutput:
        return io.NodeOutput(SharedNoise(noise))


NODES = [UseSharedNoise, SharedNoiseForCustomSampler]
