"""The noise-predicting UNet: ComfyUI's UNetModel under SD1.5's noise schedule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE  # isort: skip
import comfy.ops
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from comfy.model_sampling import ModelSamplingDiscrete

from ..architectures import UNET
from .data import natural_scenes
from .initialise import initialise, zero
from .latents import Conditionings, captions_for, encode_latents
from .loop import Schedule, train

STEPS, BATCH = 3_400, 64
_SNR_CEILING = 5.0  # Min-SNR weighting (Hang et al. 2023): the last, nearly clean levels do not crowd out the others


def build() -> UNetModel:
    unet = UNetModel(**UNET, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    initialise(unet)
    for layer in unet.modules():
        if isinstance(layer, ResBlock):
            zero(layer.out_layers[-1])
        if isinstance(layer, SpatialTransformer):
            zero(layer.proj_out)
    zero(unet.out[-1])
    return unet.to(DEVICE)


def train_unet(folder: Path) -> nn.Module:
    torch.manual_seed(50)
    latents, scenes = encode_latents(folder), natural_scenes(folder).scenes
    conditionings = Conditionings()
    sigmas = ModelSamplingDiscrete().sigmas.to(DEVICE)

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(len(latents), size=BATCH)
        context, _ = conditionings.encode(captions_for(scenes, chosen, rng))
        clean = latents[chosen].float().to(DEVICE)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32)).to(DEVICE)
        # One level from each of BATCH equal parts of the schedule: the same mean loss with less scatter.
        spread = (np.arange(BATCH) + rng.random(BATCH)) / BATCH
        times = torch.from_numpy((rng.permutation(spread) * len(sigmas)).astype(int)).to(DEVICE)
        sigma = sigmas[times].view(-1, 1, 1, 1)
        noised = (clean + sigma * noise) / (1 + sigma**2).sqrt()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            predicted = model(noised, times.float(), context=context).float()
        weight = (sigma**2 * _SNR_CEILING).clamp(max=1.0)
        return (weight * (predicted - noise).square()).mean()

    return train("unet", build(), loss_at, Schedule(STEPS, 8e-4), folder, seed=51)
