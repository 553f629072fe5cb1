"""The autoencoder: ComfyUI's TAESD class with 16 channels, so that the stock VAE loader reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip
from comfy.taesd.taesd import TAESD, Block

from ..architectures import LATENT_CHANNELS, VAE_SCALE, VAE_SHIFT
from ..loader import VAE_FILE, WEIGHTS
from ..world.draw import SIZE
from .data import Scenes, natural_scenes, uniform_scenes
from .initialise import initialise, zero
from .loop import Schedule, train

STEPS, BATCH, CROP = 2_400, 16, 64
AT_ONCE = 8  # images: more do not fit a CPU's cache


def build() -> TAESD:
    vae = TAESD(latent_channels=LATENT_CHANNELS)
    initialise(vae)
    # The class has no normalisation layers: keep the variance through plain convolutions, start blocks as identities.
    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    for layer in vae.modules():
        if isinstance(layer, Block):
            zero(layer.conv[-1])
    nn.init.normal_(vae.taesd_decoder[-1].weight, std=0.01)
    nn.init.constant_(vae.taesd_decoder[-1].bias, 0.5)
    vae.vae_scale.requires_grad_(False).fill_(VAE_SCALE)
    vae.vae_shift.requires_grad_(False).fill_(VAE_SHIFT)
    return vae.to(DEVICE, memory_format=torch.channels_last)


def trained() -> TAESD:
    """As the weight file has it."""
    vae = build().eval()
    vae.load_state_dict(load_file(WEIGHTS / VAE_FILE))
    return vae


@torch.no_grad()
def encoded(vae: TAESD, images: np.ndarray) -> Tensor:
    """Latents `[N, 16, 16, 16]` (float32, on the CPU) of images `uint8 [N, H, W, 3]`; best of AT_ONCE images."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with autocast():
        latents = vae.taesd_encoder(pixels.to(DEVICE, memory_format=torch.channels_last))
    return latents.float().cpu().contiguous()


def train_vae(folder: Path) -> TAESD:
    torch.manual_seed(20)
    natural, uniform = natural_scenes(folder), uniform_scenes(folder)

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        whole = step >= 0.9 * STEPS  # crops are cheaper; the last tenth sees whole images and so their borders
        count = BATCH // 4 if whole else BATCH
        source = uniform if rng.random() < 0.5 else natural
        images = _images(source, rng, count, SIZE if whole else CROP)
        return _loss(model, images, min(1.0, step / 1000), rng)

    return train("vae", build(), loss_at, Schedule(STEPS, 1.2e-3, weight_decay=0.0), folder, seed=21)


def _loss(model: nn.Module, images: Tensor, noisiness: float, rng: np.random.Generator) -> Tensor:
    with autocast():
        latents = model.taesd_encoder(images).float()
        # The decoder learns to read latents that are a little wrong, as a denoiser's are.
        level = torch.from_numpy(rng.uniform(0, 0.4 * noisiness, (len(latents), 1, 1, 1))).float()
        noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32))
        decoded = model.taesd_decoder(latents + (level * noise).to(DEVICE)).float()
    error = (decoded - images).abs().mean() + 4 * (decoded - images).square().mean()
    edges = sum((d(decoded) - d(images)).abs().mean() for d in (_across, _down))
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    unit = mean.square().mean() + (std - 1).square().mean()
    return error + edges + 0.05 * unit


def _across(x: Tensor) -> Tensor:
    return x[..., 1:] - x[..., :-1]


def _down(x: Tensor) -> Tensor:
    return x[..., 1:, :] - x[..., :-1, :]


def _images(source: Scenes, rng: np.random.Generator, count: int, side: int) -> Tensor:
    """Crops `[count, 3, side, side]` in 0..1."""
    room = SIZE - side
    cuts = []
    for k in rng.integers(len(source), size=count):
        y, x = (np.clip(rng.normal(room / 2, room / 3, 2), 0, room)).astype(int)
        cuts.append(source.images[k, y : y + side, x : x + side])
    images = torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).float() / 255
    return images.to(DEVICE, memory_format=torch.channels_last)
