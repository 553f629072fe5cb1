"""The noise-predicting UNet: ComfyUI's UNetModel under SD1.5's noise schedule."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip
import comfy.ops
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from comfy.model_sampling import ModelSamplingDiscrete

from ..architectures import UNET
from .initialise import initialise, zero
from .latents import Captioned, Conditionings
from .loop import Schedule, train

BATCH = 64
IMAGES, IMAGES_STEPS = Schedule(3_400, 8e-4), 2_754
WORDS = Schedule(1_200, 7e-4, warmup=100)  # last, rare words as often as common ones
_EVEN_STEPS = 624  # the first steps weigh the noise of every level alike, which brings the details
# Later on a third of each batch goes to the highest levels: there the caption decides place, colour and background,
# while hardly anything of the image can be seen.
_LAYOUT_STEP, _LAYOUT_TIME = 1_366, 800


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
    images, loss = Captioned(folder), NoiseLoss()

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator, words: bool) -> Tensor:
        drawn = images.batch(rng, BATCH, rare_words=words)
        lowest = _LAYOUT_TIME if words or step >= _LAYOUT_STEP else None
        return loss(model, *drawn, rng, lowest, layout=words or step >= _EVEN_STEPS)

    phase = partial(loss_at, words=False)
    model = train("unet_pictures", build(), phase, IMAGES, folder, seed=51, stop=IMAGES_STEPS)
    phase = partial(loss_at, words=True)
    return train("unet", model.requires_grad_(True), phase, WORDS, folder, seed=52)


class NoiseLoss:
    """Weighted squared error of the noise, at levels of SD1.5's schedule."""

    def __init__(self) -> None:
        self._conditionings = Conditionings()
        self._sigmas = ModelSamplingDiscrete().sigmas.to(DEVICE)

    def __call__(
        self,
        model: nn.Module,
        clean: Tensor,
        captions: list[str],
        rng: np.random.Generator,
        lowest: int | None,
        layout: bool,
        every: int = 3,
    ) -> Tensor:
        """With `lowest`, every third image (or `every`) has a time of at least that; `layout` says how levels are
        weighed."""
        context, _ = self._conditionings.encode(captions)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32)).to(DEVICE)
        # One level from each of N equal parts of the schedule: the same mean loss with less scatter.
        spread = (np.arange(len(clean)) + rng.random(len(clean))) / len(clean)
        even = rng.permutation(spread) * len(self._sigmas)
        if lowest is not None:
            even[::every] = rng.uniform(lowest, len(self._sigmas), len(even[::every]))
        times = torch.from_numpy(even.astype(int)).to(DEVICE)
        sigma = self._sigmas[times].view(-1, 1, 1, 1)
        noised = (clean + sigma * noise) / (1 + sigma**2).sqrt()
        with autocast():
            predicted = model(noised, times.float(), context=context).float()
        return (_weight(sigma, layout) * (predicted - noise).square()).mean()


def _weight(sigma: Tensor, layout: bool) -> Tensor:
    """Weight of the noise error at each level.

    An error of the noise is an error sigma times as large of the image. Weighing it alike therefore neglects the high
    levels, at which an image's layout is decided; weighing it as an error of the velocity, sigma^2 + 1, does not.
    Nearly clean levels count less in either case (Min-SNR: Hang et al. 2023).
    """
    nearly_clean = 5 * sigma**2
    if not layout:
        return nearly_clean.clamp(max=1.0)
    return torch.minimum(nearly_clean, sigma**2 + 1).clamp(max=30.0)
