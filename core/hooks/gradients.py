"""The one context in which gradients flow through ComfyUI's models.

ComfyUI runs nodes under `torch.inference_mode()`, so weights, conditionings and sigmas are inference tensors, which
autograd refuses to save; and several model families add their residuals in place, which overwrites what autograd has
saved. Inside `gradients(...)` neither matters, and nothing in the shared model changes.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten


@contextlib.contextmanager
def gradients(*modules: nn.Module) -> Iterator[None]:
    """Gradients can be taken inside, also through `modules`: give every model whose forward pass is differentiated.

    Ask for the gradient of inputs by `torch.autograd.grad`, never by `backward()`. Weights get no gradient. Tensors
    that come from outside the context may be used as they are. Without modules only autograd is switched on: enough
    where the forward passes themselves need no gradient.
    """
    with _gradients(_fixed(modules) if modules else None):
        yield


@contextlib.contextmanager
def _gradients(fixed: set[int | None] | None) -> Iterator[None]:
    """fixed: see `_saved_by_value`; None for no models."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if fixed is not None:
            stack.enter_context(_no_fused_kernels())
            stack.enter_context(_quantised_layers())
            stack.enter_context(_OrdinaryTensors())
            stack.enter_context(_saved_by_value(fixed))
        yield


@contextlib.contextmanager
def checkpointed(*modules: nn.Module) -> Iterator[None]:
    """Forward passes inside, and within `gradients(*modules)`, keep no more of each layer of these models than what
    goes into it; the pass back computes the layer again: up to a third more time for a fraction of the memory.

    PyTorch's own checkpointing gives wrong gradients, without a word, for layers that add their residuals in place.
    What is hooked into a layer is called twice for it. On leaving, the models are as they were.
    """
    fixed = _fixed(modules)  # once: every layer asks for it in the pass back
    with contextlib.ExitStack() as stack:
        for layer in itertools.chain.from_iterable(_layers(module) for module in modules):
            stack.enter_context(_replaced_forward(layer, modules, fixed))
        yield


