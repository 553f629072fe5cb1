"""Latents of the natural scenes, encoded once; and conditionings of captions, encoded when first met."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from .comfy_boot import DEVICE  # isort: skip
import comfy.sd1_clip

from ..loader import load_clip
from ..world.attributes import distribution
from ..world.captions import OPTIONAL, caption, random_caption
from .data import UNIFORM, Scenes, natural_scenes, uniform_scenes
from .vae import AT_ONCE, encoded, trained

NATURAL_COUNT = 16_000


def encode_latents(folder: Path) -> None:
    """Encodes both sets of scenes, unless that was done."""
    natural_latents(folder)
    uniform_latents(folder)


def natural_latents(folder: Path) -> Tensor:
    """Unit-variance latents `[NATURAL_COUNT, 16, 16, 16]` (fp16) of the first natural scenes."""
    return _encoded(folder, "latents", natural_scenes, NATURAL_COUNT)


def uniform_latents(folder: Path) -> Tensor:
    """The same of all scenes with every attribute equally likely."""
    return _encoded(folder, "latents_uniform", uniform_scenes, UNIFORM)


def _encoded(folder: Path, name: str, scenes: Callable[[Path], Scenes], count: int) -> Tensor:
    path = folder / f"{name}.safetensors"
    if not path.exists():
        vae, images = trained(), scenes(folder).images[:count]
        latents = torch.empty(count, 16, 16, 16, dtype=torch.float16)
        for k in tqdm(range(0, count, AT_ONCE), desc=name, mininterval=5):
            latents[k : k + AT_ONCE] = encoded(vae, images[k : k + AT_ONCE])
        save_file({"latents": latents}, path.with_suffix(".partial"))
        os.replace(path.with_suffix(".partial"), path)
    return load_file(path)["latents"]


class Conditionings:
    """What the denoisers read of a caption: hidden states `[N, 77, 128]` and pooled vectors `[N, 128]`.

    Encoded by the very CLIP object that ComfyUI's text nodes use, so training and use cannot differ.
    """

    def __init__(self) -> None:
        self._clip = load_clip()
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        new = sorted({text for text in captions if text not in self._known})
        if new:
            self._encode(new)
        hidden, pooled = zip(*(self._known[text] for text in captions), strict=True)
        return torch.stack(hidden).float().to(DEVICE), torch.stack(pooled).float().to(DEVICE)

    @torch.no_grad()
    def _encode(self, captions: list[str]) -> None:
        tower: comfy.sd1_clip.SDClipModel = self._clip.cond_stage_model.clip_l
        rows = [[token for token, _ in self._clip.tokenize(text)["l"][0]] for text in captions]
        hidden, pooled = tower.encode(rows)[:2]
        for text, states, vector in zip(captions, hidden, pooled, strict=True):
            self._known[text] = (states.half(), vector.half())


class Captioned:
    """Random training batches: latents and captions.

    Half of a batch are natural scenes under a caption that leaves out each attribute with probability one half, or,
    once in ten, says nothing. With `rare_words` the other half are scenes whose *stated* attributes are equally
    likely, so that rare words are learned as well as common ones. That changes nothing in what a caption leaves open:
    attributes are independent given the object, and the one left out, if any, is drawn as the world draws it.
    """

    def __init__(self, folder: Path, natural: int = NATURAL_COUNT) -> None:
        self._natural, self._natural_scenes = natural_latents(folder)[:natural], natural_scenes(folder).scenes
        self._uniform, self._uniform_scenes = uniform_latents(folder), uniform_scenes(folder).scenes
        self._chances = {left_out: self._chance(left_out) for left_out in (None, *OPTIONAL)}

    def batch(self, rng: np.random.Generator, count: int, rare_words: bool) -> tuple[Tensor, list[str]]:
        """`count` latents `[count, 16, 16, 16]` (float32) and their captions."""
        natural = count // 2 if rare_words else count
        chosen = rng.integers(len(self._natural), size=natural)
        latents = [self._natural[chosen]]
        captions = ["" if rng.random() < 0.1 else random_caption(self._natural_scenes[k], rng) for k in chosen]
        kinds = rng.permuted(np.array([None, None, *OPTIONAL] * count, object))[: count - natural] if rare_words else []
        for left_out in kinds:
            k = rng.choice(len(self._uniform), p=self._chances[left_out])
            latents.append(self._uniform[k : k + 1])
            captions.append(caption(self._uniform_scenes[k], [name for name in OPTIONAL if name != left_out], rng))
        return torch.cat(latents).float().to(DEVICE), captions

    def _chance(self, left_out: str | None) -> np.ndarray:
        """How often each uniform scene is drawn when one attribute is left out of its caption."""
        weights = np.ones(len(self._uniform_scenes))
        if left_out is not None:
            for k, scene in enumerate(self._uniform_scenes):
                weights[k] = distribution(left_out, scene.object)[getattr(scene, left_out)]
        return weights / weights.sum()
