"""The flow-matching MMDiT of the SD3 family, at sizes that ComfyUI's stock loader detects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE  # isort: skip
import comfy.ops
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper, get_2d_sincos_pos_embed

from ..architectures import MMDIT
from .data import natural_scenes
from .initialise import initialise, zero
from .latents import Conditionings, captions_for, encode_latents
from .loop import Schedule, train

STEPS, BATCH = 5_000, 64
SHIFT = 3.0  # the noise levels that ComfyUI's SD3 sampling visits
SHORT = 20  # no caption is longer in tokens


def build() -> OpenAISignatureMMDITWrapper:
    model = OpenAISignatureMMDITWrapper(**MMDIT, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    initialise(model)
    width, side = 64 * MMDIT["depth"], MMDIT["pos_embed_max_size"]
    model.pos_embed.copy_(torch.from_numpy(get_2d_sincos_pos_embed(width, side)).float().unsqueeze(0))
    for name, layer in model.named_modules():
        if name.endswith("adaLN_modulation.1") or name.endswith("final_layer.linear"):
            zero(layer)
    return model.to(DEVICE)


def train_mmdit(folder: Path) -> nn.Module:
    torch.manual_seed(60)
    latents, scenes = encode_latents(folder), natural_scenes(folder).scenes
    conditionings = Conditionings()

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(len(latents), size=BATCH)
        context, pooled = conditionings.encode(captions_for(scenes, chosen, rng))
        clean = latents[chosen].float().to(DEVICE)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32)).to(DEVICE)
        return velocity_loss(model, clean, noise, context, pooled, levels(rng), rng, step > 0.8 * STEPS)

    return train("mmdit", build(), loss_at, Schedule(STEPS, 1e-3), folder, seed=61)


def levels(rng: np.random.Generator) -> Tensor:
    """Logit-normal noise levels `[BATCH]`, one from each of BATCH equal parts, shifted as in sampling."""
    spread = torch.from_numpy((np.arange(BATCH) + rng.random(BATCH)) / BATCH).clamp(1e-4, 1 - 1e-4)
    sigma = torch.sigmoid(torch.special.ndtri(spread))[torch.from_numpy(rng.permutation(BATCH))]
    return (SHIFT * sigma / (1 + (SHIFT - 1) * sigma)).float().to(DEVICE)


def velocity_loss(
    model: nn.Module,
    clean: Tensor,
    noise: Tensor,
    context: Tensor,
    pooled: Tensor,
    sigma: Tensor,
    rng: np.random.Generator,
    always_whole: bool,
) -> Tensor:
    """Mean squared error of the velocity (noise - clean) at the levels `sigma` `[N]`.

    The padding behind a caption costs most of the time, so most early steps leave it out; the last steps, like
    sampling, see all 77 tokens.
    """
    if not always_whole and rng.random() < 0.75:
        context = context[:, :SHORT]
    level = sigma.view(-1, 1, 1, 1)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        predicted = model((1 - level) * clean + level * noise, sigma * 1000, context=context, y=pooled).float()
    return (predicted - (noise - clean)).square().mean()
