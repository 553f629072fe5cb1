"""Whether a gradient passes through a model, found by taking one: error, zero, or not what finite differences say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .chunks import InChunks, is_out_of_memory
from .gradients import gradients

# What PyTorch says where something passes no gradient on.
_WORDS = (
    "does not require grad",
    "automatic differentiation",
    "autograd",
    "derivative",
    "inplace operation",
    "inference tensor",
)
_WRONG = 2.0  # by this factor
_SHARES = (0.3, 0.03)  # of the rows' own length: one of the two is neither rounding nor curvature


class BackwardError(RuntimeError):
    """What PyTorch, or a quantised layer, says in a backward pass, whatever the words."""


@contextmanager
def backward_pass() -> Iterator[None]:
    """Errors inside are BackwardErrors, but for those of memory."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise BackwardError(str(error)) from error


def is_about_gradients(error: RuntimeError) -> bool:
    """Whether an error says that something passes no gradient on."""
    if isinstance(error, BackwardError):
        return True
    words = str(error).lower()
    return any(one in words for one in _WORDS)


def missing_gradient(model: InChunks, rows: Tensor) -> str | None:
    """Why the gradient of `model` at `rows` `[N, ...]`, which are not zero, is of no use; None where it is right.

    One pass forward and back, and at most four passes forward.
    """
    with gradients():
        try:
            vectors, pullback = model(rows)
            generator = torch.Generator().manual_seed(0)
            weights = torch.randn(vectors.shape, generator=generator).to(vectors)
            with backward_pass():
                gradient = pullback(weights)
        except RuntimeError as error:
            if is_out_of_memory(error) or not is_about_gradients(error):
                raise
            return f"PyTorch says: {str(error).splitlines()[0]}"
        length = float(gradient.float().norm())
        if length == 0:
            return "its gradient is zero"
        slopes = []
        for share in _SHARES:
            step = share * float(rows.norm())
            ahead = gradient * (step / length)
            change = (model.forward_only(rows + ahead) - model.forward_only(rows - ahead)) * weights
            slopes.append(float(change.sum()) / (2 * step))
            if 1 / _WRONG < slopes[-1] / length < _WRONG:
                return None
        return f"its gradient is {length:.3g} where finite differences give {slopes[-1]:.3g}"
