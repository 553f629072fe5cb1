"""Small weight files: matrices and kernels as whole numbers, with a scale for each output channel.

For files that this pack alone reads; ComfyUI's own loaders know nothing of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WHOLE, _SCALE = ":whole", ":scale"
_LEAST = 4096  # smaller tensors stay as they are


def pack(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """fp16 and int8 tensors for a file."""
    packed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if value.ndim < 2 or value.numel() < _LEAST:
            packed[name] = value.half()
        else:
            rows = value.float().flatten(1)
            scale = (rows.abs().amax(1, keepdim=True) / 127).clamp_min(1e-7).half()
            packed[name + _WHOLE] = (rows / scale.float()).round().clamp(-127, 127).to(torch.int8).view(value.shape)
            packed[name + _SCALE] = scale.view(-1, *(1,) * (value.ndim - 1))
    return {name: value.detach().cpu().contiguous() for name, value in packed.items()}


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """fp16 weights by their own names; tensors that were never packed pass through."""
    weights: dict[str, Tensor] = {}
    for name, value in packed.items():
        if name.endswith(_WHOLE):
            own = name.removesuffix(_WHOLE)
            weights[own] = (value.float() * packed[own + _SCALE].float()).half()
        elif not name.endswith(_SCALE):
            weights[name] = value
    return weights
