"""Diverse noise: Contrastive Noise Optimization as a model patch, as NOISE and as a LATENT to keep."""

from __future__ import annotations

from typing import Any

import comfy.sample
import torch
from comfy_api.latest import io

from ..core.drivers.cno import ContrastiveNoise
from ..core.hooks.denoise import GRADIENTS
from ..core.hooks.noise import OptimisedNoise
from ..core.hooks.sampling import with_noise_change
from ..core.methods.cno import DENOMINATORS, PROJECTIONS, Settings
from ._inputs import advanced

CATEGORY = "diversity/noise"
_DEFAULT = Settings()


def _options() -> list[io.Input]:
    """The widgets that all forms of the node share. Saved workflows keep them by position: append, never reorder."""
    return [
        io.Float.Input(
            "strength",
            default=_DEFAULT.strength,
            min=0.0,
            max=2.0,
            step=0.05,
            tooltip=(
                "How different the pictures become: how far the optimisation moves a noise value at most, in standard "
                "deviations; what the projection gives back comes on top. "
                "0 changes nothing. Above 1 pictures may stop following the prompt."
            ),
        ),
        io.Int.Input(
            "iterations",
            default=_DEFAULT.iterations,
            min=0,
            max=100,
            tooltip=(
                "Steps in which the strength is spent. Each costs as much time as one sampling step. Fewer for "
                "few-step models. 0 changes nothing."
            ),
        ),
        advanced(
            io.Combo.Input(
                "gradient",
                options=list(GRADIENTS),
                default=GRADIENTS[0],
                tooltip=(
                    '"stop": holds the network\'s output fixed within a step; cheap. "full": goes back through the '
                    "network; about three times the time and far more memory."
                ),
            )
        ),
        advanced(
            io.Combo.Input(
                "denominator",
                options=list(DENOMINATORS),
                default=_DEFAULT.denominator,
                tooltip=(
                    'What a picture\'s own term in the contrastive loss is: "all": its similarity to itself (the '
                    'paper); "positive": its similarity to where it started (the paper\'s code); "others": left out.'
                ),
            )
        ),
        advanced(
            io.Float.Input(
                "temperature",
                default=_DEFAULT.temperature,
                min=0.01,
                max=2.0,
                step=0.01,
                tooltip="Low: only the most similar pictures repel each other. High: all do alike.",
            )
        ),
        advanced(
            io.Int.Input(
                "window",
                default=_DEFAULT.window,
                min=1,
                max=128,
                tooltip=(
                    "Pictures are compared on a grid of window x window cells, cell by cell. 1 compares the average of "
                    "the whole picture."
                ),
            )
        ),
        advanced(
            io.Float.Input(
                "gamma",
                default=0.0,
                min=0.0,
                max=4.0,
                step=0.01,
                tooltip=(
                    "Temperature of the pull back to where a noise started, as a multiple of the temperature; lower "
                    "pulls harder. 0 computes it from the batch size, 1 / (temperature * ln(batch - 1) + 1)."
                ),
            )
        ),
        advanced(
            io.Combo.Input(
                "projection",
                options=list(PROJECTIONS),
                default=_DEFAULT.projection,
                tooltip=(
                    'What each noise keeps. "spectrum": its energy in every band of frequencies, as Gaussian noise has '
                    'it; the prompt is kept best. "norm": its length alone; stronger. "none": nothing (the paper).'
                ),
            )
        ),
        advanced(
            io.Int.Input(
                "chunk",
                default=0,
                min=0,
                max=4096,
                tooltip=(
                    "Pictures that go through the model at once. 0: all, and fewer when memory runs out. All pictures "
                    "repel each other whatever the chunk."
                ),
            )
        ),
    ]


def _change(gradient: str, gamma: float, chunk: int, **settings: Any) -> ContrastiveNoise:
    return ContrastiveNoise(Settings(gamma=None if gamma == 0 else gamma, **settings), gradient, chunk)


class DiverseNoiseModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityCNOModel",
            display_name="Diverse Noise (CNO)",
            category=CATEGORY,
            description=(
                "Makes the pictures of a batch differ: before sampling, their initial noises are moved apart by what "
                "the model first makes of them. Goes between the model and any sampler; needs a batch of 2 or more."
            ),
            inputs=[io.Model.Input("model", tooltip="Any diffusion model."), *_options()],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The same model; samplers optimise their noise first.")
            ],
        )

    @classmethod
    def execute(cls, model: Any, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(with_noise_change(model, "diversity_cno", _change(**options)))


def _guided_inputs() -> list[io.Input]:
    return [
        io.Noise.Input("noise", tooltip="The noise to start from, for instance of Random Noise."),
        io.Guider.Input("guider", tooltip="Model, prompts and CFG, for instance of CFG Guider: the sampler's own."),
        io.Sigmas.Input("sigmas", tooltip="The sampler's own; the first one is where the noise is optimised."),
    ]


class DiverseNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityCNONoise",
            display_name="Diverse Noise",
            category=CATEGORY,
            description=(
                "Makes the pictures of a batch differ, for SamplerCustomAdvanced: goes between a noise and the "
                "sampler. The same method as Diverse Noise (CNO)."
            ),
            inputs=[
                *_guided_inputs(),
                *_options(),
                advanced(
                    io.Int.Input(
                        "batch_size",
                        default=0,
                        min=0,
                        max=4096,
                        tooltip=(
                            "0: the latent's own batch. To make one picture of a batch again, put its size here and "
                            "pick the picture by Latent From Batch before the sampler."
                        ),
                    )
                ),
            ],
            outputs=[io.Noise.Output(display_name="NOISE", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        noise: Any,
        guider: Any,
        sigmas: torch.Tensor,
        batch_size: int,
        **options: Any,
    ) -> io.NodeOutput:
        return io.NodeOutput(OptimisedNoise(noise, guider, sigmas, _change(**options), batch_size))


class DiverseNoiseLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityCNOLatent",
            display_name="Diverse Noise to Latent",
            category=CATEGORY,
            description=(
                "Optimised noise as a latent, to keep (Save Latent), share and use again by Use Noise or Noise from "
                "Latent. It is noise, not a picture: not for a sampler's latent_image."
            ),
            inputs=[
                *_guided_inputs(),
                io.Latent.Input(
                    "latent_image", tooltip="The latent to be sampled; its size and batch are the noise's."
                ),
                *_options(),
            ],
            outputs=[io.Latent.Output(display_name="noise", tooltip="One noise for each picture of the batch.")],
        )

    @classmethod
    def execute(
        cls,
        noise: Any,
        guider: Any,
        sigmas: torch.Tensor,
        latent_image: dict[str, Any],
        **options: Any,
    ) -> io.NodeOutput:
        samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent_image["samples"])
        latent = {**latent_image, "samples": samples}
        optimised = OptimisedNoise(noise, guider, sigmas, _change(**options)).generate_noise(latent)
        indices = latent.get("batch_index", list(range(len(optimised))))
        return io.NodeOutput({"samples": optimised, "batch_index": list(indices)})


NODES = [DiverseNoiseModel, DiverseNoise, DiverseNoiseLatent]
