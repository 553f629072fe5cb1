"""Noise that was kept as a LATENT, for every kind of sampler."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.hooks.noise import StoredNoise, stored_noise
from ..core.hooks.sampling import with_noise_change
from ._inputs import checked

CATEGORY = "diversity/noise"


class KeptNoiseForCustomSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityNoiseFromLatent",
            display_name="Kept Noise for Custom Sampler",
            category=CATEGORY,
            description=(
                "Kept noise for SamplerCustomAdvanced. A latent cut by Latent From Batch gets the noise of the images "
                "that it holds."
            ),
            inputs=[
                io.Latent.Input(
                    "noise_latent",
                    tooltip="From Diverse Noise to Latent, directly or through Save Latent and Load Latent.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip="Only used by samplers that add noise at every step (ancestral, SDE).",
                ),
            ],
            outputs=[io.Noise.Output(display_name="NOISE", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    @checked
    def execute(cls, noise_latent: dict[str, Any], seed: int) -> io.NodeOutput:
        return io.NodeOutput(StoredNoise(noise_latent, seed))


class UseKeptNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityUseNoise",
            display_name="Use Kept Noise",
            category=CATEGORY,
            description=(
                "Kept noise for KSampler and any other sampler, on every kind of model: the sampler starts from it "
                "instead of its own. Cut both latents by Latent From Batch to make one image again."
            ),
            inputs=[
                io.Model.Input("model", tooltip="Any diffusion model."),
                io.Latent.Input("noise_latent", tooltip="As many noises as the sampler's latent holds images."),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The same model; samplers start from the kept noise.")
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, noise_latent: dict[str, Any]) -> io.NodeOutput:
        samples = noise_latent["samples"]
        return io.NodeOutput(
            with_noise_change(model, "diversity_use_noise", lambda run: stored_noise(samples, run.noise))
        )


NODES = [KeptNoiseForCustomSampler, UseKeptNoise]
