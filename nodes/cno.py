"""Diverse noise: Contrastive Noise Optimization as a model patch, as NOISE and as a LATENT to keep."""

from __future__ import annotations

from typing import Any

import comfy.sample
import torch
from comfy_api.latest import io

from ..core.drivers.cno import ContrastiveNoise
from ..core.hooks.noise import OptimisedNoise
from ..core.hooks.sampling import with_noise_change
from ..core.methods.cno import RECOMMENDED
from ._inputs import (
    AUTO,
    AUTO_NUMBER,
    PUBLISHED,
    CheckedNode,
    Options,
    checked,
    mode_input,
    options_input,
    read_options,
)
from .cno_options import CATEGORY, METHOD, DiverseNoiseOptions

_DEFAULT = RECOMMENDED
_AUTOMATIC = {
    "denominator": AUTO,
    "gamma": AUTO_NUMBER,
    "projection": AUTO,
    "cells": AUTO_NUMBER,
    "pink": 0.0,
    "candidates": 1,
    "wide": 1.0,
}


def _shared_inputs(*between: io.Input) -> list[io.Input]:
    """The widgets of all three nodes. Saved workflows keep them by position: append, never reorder."""
    return [
        io.Float.Input(
            "strength",
            default=_DEFAULT.strength,
            min=0.0,
            max=2.0,
            step=0.01,
            tooltip=(
                "How different the images become: how far the steps together may move the coarse structure of the "
                "noise, in standard deviations. 0: off. With mode published the default stands for the paper's "
                "learning rate, 0.01 an iteration."
            ),
        ),
        io.Int.Input(
            "iterations",
            default=_DEFAULT.iterations,
            min=0,
            max=100,
            tooltip=(
                "Steps over which the strength is spent; each takes as long as one sampling step. 0: off. With mode "
                "published the default stands for the paper's 3."
            ),
        ),
        *between,
        mode_input(
            "the paper's method: strength and iterations at their defaults are its 3 steps of 0.01. Diverse Noise "
            "Options has its code's form and its ablations."
        ),
        options_input(METHOD, "Diverse Noise Options"),
    ]


def _guided_inputs() -> list[io.Input]:
    return [
        io.Noise.Input("noise", tooltip="The noise to start from, for instance of RandomNoise."),
        io.Guider.Input("guider", tooltip="The sampler's own guider: it holds the model, the prompts and CFG."),
        io.Sigmas.Input("sigmas", tooltip="The sampler's own sigmas; noise is optimised at the first one."),
    ]


def _contrastive_noise(strength: float, iterations: int, mode: str, options: Options | None) -> ContrastiveNoise:
    """Raises ValueError for an option that the mode does not have."""
    values = read_options(DiverseNoiseOptions, options)
    chosen = {name: value for name, value in values.items() if value != _AUTOMATIC.get(name)}
    steps: dict[str, Any] = {"strength": strength, "iterations": iterations}
    if mode == PUBLISHED:
        defaults = {"strength": _DEFAULT.strength, "iterations": _DEFAULT.iterations}
        own = {name: value for name, value in steps.items() if value != defaults[name]}
        return ContrastiveNoise.published(**own, **chosen)
    return ContrastiveNoise.recommended(**steps, **chosen)


class DiverseNoise(CheckedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityCNO",
            display_name="Diverse Noise (CNO)",
            category=CATEGORY,
            description=(
                "Makes the images of a batch differ: before sampling, their initial noises are moved apart by the "
                "model's first estimates of the images. Goes between the model and any sampler; needs a batch of 2 or "
                "more."
            ),
            inputs=[io.Model.Input("model", tooltip="Any diffusion model."), *_shared_inputs()],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The same model; samplers optimise their noise first.")
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, model: Any, strength: float, iterations: int, mode: str, options: Options | None = None
    ) -> io.NodeOutput:
        change = _contrastive_noise(strength, iterations, mode, options)
        return io.NodeOutput(with_noise_change(model, "diversity_cno", change))


class DiverseNoiseForCustomSampler(CheckedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityCNONoise",
            display_name="Diverse Noise for Custom Sampler (CNO)",
            category=CATEGORY,
            description=(
                "Diverse Noise (CNO) for SamplerCustomAdvanced: goes between a noise and the sampler and makes the "
                "images of a batch differ."
            ),
            inputs=[
                *_guided_inputs(),
                *_shared_inputs(
                    io.Int.Input(
                        "batch_size",
                        default=AUTO_NUMBER,
                        min=AUTO_NUMBER,
                        max=4096,
                        tooltip=(
                            "-1: auto, the latent's own batch. To make one image of a batch again, set the size of "
                            "that batch here and pick the image by Latent From Batch before the sampler."
                        ),
                    )
                ),
                io.Latent.Input(
                    "whole_batch",
                    optional=True,
                    tooltip=(
                        "For one image of a batch again, where the images start from images or masks: the latent of "
                        "the whole batch, as it was before Latent From Batch. Gives the batch_size."
                    ),
                ),
            ],
            outputs=[io.Noise.Output(display_name="NOISE", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        noise: Any,
        guider: Any,
        sigmas: torch.Tensor,
        strength: float,
        iterations: int,
        batch_size: int,
        mode: str,
        options: Options | None = None,
        whole_batch: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        change = _contrastive_noise(strength, iterations, mode, options)
        return io.NodeOutput(OptimisedNoise(noise, guider, sigmas, change, batch_size, whole_batch))


class DiverseNoiseToLatent(CheckedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityCNOLatent",
            display_name="Diverse Noise to Latent (CNO)",
            category=CATEGORY,
            description=(
                "Optimised noise as a latent, to keep (Save Latent), share and use again by Use Kept Noise or Kept "
                "Noise for Custom Sampler. It is noise, not an image: not for a sampler's latent_image."
            ),
            inputs=[
                *_guided_inputs(),
                io.Latent.Input("latent_image", tooltip="The latent to be sampled: the noise gets its size and batch."),
                *_shared_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="noise", tooltip="One noise for each image of the batch.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        noise: Any,
        guider: Any,
        sigmas: torch.Tensor,
        latent_image: dict[str, Any],
        strength: float,
        iterations: int,
        mode: str,
        options: Options | None = None,
    ) -> io.NodeOutput:
        change = _contrastive_noise(strength, iterations, mode, options)
        samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, latent_image["samples"])
        latent = {**latent_image, "samples": samples}
        optimised = OptimisedNoise(noise, guider, sigmas, change).generate_noise(latent)
        indices = latent.get("batch_index", list(range(len(optimised))))
        return io.NodeOutput({"samples": optimised, "batch_index": list(indices)})


NODES = [DiverseNoise, DiverseNoiseForCustomSampler, DiverseNoiseToLatent]
