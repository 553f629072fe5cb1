"""First weights for models built from ComfyUI's operations, which leave their parameters uninitialised."""

from __future__ import annotations

from torch import nn


def initialise(model: nn.Module) -> None:
    """PyTorch's own default initialisation for every layer, which ComfyUI's layer classes switch off."""
    for layer in model.modules():
        for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Embedding):
            if isinstance(layer, kind):
                kind.reset_parameters(layer)
        if type(layer).__name__ == "RMSNorm" and getattr(layer, "weight", None) is not None:
            nn.init.ones_(layer.weight)


def zero(layer: nn.Module) -> None:
    """Start a residual branch, or an output, at zero."""
    for parameter in layer.parameters(recurse=False):
        nn.init.zeros_(parameter)
