"""Small encoders and models quantised as people have them: through ComfyUI's own `mixed_precision_ops`, and as GGUF's.

Call `devtools.pack.load_comfyui()` before importing this module. What the ComfyUI at hand lacks is not in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import comfy.ops
import comfy.quant_ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.supported_models_base import BASE
from torch import Tensor, nn

from . import encoders
from .encoders import small_encoder

# fp8 scaled, int8, four bits with eight-bit activations, four-bit floats: names of ComfyUI's.
_WANTED = ("float8_e4m3fn", "int8_tensorwise", "asym_w4a8_int8", "nvfp4", "mxfp8")
_ALGORITHMS: dict[str, Any] = getattr(comfy.quant_ops, "QUANT_ALGOS", {})
HAS_MIXED_PRECISION = hasattr(comfy.ops, "mixed_precision_ops") and "int8_tensorwise" in _ALGORITHMS
FORMATS = tuple(name for name in _WANTED if name in _ALGORITHMS) if HAS_MIXED_PRECISION else ()


def quantised_encoder(kind: str, form: str) -> Any:
    """A small CLIP whose linear layers are quantised in one of `FORMATS`, by the operations that its loader takes."""
    clip = small_encoder(kind, options={"custom_operations": _operations(full_precision_mm=True)})
    quantise(clip.cond_stage_model, form)
    return clip


@contextmanager
def encoders_kept(form: str) -> Iterator[None]:
    """Text encoders of any family made inside are of "fp16" or "bf16", or ready for one of `FORMATS`."""
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
    options = {"dtype": dtypes[form]} if form in dtypes else {}
    if form in FORMATS:
        options = {"custom_operations": _operations(full_precision_mm=True)}
    real = encoders.empty_encoder

    def made(model: Any, tokenizer: Any, sizes: dict[str, Any], data: dict[str, Any] | None = None) -> Any:
        return real(model, tokenizer, {**sizes, **options}, data)

    with mock.patch.object(encoders, "empty_encoder", made):
        yield


def quantised_model(make: Callable[[], ModelPatcher], form: str, native: bool = False) -> ModelPatcher:
    """The small diffusion model that `make` makes, its linear layers quantised in one of `FORMATS`. On the CPU ComfyUI
    emulates the matrix products of some; native: all are taken as on a GPU that computes in them."""
    emulated = set() if native else {"nvfp4", "mxfp8", "float8_e4m3fn", "float8_e5m2"}
    before = BASE.custom_operations
    BASE.custom_operations = _operations(disabled=emulated)
    try:
        model = make()
    finally:
        BASE.custom_operations = before
    quantise(model.model.diffusion_model, form, full_precision=form in emulated)
    return model


def _operations(**options: Any) -> Any:
    """ComfyUI's own, whose linear layers have a weight before a file is loaded."""
    stock = comfy.ops.mixed_precision_ops({}, torch.float32, **options)

    class Linear(stock.Linear):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            weight = torch.empty(self.out_features, self.in_features, **self.factory_kwargs)
            self.weight = nn.Parameter(weight, requires_grad=False)

    experts = {"MoEExperts": _experts(stock)} if hasattr(stock, "MoEExperts") else {}
    return type("Operations", (stock,), {"Linear": Linear, **experts})


def _experts(stock: Any) -> Any:
    class MoEExperts(stock.MoEExperts):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.weight = nn.Parameter(torch.empty(self._orig_shape), requires_grad=False)

    return MoEExperts


def plain_operations() -> Any:
    """For classes that exist with these operations alone; nothing is quantised."""
    return _operations(full_precision_mm=True)


def quantise(network: nn.Module, form: str, full_precision: bool = False) -> int:
    """Quantises the linear layers of a network made with `mixed_precision_ops`; how many it has.

    full_precision: their matrix products are computed on the weights as numbers of full precision.
    """
    layout, count = _ALGORITHMS[form]["comfy_tensor_layout"], 0
    # Of the released files' 256; the layers here are of 64.
    sizes: dict[str, Any] = {"convrot_groupsize": 64} if form == "asym_w4a8_int8" else {"scale": "recalculate"}
    with torch.inference_mode():
        for module in network.modules():
            if hasattr(module, "_full_precision_mm") and isinstance(getattr(module, "weight", None), nn.Parameter):
                if module.weight.ndim != 2 or not hasattr(module, "in_features"):
                    continue
                if module.in_features % sizes.get("convrot_groupsize", 1):  # too narrow: left as it is
                    continue
                weight = comfy.quant_ops.QuantizedTensor.from_float(module.weight.data, layout, **sizes)
                module.weight = nn.Parameter(weight, requires_grad=False)
                kept: Any = module
                kept.layout_type, kept.quant_format = layout, form
                kept._full_precision_mm = kept._full_precision_mm or full_precision
                count += 1
    return count


class PackedWeight(Tensor):
    """As GGUF nodes have them: integers with a scale, which `clone()` and `detach()` leave as they are."""

    scale: Tensor

    @staticmethod
    def of(weight: Tensor) -> PackedWeight:
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        packed = (weight / scale).round().to(torch.int8).as_subclass(PackedWeight)
        packed.scale = scale
        return packed

    def clone(self, *_: Any, **__: Any) -> PackedWeight:
        return self

    def detach(self, *_: Any, **__: Any) -> PackedWeight:
        return self

    def unpacked(self, like: Tensor) -> Tensor:
        return self.as_subclass(Tensor).to(like.dtype) * self.scale.to(like)


def pack(network: nn.Module) -> int:
    """Packs the linear layers of a network as GGUF nodes do: the weight is unpacked in every call."""
    count = 0
    with torch.inference_mode():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                weight, bias = PackedWeight.of(module.weight.data), module.bias

                def forward(x: Tensor, *_: Any, weight: PackedWeight = weight, bias: Any = bias, **__: Any) -> Tensor:
                    return nn.functional.linear(x, weight.unpacked(x), None if bias is None else bias.to(x))

                setattr(module, "forward", forward)  # noqa: B010
                module.weight = nn.Parameter(weight, requires_grad=False)
                count += 1
    return count
