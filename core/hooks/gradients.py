"""The one context in which gradients flow through ComfyUI's models.

ComfyUI runs nodes under `torch.inference_mode()`, so weights, conditionings and sigmas are inference tensors, which
autograd refuses to save; and several model families add their residuals in place, which overwrites what autograd has
saved. Inside `gradients(...)` neither matters, and nothing in the shared model changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def gradients(*modules: nn.Module) -> Iterator[None]:
    """Gradients can be taken inside, also through `modules`: give every model whose forward pass is differentiated.

    Ask for the gradient of inputs by `torch.autograd.grad`, never by `backward()`. Weights get no gradient. Tensors
    that come from outside the context may be used as they are. Without modules only autograd is switched on: enough
    where the forward passes themselves need no gradient.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if modules:
            stack.enter_context(_no_fused_kernels())
            stack.enter_context(_OrdinaryTensors())
            stack.enter_context(_saved_by_value(modules))
        yield


def with_differentiable_attention(model_options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a sampler's model options whose attention is PyTorch's own.

    SageAttention drops the gradient without a word, flash attention raises an error.
    """
    options = dict(model_options)
    options["transformer_options"] = {
        **options.get("transformer_options", {}),
        "optimized_attention_override": lambda _function, *args, **named: attention_pytorch(*args, **named),
    }
    return options


class _OrdinaryTensors(TorchFunctionMode):
    """Hands every operation an ordinary tensor over the same memory in place of an inference tensor or a weight.

    A weight's stand-in needs no gradient, so autograd does not keep the activations that only the weight's would need.
    """

    # These look at the tensor object itself, or make the stand-in.
    _AS_IS = frozenset(
        [
            "__get__",
            "__set__",
            "is_inference",
            "size",
            "dim",
            "stride",
            "storage_offset",
            "untyped_storage",
            "data_ptr",
            "numel",
            "element_size",
            "set_",
            "requires_grad_",
        ]
    )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self._AS_IS:
            return func(*args, **kwargs)
        args = tuple(_ordinary(value) for value in args)
        kwargs = {name: _ordinary(value) for name, value in kwargs.items()}
        # Newer encoders end a block with torch.add(..., out=buffer), which autograd refuses.
        if kwargs.get("out") is not None and any(isinstance(value, Tensor) and value.requires_grad for value in args):
            kwargs.pop("out")
        return func(*args, **kwargs)


def _ordinary(value: Any) -> Any:
    if isinstance(value, Tensor):
        # Quantised and other wrapped tensors have no memory of their own to share.
        wrapped = type(value) not in (Tensor, nn.Parameter) or type(value.data) is not Tensor
        if wrapped or not (_is_inference(value) or (isinstance(value, nn.Parameter) and value.requires_grad)):
            return value
        with torch.no_grad():
            same_memory = torch.empty(0, dtype=value.dtype, device=value.device)
            return same_memory.set_(value.untyped_storage(), value.storage_offset(), value.size(), value.stride())
    if type(value) in (list, tuple):
        return type(value)(_ordinary(item) for item in value)
    return value


def _is_inference(tensor: Tensor) -> bool:
    if tensor.is_inference():
        return True
    try:
        # A weight moved by `.to()` outside inference mode no longer says so, but still has no version.
        _ = tensor._version
    except RuntimeError:
        return True
    return False


@contextlib.contextmanager
def _saved_by_value(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """Autograd saves copies, so that neither an in-place addition nor a reused buffer can overwrite what it saved.

    The modules' own weights are saved as they are: nothing writes to them.
    """
    weights = {
        parameter.untyped_storage().data_ptr()
        for module in modules
        for parameter in module.parameters()
        if type(parameter.data) is Tensor
    }

    def pack(tensor: Tensor) -> Tensor:
        return tensor if tensor.untyped_storage().data_ptr() in weights else tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


@contextlib.contextmanager
def _no_fused_kernels() -> Iterator[None]:
    """Newer versions of ComfyUI have kernels without a backward pass, and leave them out while `in_training` is set."""
    before = getattr(comfy.model_management, "in_training", None)
    if before is None:
        yield
        return
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before
