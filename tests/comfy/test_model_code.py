"""What the code of models does in the middle of a call, where a gradient is wanted: nothing is broken or lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui_diversity.core.hooks.gradients import gradients
from torch import Tensor, nn


class Moves(nn.Module):
    """As HunyuanVideo 1.5, which has a module moved in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 8)
        self.norm = nn.BatchNorm1d(8).eval()

    def forward(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        self.embedding.to(x.device, dtype)
        self.norm.to(x.device)
        return self.norm(x * self.embedding(torch.zeros(len(x), dtype=torch.long)).to(x))


@pytest.mark.fast
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_a_forward_pass_moves_stay_what_they_are(dtype: torch.dtype) -> None:
    x = torch.randn(2, 8)
    with torch.inference_mode():
        model, expected = Moves(), Moves()
        expected.load_state_dict(model.state_dict())
        before = expected(x, dtype)
    buffers = dict(model.named_buffers())
    with gradients(model):
        variable = x.clone().requires_grad_()
        found = model(variable, dtype)
        gradient = torch.autograd.grad(found.sum(), variable)[0]
    assert torch.equal(found.detach(), before)
    assert float(gradient.norm()) > 0
    assert all(value is buffers[name] for name, value in model.named_buffers())
    for weight in model.parameters():
        assert weight.is_inference()
    with torch.inference_mode():  # the next plain run
        assert torch.equal(model(x), before)
        assert torch.equal(model(x, dtype), before)
    with gradients(model):
        assert torch.equal(model(x.clone().requires_grad_(), dtype).detach(), before)


@pytest.fixture(name="kernel")
def fused_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A kernel without a backward pass, and the package's own version in PyTorch's operations."""
    library = torch.library.Library("comfy_kitchen", "FRAGMENT")
    library.define("diversity_double(Tensor x) -> Tensor")
    library.impl("diversity_double", lambda x: x.detach() * 2, "CPU")
    eager = sys.modules.get("comfy_kitchen.backends.eager", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "comfy_kitchen.backends.eager", eager)
    monkeypatch.setattr(eager, "diversity_double", lambda x: x * 2, raising=False)
    yield torch.ops.comfy_kitchen.diversity_double
    library._destroy()


def test_a_fused_kernel_has_a_gradient(kernel: Any) -> None:
    x = torch.randn(3)
    with gradients(nn.Identity()):
        variable = x.clone().requires_grad_()
        assert torch.equal(torch.autograd.grad(kernel(variable).sum(), variable)[0], torch.full((3,), 2.0))
        assert not kernel(x).requires_grad


@pytest.mark.parametrize("name", ["apply_rope", "rms_rope", "rms_rope_split_half", "apply_rope_split_half"])
def test_the_kernels_of_comfyui(name: str) -> None:
    kitchen = pytest.importorskip("comfy_kitchen")
    q, k = (torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    turns = torch.randn(1, 1, 5, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    scales = (torch.rand(8), torch.rand(8)) if name.startswith("rms") else ()
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(3))

    def value(q: Tensor) -> Tensor:
        return (getattr(kitchen, name)(q, k, turns, *scales)[0] * weight).sum()

    with gradients(nn.Identity()):
        variable = q.clone().requires_grad_()
        gradient = torch.autograd.grad(value(variable), variable)[0]
        direction = gradient / gradient.norm()
        slope = (value(q + 0.01 * direction) - value(q - 0.01 * direction)) / 0.02
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.01)
