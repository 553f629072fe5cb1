"""The denoisers' last phase: the CLIP has learned places, so they can, too.

Goes on from the weight files that the earlier phases wrote. Half of every batch are scenes whose *stated* attributes
are equally likely, however many are stated, so that a rare word is learned as well as a common one. What a caption
leaves open stays as the world draws it: attributes are independent given the object.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .comfy_boot import DEVICE  # isort: skip

from ..loader import MMDIT_FILE, UNET_FILE, WEIGHTS
from ..packing import unpack
from ..world.attributes import VALUES, Scene, sample_scene, sample_uniform_scene
from ..world.captions import OPTIONAL, caption, random_caption
from . import mmdit, unet
from .data import UNIFORM, uniform_scenes
from .latents import Captioned, Conditionings, uniform_latents
from .loop import Schedule, train

UNET, UNET_BATCH, UNET_STEPS = Schedule(1_400, 6e-4, warmup=100), 32, 950
MMDIT, MMDIT_WHOLE, MMDIT_STEPS = Schedule(1_600, 8e-4, warmup=100), 900, 1_100
# Last, every level of sampling evenly, at a rate that falls to nothing: for the details.
UNET_DETAILS = Schedule(220, 3e-4, warmup=10, average=0.99)
MMDIT_DETAILS = Schedule(300, 3e-4, warmup=10, average=0.99)
_NATURAL = 6_000
# At times below this one the image's place, colour and background can be seen through the noise.
_LAYOUT_TIME = 900


def train_unet_places(folder: Path) -> nn.Module:
    torch.manual_seed(55)
    images, loss = EvenlyStated(folder), unet.NoiseLoss()

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator, lowest: int | None) -> Tensor:
        return loss(model, *images.batch(rng, UNET_BATCH), rng, lowest, layout=True, every=2)

    model = continued(unet.build(), UNET_FILE)
    phase = partial(loss_at, lowest=_LAYOUT_TIME)
    model = train("unet_places", model, phase, UNET, folder, seed=56, stop=UNET_STEPS)
    phase = partial(loss_at, lowest=None)
    return train("unet_details", model.requires_grad_(True), phase, UNET_DETAILS, folder, seed=57)


def train_mmdit_places(folder: Path) -> nn.Module:
    torch.manual_seed(65)
    images, conditionings = EvenlyStated(folder), Conditionings()

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator, layout: bool, whole: int) -> Tensor:
        clean, captions = images.batch(rng, mmdit.BATCH)
        context, pooled = conditionings.encode(captions)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32)).to(DEVICE)
        levels = mmdit.levels(rng, layout)
        return mmdit.velocity_loss(model, clean, noise, context, pooled, levels, rng, step > whole)

    phase = partial(loss_at, layout=True, whole=MMDIT_WHOLE)
    model = continued(mmdit.build(), MMDIT_FILE)
    model = train("mmdit_places", model, phase, MMDIT, folder, seed=66, stop=MMDIT_STEPS)
    phase = partial(loss_at, layout=False, whole=-1)
    return train("mmdit_details", model.requires_grad_(True), phase, MMDIT_DETAILS, folder, seed=67)


def continued(model: nn.Module, file: str) -> nn.Module:
    model.load_state_dict({name: value.float() for name, value in unpack(load_file(WEIGHTS / file)).items()})
    return model.requires_grad_(True)


def evenly_stated_scene(rng: np.random.Generator) -> tuple[Scene, list[str]]:
    """A scene and what its caption states: those attributes drawn evenly, the others as the world draws them."""
    stated = [name for name in OPTIONAL if rng.random() < 0.5]
    even = sample_uniform_scene(rng)
    natural = sample_scene(rng, even.object)
    chosen = {name: getattr(even if name in stated else natural, name) for name in OPTIONAL}
    return Scene(object=even.object, **chosen), stated


def captions_by_turns(seed: int, count: int) -> list[str]:
    """Captions of a scene as the world draws it and, by turns, with evenly drawn words."""
    rng = np.random.default_rng(seed)
    captions = []
    for k in range(count):
        scene, stated = evenly_stated_scene(rng)
        captions.append(caption(scene, stated, rng) if k % 2 else random_caption(sample_scene(rng), rng))
    return captions


class EvenlyStated:
    """Random training batches: latents and captions, half of them natural scenes.

    natural, uniform: how many scenes of each kind there are to draw from.
    """

    def __init__(self, folder: Path, natural: int = _NATURAL, uniform: int = UNIFORM) -> None:
        self._natural = Captioned(folder, natural)
        self._uniform = uniform_latents(folder)[:uniform]
        self._with: dict[tuple[str, ...], list[int]] = {}
        for k, scene in enumerate(uniform_scenes(folder).scenes[:uniform]):
            self._with.setdefault(_attributes(scene), []).append(k)

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Tensor, list[str]]:
        """`count` latents `[count, 16, 16, 16]` (float32) and their captions."""
        latents, captions = self._natural.batch(rng, count // 2, rare_words=False)
        chosen: list[int] = []
        while len(chosen) < count - count // 2:
            scene, stated = evenly_stated_scene(rng)
            # Of all 8,000, one in ten of the possible scenes has no image; another is drawn in its place.
            if images := self._with.get(_attributes(scene)):
                chosen.append(int(rng.choice(images)))
                captions.append(caption(scene, stated, rng))
        return torch.cat([latents, self._uniform[chosen].float().to(DEVICE)]), captions


def _attributes(scene: Scene) -> tuple[str, ...]:
    return tuple(getattr(scene, name) for name in VALUES)
