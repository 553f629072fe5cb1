"""The flow-matching MMDiT of the SD3 family, at sizes that ComfyUI's stock loader detects."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip
import comfy.ops
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper, get_2d_sincos_pos_embed

from ..architectures import MMDIT
from .initialise import initialise, zero
from .latents import Captioned, Conditionings
from .loop import Schedule, train

BATCH = 64
# First the shapes, at the noise levels that ComfyUI's SD3 sampling visits. Then also the layout: which place, colour
# and background a caption asks for is decided while hardly anything of the image can be seen, so half of each batch
# goes to those levels.
SHAPES, SHAPES_STEPS = Schedule(5_000, 1e-3), 3_310
LAYOUT = Schedule(3_000, 8e-4, warmup=100)
WORDS = Schedule(1_800, 8e-4, warmup=100)  # last, rare words as often as common ones
SHIFT, HIGH_SHIFT = 3.0, 20.0
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
    images, conditionings = Captioned(folder), Conditionings()

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator, layout: bool, words: bool, whole: int) -> Tensor:
        clean, captions = images.batch(rng, BATCH, rare_words=words)
        context, pooled = conditionings.encode(captions)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32)).to(DEVICE)
        return velocity_loss(model, clean, noise, context, pooled, levels(rng, layout), rng, step > whole)

    never = SHAPES.steps
    phase = partial(loss_at, layout=False, words=False, whole=never)
    model = train("mmdit_shapes", build(), phase, SHAPES, folder, seed=61, stop=SHAPES_STEPS)
    phase = partial(loss_at, layout=True, words=False, whole=2_100)
    model = train("mmdit_layout", model.requires_grad_(True), phase, LAYOUT, folder, seed=62)
    phase = partial(loss_at, layout=True, words=True, whole=1_250)
    return train("mmdit", model.requires_grad_(True), phase, WORDS, folder, seed=63)


def levels(rng: np.random.Generator, layout: bool) -> Tensor:
    """Logit-normal noise levels `[BATCH]`, one from each of BATCH equal parts, shifted as in sampling.

    With `layout` every second one is shifted further, towards pure noise.
    """
    spread = torch.from_numpy((np.arange(BATCH) + rng.random(BATCH)) / BATCH).clamp(1e-4, 1 - 1e-4)
    even = torch.sigmoid(torch.special.ndtri(spread))
    shift = torch.full_like(even, SHIFT)
    if layout:
        shift[::2] = HIGH_SHIFT
    sigma = shift * even / (1 + (shift - 1) * even)
    return sigma[torch.from_numpy(rng.permutation(BATCH))].float().to(DEVICE)


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
    with autocast():
        predicted = model((1 - level) * clean + level * noise, sigma * 1000, context=context, y=pooled).float()
    return (predicted - (noise - clean)).square().mean()


def correction_loss(
    model: nn.Module, state: Tensor, clean: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor
) -> Tensor:
    """Mean squared error of the velocity from `state`, of the levels `sigma` `[N]`, to `clean`, in the scale of
    images."""
    level = sigma.view(-1, 1, 1, 1)
    with autocast():
        found = model(state, sigma * 1000, context=context, y=pooled).float()
    return (level * found - (state - clean)).square().mean()
