"""Weights that are stored as whole numbers come back as what they were, but for rounding."""

from __future__ import annotations

import torch
from comfyui_diversity.demo.packing import pack, unpack


def test_packed_weights_come_back() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(96, 128, generator=generator) * torch.logspace(-3, 1, 96)[:, None]
    weights = {
        "linear.weight": rows,
        "conv.weight": torch.randn(16, 32, 3, 3, generator=generator),
        "linear.bias": torch.randn(96, generator=generator),
        "silent.weight": torch.zeros(64, 64),
    }
    packed = pack(weights)
    came = unpack(packed)
    assert {name: value.shape for name, value in came.items()} == {name: value.shape for name, value in weights.items()}
    assert torch.equal(came["linear.bias"], weights["linear.bias"].half())
    for name in ("linear.weight", "conv.weight"):
        off = (came[name].float() - weights[name]).abs().flatten(1)
        largest = weights[name].abs().flatten(1).amax(1, keepdim=True)
        assert (off <= largest * (0.5 / 127 + 1e-3)).all()  # half a step of each row's own scale, and fp16's rounding
        assert packed[f"{name}:whole"].dtype == torch.int8
    assert not came["silent.weight"].any()


def test_weights_that_are_not_packed_pass_through() -> None:
    plain = {"a.weight": torch.randn(80, 80).half(), "a.ids": torch.arange(5)}
    assert unpack(plain) == plain