def casts_weights(module: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices of a model's layers are kept in another type or elsewhere than it computes, or are changed at
    every call (LoRAs): a graph keeps the copies that were made for the call, which together are the whole model."""
    for layer in _layers(module):
        for part in layer.modules():
            own = [weight for weight in part._parameters.values() if weight is not None and weight.ndim > 1]
            if own and getattr(part, "weight_function", None):
                return True
            if any(_is_wrapped(one) or one.dtype != dtype or one.device != device for one in own):
                return True
    return False


def largest_layer(module: nn.Module) -> int:
    """How many numbers the weights of a model's largest layer have."""
    return max((sum(one.numel() for one in layer.parameters()) for layer in _layers(module)), default=0)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The modules of a model's lists, in place of one that holds a list itself those of its own: the blocks of
    transformers and UNets."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            for item in child:
                # A UNet calls what is in the sequences of its list one by one.
                for layer in item if isinstance(item, nn.Sequential) else [item]:
                    inner = any(isinstance(part, nn.ModuleList) for part in layer.modules())
                    yield from _layers(layer) if inner else [layer]
        else:
            yield from _layers(child)


@contextlib.contextmanager
def _replaced_forward(layer: nn.Module, modules: tuple[nn.Module, ...], fixed: set[int | None]) -> Iterator[None]:
    forward = layer.forward
    rewritten = {id(weight) for module in modules for weight in _rewritten(module)}
    places = [
        (part, name) for part in layer.modules() for name, weight in part._parameters.items() if id(weight) in rewritten
    ]

    def computed_again(*args: Any, **named: Any) -> Any:
        leaves, structure = tree_flatten((args, named))
        own = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not own or not torch.is_grad_enabled():
            return forward(*args, **named)
        inputs, shape = [leaves[k] for k in own], []
        with torch.no_grad():
            weights = [getattr(part, name).clone() for part, name in places]
        for k in own:
            leaves[k] = None  # kept by autograd, and not twice

        def run(*values: Tensor) -> tuple[Any, ...]:
            # Copies, to which layers add in place.
            given = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            for k, value in zip(own, values, strict=True):
                given[k] = value.clone()
            # Lists and dictionaries made anew: ComfyUI notes in them which layer it is at, and is elsewhere later on.
            again, words = tree_unflatten(given, structure)
            with _weights_of_then(places, weights):
                outputs, found = tree_flatten(forward(*again, **words))
            shape[:] = [found]
            return tuple(outputs)

        outputs = _Layer.apply(run, fixed, *inputs)
        return tree_unflatten(list(outputs), shape[0])

    own_attribute = "forward" in vars(layer)
    layer.forward = computed_again
    try:
        yield
    finally:
        if own_attribute:
            layer.forward = forward
        else:
            del layer.forward


@contextlib.contextmanager
def _weights_of_then(places: list[tuple[nn.Module, str]], weights: list[Tensor]) -> Iterator[None]:
    """A layer has these weights inside, whatever hooks have written since."""
    now = [part._parameters[name] for part, name in places]
    try:
        for (part, name), weight in zip(places, weights, strict=True):
            part._parameters[name] = nn.Parameter(weight, requires_grad=False)
        yield
    finally:
        for (part, name), weight in zip(places, now, strict=True):
            part._parameters[name] = weight


def _rewritten(module: nn.Module) -> list[Tensor]:
    """The weights that hooks (LoRAs of a part of the conditioning) write in the middle of a call of this model."""
    patches = getattr(getattr(module, "current_patcher", None), "hook_patches", {})
    names = {name for own in patches.values() for name in own}
    return [weight for name, weight in module.named_parameters() if name in names] if names else []


class _Layer(torch.autograd.Function):
    """A layer whose inputs alone are kept."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., tuple[Tensor, ...]], fixed: Any, *inputs: Tensor) -> Any:
        ctx.run, ctx.fixed = run, fixed
        ctx.save_for_backward(*inputs)
        with torch.no_grad():
            return run(*inputs)

    @staticmethod
    def backward(ctx: Any, *outward: Tensor | None) -> Any:
        inputs = [value.detach().requires_grad_() for value in ctx.saved_tensors]
        # The engine may call from a thread of its own, which is in none of our contexts.
        with _gradients(ctx.fixed):
            outputs = ctx.run(*inputs)
            pairs = [(a, b) for a, b in zip(outputs, outward, strict=True) if b is not None and a.requires_grad]
            found = torch.autograd.grad([a for a, _ in pairs], inputs, [b for _, b in pairs], allow_unused=True)
        return None, None, *found


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
        if func == _SET_DATA and isinstance(args[0], nn.Parameter):
            return _set_data(*args)
        if getattr(func, "__name__", "") in self._AS_IS:
            return func(*args, **kwargs)
        func = _differentiable(func, args)
        given = args[0] if func is torch.Tensor.to else None
        args = tuple(_ordinary(value) for value in args)
        kwargs = {name: _ordinary(value) for name, value in kwargs.items()}
        # Newer encoders end a block with torch.add(..., out=buffer), which autograd refuses.
        if kwargs.get("out") is not None and any(isinstance(value, Tensor) and value.requires_grad for value in args):
            kwargs.pop("out")
        result = func(*args, **kwargs)
        # Where nothing is to be moved, `.to()` gives the tensor itself: a module's `.to()` keeps what it gets.
        return given if given is not None and result is args[0] else result


_SET_DATA = torch.Tensor.data.__set__  # pyrefly: ignore[missing-attribute]


def _set_data(weight: nn.Parameter, value: Tensor) -> None:
    """`weight.data = value`, as some models' own code asks in the middle of a call (`module.to(device)`).

    An inference tensor whose data become ordinary outside of inference mode is neither kind, and the model useless.
    """
    if value.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr() and value.shape == weight.shape:
        return
    with torch.inference_mode(_is_inference(weight)):
        _SET_DATA(weight, value.clone())


def _differentiable(func: Callable[..., Any], args: tuple[Any, ...]) -> Callable[..., Any]:
    """In place of one of ComfyUI's fused kernels (comfy_kitchen), which have no backward pass, the same computation in
    PyTorch's own operations, from that package; any other function as it is."""
    name = getattr(func, "_qualified_op_name", None) or getattr(getattr(func, "_schema", None), "name", "")
    library, _, operation = str(name).partition("::")
    if library != "comfy_kitchen" or not any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in args):
        return func
    return getattr(sys.modules.get("comfy_kitchen.backends.eager"), operation, func)


