"""What prompts have attached: a small ControlNet of SD1.5's kind, from ComfyUI's own class, and a LoRA by a hook.

Call `devtools.pack.load_comfyui()` before importing this module.
"""

from __future__ import annotations

from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.ops
import torch

from .models import CPU, WIDTH, _randomise


def small_controlnet(seed: int = 0) -> comfy.controlnet.ControlNet:
    """For `small_model("eps")`, whose blocks it has."""
    with torch.inference_mode():
        network = comfy.cldm.cldm.ControlNet(
            image_size=32,
            in_channels=4,
            model_channels=32,
            hint_channels=3,
            num_res_blocks=[1, 1],
            channel_mult=(1, 2),
            num_heads=4,
            use_spatial_transformer=True,
            transformer_depth=[1, 1],
            transformer_depth_middle=1,
            context_dim=WIDTH,
            use_linear_in_transformer=True,
            legacy=False,
            dtype=torch.float32,
            device=CPU,
            operations=comfy.ops.manual_cast,
        )
        _randomise(network, seed)
    return comfy.controlnet.ControlNet(network, load_device=CPU)


def hook_lora(model: Any, seed: int) -> comfy.hooks.HookGroup:
    """As Create Hook LoRA makes it; moves every matrix of the network by as much as it is large."""
    generator = torch.Generator().manual_seed(seed)
    hook = comfy.hooks.WeightHook()
    hook.need_weight_init = False
    hook.weights = {}
    for name, weight in model.model.named_parameters():
        if weight.ndim == 2:
            change = torch.randn(weight.shape, generator=generator) * float(weight.detach().std())
            hook.weights[name] = ("diff", (change,))
    group = comfy.hooks.HookGroup()
    group.add(hook)
    return group
