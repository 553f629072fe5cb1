"""What a model reads of two conditionings, blended into one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import comfy.conds
import comfy.utils
import torch
from torch import Tensor

_MOST_REPEATS = 4  # as ComfyUI: texts of different length are repeated to a common one up to this
_PLAIN = (bool, int, float, str, type(None))


def blended(first: Mapping[str, Any], second: Mapping[str, Any], weight: float, batch: int) -> dict[str, Any]:
    """Model conditions (`comfy.conds`) `second + (first - second) * weight`, for a batch of so many images.

    Texts of different length are repeated to a common one, as ComfyUI repeats them; what one of the two masks lets the
    model read, it reads. What the second lacks is as in the first. Raises ValueError, which names it, for what cannot
    be blended.
    """
    found = {}
    for name, cond in first.items():
        if name in second:
            found[name] = _blended(name, cond, second[name], weight, batch)
        elif not _is_mask(name, cond):  # no mask means that all is read
            found[name] = cond
    return found


def can_blend(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether the tensors of two dictionaries have shapes that can be blended; what is in one of them only does not
    count."""
    pairs = [(first[name], second[name]) for name in first if name in second]
    return all(_fit(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor))


def common_length(a: int, b: int) -> int | None:
    """The number of tokens to which texts of these lengths are repeated; None where none is near enough."""
    return math.lcm(a, b) if math.lcm(a, b) // min(a, b) <= _MOST_REPEATS else None


def _fit(a: Tensor, b: Tensor) -> bool:
    if a.shape[1:] == b.shape[1:]:
        return True
    # Texts [B, T, D] and their masks [B, T].
    texts = a.ndim == b.ndim and a.ndim in (2, 3) and a.shape[2:] == b.shape[2:]
    return texts and common_length(a.shape[1], b.shape[1]) is not None


def _blended(name: str, first: Any, second: Any, weight: float, batch: int) -> Any:
    a, b = first.cond, second.cond
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return first._copy_with([_mixed(name, p, q, weight, batch) for p, q in zip(a, b, strict=True)])
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if _is_mask(name, first) and a.ndim == b.ndim == 2 and _fit(a, b):
            return first._copy_with(torch.maximum(*_alike(a, b.to(a), batch)))
        return first._copy_with(_mixed(name, a, b, weight, batch))
    if name == "num_tokens" and isinstance(a, int) and isinstance(b, int):
        return first if a >= b else second
    if isinstance(a, _PLAIN) and isinstance(b, _PLAIN) and a != b:
        raise ValueError(_refusal(name, str(a), str(b)))
    return first


def _is_mask(name: str, cond: Any) -> bool:
    """Which tokens the model reads; masks of the image have the image's shape."""
    return "mask" in name and isinstance(cond.cond, Tensor) and cond.cond.ndim == 2


def _mixed(name: str, a: Tensor, b: Tensor, weight: float, batch: int) -> Tensor:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return a
    if not a.is_floating_point():
        if a.shape == b.shape and torch.equal(a, b.to(a)):
            return a
        raise ValueError(_refusal(name, "numbers of tokens in a vocabulary", "others"))
    if not _fit(a, b):
        raise ValueError(_refusal(name, f"of shape {list(a.shape)}", f"of shape {list(b.shape)}"))
    a, b = _alike(a, b.to(a), batch)
    return b + (a - b) * weight


def _alike(a: Tensor, b: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Rows and tokens repeated to common numbers."""
    if a.shape[1:] != b.shape[1:]:
        length = math.lcm(a.shape[1], b.shape[1])
        a, b = (one.repeat(1, length // one.shape[1], *[1] * (one.ndim - 2)) for one in (a, b))
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        a, b = comfy.utils.repeat_to_batch_size(a, batch), comfy.utils.repeat_to_batch_size(b, batch)
    return a, b


def _refusal(name: str, first: str, second: str) -> str:
    return (
        f"The two conditionings of a schedule cannot be blended for this model: {name} is {first} in one and {second} "
        "in the other. Give both texts the same number of tokens, or set easing (schedule in Diverse Prompts Options) "
        'to "hold", which switches from one to the other.'
    )