def _ordinary(value: Any) -> Any:
    if isinstance(value, Tensor):
        # Quantised and other wrapped tensors have no memory of their own to share.
        is_weight = type(value) is nn.Parameter
        if _is_wrapped(value) or not (_is_inference(value) or (is_weight and value.requires_grad)):
            return value
        with torch.no_grad():
            same_memory = torch.empty(0, dtype=value.dtype, device=value.device)
            return same_memory.set_(value.untyped_storage(), value.storage_offset(), value.size(), value.stride())
    if type(value) in (list, tuple):
        return type(value)(_ordinary(item) for item in value)
    return value


def _is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor is of a kind of its own, as quantised ones are."""
    return type(tensor.data if type(tensor) is nn.Parameter else tensor) is not Tensor


def _is_inference(tensor: Tensor) -> bool:
    if tensor.is_inference():
        return True
    try:
        # A weight moved by `.to()` outside inference mode no longer says so, but still has no version.
        _ = tensor._version
    except RuntimeError:
        return True
    return False


def _fixed(modules: tuple[nn.Module, ...]) -> set[int | None]:
    """Where the weights of these models lie that nothing overwrites: all but those that hooks write to."""
    weights = {_address(parameter) for module in modules for parameter in module.parameters()}
    return weights - {_address(weight) for module in modules for weight in _rewritten(module)} - {None}


@contextlib.contextmanager
def _saved_by_value(fixed: set[int | None]) -> Iterator[None]:
    """Autograd saves copies, so that neither an in-place addition nor a reused buffer can overwrite what it saved; but
    for what is `fixed`, which it saves as it is."""

    def pack(tensor: Tensor) -> Tensor:
        return tensor if _address(tensor) in fixed else tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def _address(tensor: Tensor) -> int | None:
    """Where a tensor's memory is; of a quantised one, which has none of its own, that of its numbers. None for one of
    another kind that has none."""
    try:
        while hasattr(tensor, "__tensor_flatten__"):
            inner, _ = tensor.__tensor_flatten__()
            tensor = getattr(tensor, inner[0])
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return None


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


@contextlib.contextmanager
def _quantised_layers() -> Iterator[None]:
    """Newer versions of ComfyUI have a gradient for layers that round their activations, too (fp8 on GPUs that compute
    in it), by a function that keeps the weight: inside, an ordinary tensor over the same memory."""
    stock = getattr(comfy.ops, "QuantLinearFunc", None)
    if stock is None or isinstance(stock, _QuantisedLayer):
        yield
        return
    setattr(comfy.ops, "QuantLinearFunc", _QuantisedLayer(stock))  # noqa: B010
    try:
        yield
    finally:
        setattr(comfy.ops, "QuantLinearFunc", stock)  # noqa: B010


class _QuantisedLayer:
    """In place of a function of autograd's whose second and third arguments are a weight and a bias."""

    def __init__(self, stock: Any) -> None:
        self._stock = stock

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        return self._stock.apply(x, _rewrapped(weight), None if bias is None else _rewrapped(bias), *rest)


def _rewrapped(tensor: Tensor) -> Tensor:
    """An ordinary tensor over the same memory; of a quantised one, one of its kind over ordinary numbers."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return _ordinary(tensor)
    with torch.no_grad():
        kind: Any = type(tensor)
        names, settings = tensor.__tensor_flatten__()
        parts = {name: _ordinary(getattr(tensor, name)) for name in names}
        return kind.__tensor_unflatten__(parts, settings, None, None)
