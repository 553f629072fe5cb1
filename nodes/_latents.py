"""What nodes do to a latent as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.utils
import torch
from torch import Tensor


def rows_of(latent: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """The latent's images in this order, with their places in the batch and their masks, as a new latent."""
    samples: Tensor = latent["samples"]
    places = latent.get("batch_index", range(len(samples)))
    sorted_latent = {**latent, "samples": samples[list(order)], "batch_index": [places[k] for k in order]}
    mask = latent.get("noise_mask")
    if isinstance(mask, torch.Tensor) and len(mask) > 1:
        sorted_latent["noise_mask"] = comfy.utils.repeat_to_batch_size(mask, len(samples))[list(order)]
    return sorted_latent
