"""The unCLIP-style UNet: the demo UNet, led by the embedding of an image.

Goes on from the UNet's weight file. What cannot know an image's embedding stays as it is; learned are the reading of
the embedding and the layers that hear of it. First, in seconds, its words: those of the caption that tells everything
about the image. Then all of it together, on images. `y` is as ComfyUI's unCLIP models have it: the embedding of the
image, noised, and the level of that noise; zeros, or the embedding of no image at all, say nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from .comfy_boot import DEVICE  # isort: skip
import comfy.ops
from comfy.ldm.modules.encoders.noise_aug_modules import CLIPEmbeddingNoiseAugmentation

from ..architectures import UNCLIP_NOISE, UNCLIP_UNET, VISION
from ..loader import UNET_FILE, WEIGHTS, load_clip_vision
from ..packing import unpack
from ..unclip import PictureUNet
from ..world.attributes import Scene
from ..world.captions import OPTIONAL, caption
from .data import Scenes, natural_scenes, uniform_scenes
from .initialise import initialise, zero
from .latents import Conditionings, natural_latents, uniform_latents
from .loop import Schedule, train
from .unet import NoiseLoss

BATCH, NATURAL = 32, 6_000
WORDS_BATCH, WORDS = 256, Schedule(1_500, 2e-3, warmup=50, average=0.99)
IMAGES = Schedule(850, 4e-4, warmup=50, average=0.995)
# At times below this one the image's place, colour and background can be seen through the noise.
_LAYOUT_TIME, _LAYOUT_STEPS = 900, 650
_HIGHEST_LEVEL = 300  # of the noise on embeddings, of 1000
# Learned, besides the new layers: how a block hears of the time, and what cross-attention takes from the words.
_HEARING = ("emb_layers", "attn2.to_k", "attn2.to_v")


def build() -> PictureUNet:
    """The UNet of the weight file, with new layers for the image; weights that stay get no gradient."""
    model = PictureUNet(**UNCLIP_UNET, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    for new in (model.label_emb, model.picture_words):
        initialise(new)
    zero(model.label_emb[0][2])
    stored = {name: value.float() for name, value in unpack(load_file(WEIGHTS / UNET_FILE)).items()}
    missing, unexpected = model.load_state_dict(stored, strict=False)
    if unexpected or not all(is_new(name) for name in missing):
        raise SystemExit(f"{UNET_FILE} does not fit: missing {missing}, unexpected {unexpected}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_learned(name))
    return model.to(DEVICE)


def is_new(name: str) -> bool:
    return name.startswith(("label_emb.", "picture_words."))


def is_learned(name: str) -> bool:
    return is_new(name) or any(part in name for part in _HEARING)


class Images:
    """Scenes with their latents, and what CLIP's vision tower makes of them."""

    def __init__(self, folder: Path) -> None:
        natural, uniform = natural_scenes(folder), uniform_scenes(folder)
        embeddings = _embeddings(folder, natural, uniform)
        self.scenes: list[Scene] = natural.scenes[:NATURAL] + uniform.scenes
        self.latents = torch.cat([natural_latents(folder)[:NATURAL], uniform_latents(folder)])
        self.embeddings = embeddings["images"].float().to(DEVICE)
        self._none = embeddings["none"].float().to(DEVICE)
        self._noise = CLIPEmbeddingNoiseAugmentation(**UNCLIP_NOISE).to(DEVICE)

    def choose(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Numbers of scenes, half of them as the world draws them, half with every attribute equally likely."""
        rare = rng.random(count) < 0.5
        return np.where(rare, rng.integers(NATURAL, len(self.scenes), count), rng.integers(NATURAL, size=count))

    def told(self, chosen: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """`y` `[N, 2 E]` of these scenes, and which of them, `[N]`, it says nothing about."""
        levels = np.where(rng.random(len(chosen)) < 0.5, 0, rng.integers(0, _HIGHEST_LEVEL, len(chosen)))
        kind = rng.random(len(chosen))
        nothing, zeros = torch.from_numpy(kind < 0.12), torch.from_numpy(kind < 0.06)
        embeddings = torch.where(nothing.to(DEVICE)[:, None], self._none, self.embeddings[chosen])
        noise = torch.from_numpy(rng.standard_normal(embeddings.shape, np.float32)).to(DEVICE)
        steps = torch.from_numpy(levels).to(DEVICE)
        noised = self._noise.q_sample(embeddings, steps, noise=noise)
        y = torch.cat([noised, self._noise.time_embed(steps)], dim=1)
        return torch.where(zeros.to(DEVICE)[:, None], torch.zeros_like(y), y), nothing


@torch.no_grad()
def _embeddings(folder: Path, natural: Scenes, uniform: Scenes) -> dict[str, Tensor]:
    path = folder / "embeddings.safetensors"
    if not path.exists():
        vision = load_clip_vision()
        images = np.concatenate([natural.images[:NATURAL], uniform.images])
        found = [
            vision.encode_image(torch.from_numpy(images[k : k + 64]).float() / 255)["image_embeds"]
            for k in tqdm(range(0, len(images), 64), desc="embeddings", mininterval=5)
        ]
        side = VISION["image_size"]
        none = vision.model(pixel_values=torch.zeros(1, 3, side, side, device=vision.load_device))[2]
        save_file({"images": torch.cat(found).half(), "none": none.half().cpu()}, path)
    return load_file(path)


def train_unclip(folder: Path) -> nn.Module:
    torch.manual_seed(90)
    images, conditionings, loss = Images(folder), Conditionings(), NoiseLoss()
    model = build()
    words = train("unclip_words", model.picture_words, _words_loss(images, conditionings), WORDS, folder, seed=91)
    model.picture_words.load_state_dict(words.state_dict())

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        chosen = images.choose(rng, BATCH)
        y, _ = images.told(chosen, rng)
        clean = images.latents[chosen].float().to(DEVICE)
        lowest = _LAYOUT_TIME if step < _LAYOUT_STEPS else None
        return loss(_Told(model, y), clean, [""] * BATCH, rng, lowest, layout=True, every=2)

    return train("unclip", model, loss_at, IMAGES, folder, seed=92)


class _Told(nn.Module):
    """A denoiser with its `y` given."""

    def __init__(self, model: nn.Module, y: Tensor) -> None:
        super().__init__()
        self._model, self._y = model, y

    def forward(self, *args: Any, **named: Any) -> Tensor:
        return self._model(*args, y=self._y, **named)


def _words_loss(
    images: Images, conditionings: Conditionings
) -> Callable[[nn.Module, int, np.random.Generator], Tensor]:
    """How far an image's words are from what its full caption adds to the empty prompt."""
    captions = [caption(scene, OPTIONAL) for scene in images.scenes]
    for k in range(0, len(captions), 256):
        conditionings.encode(captions[k : k + 256])
    empty, _ = conditionings.encode([""])

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        chosen = images.choose(rng, WORDS_BATCH)
        y, nothing = images.told(chosen, rng)
        full, _ = conditionings.encode([captions[k] for k in chosen])
        added = torch.where(nothing.to(DEVICE)[:, None, None], 0.0, full - empty)
        return (model(y) - added).square().mean()

    return loss_at
