"""What nodes that measure finished images share: their inputs, and the images in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ._inputs import AUTO_NUMBER, advanced


def images_inputs(more: str = "") -> list[io.Input]:
    """The sockets; `more` is what the latent's tooltip says besides."""
    return [
        io.Model.Input("model", tooltip="The diffusion model that the images were made with."),
        io.Conditioning.Input("positive", tooltip="The plain prompt that the images were made for."),
        io.Latent.Input("latent", tooltip=f"Finished images, from the sampler{more}."),
    ]


def seed_input(same: str) -> io.Input:
    """same: what the same seed gives again."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=False,
        tooltip=f"Of the noise that the images are noised again with. The same seed, the same {same}.",
    )


def measure_inputs(renoise: float, noises: int) -> list[io.Input]:
    """How the images are measured, with these defaults."""
    found: list[io.Input] = [
        io.Float.Input(
            "renoise",
            default=renoise,
            min=0.05,
            max=1.0,
            step=0.05,
            tooltip=(
                "How noisy an image is made again, as a share of the noise schedule. High: its layout and colours "
                "decide; low: its details."
            ),
        ),
        io.Int.Input(
            "noises",
            default=noises,
            min=1,
            max=100,
            tooltip="Noises that the value is averaged over. Each costs one pass of the model, without CFG.",
        ),
        io.Int.Input(
            "chunk_size",
            default=AUTO_NUMBER,
            min=AUTO_NUMBER,
            max=4096,
            tooltip="Images that go through the model at once. -1: all, and fewer when memory runs out.",
        ),
    ]
    return [advanced(widget) for widget in found]


def rows_of(latent: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """The latent's images in this order, with their places in the batch and their masks, as a new latent."""
    samples: Tensor = latent["samples"]
    places = latent.get("batch_index", range(len(samples)))
    sorted_latent = {**latent, "samples": samples[list(order)], "batch_index": [places[k] for k in order]}
    mask = latent.get("noise_mask")
    if isinstance(mask, torch.Tensor) and len(mask) > 1:
        sorted_latent["noise_mask"] = comfy.utils.repeat_to_batch_size(mask, len(samples))[list(order)]
    return sorted_latent
