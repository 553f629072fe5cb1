"""The CLIP: text and vision tower, trained contrastively on pictures and captions.

Trained as a Hugging Face `CLIPModel`, whose weights carry the names that ComfyUI's own CLIP classes read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from .comfy_boot import DEVICE  # isort: skip
import comfy.sd1_clip

from ..architectures import TEXT, VISION
from ..world.attributes import VALUES, sample_uniform_scene
from ..world.captions import OPTIONAL, caption, random_caption
from .data import Scenes, natural_scenes, uniform_scenes
from .loop import Schedule, train

STEPS, BATCH = 2_500, 128
TOKENS = 24  # longer than any caption; the tower is causal, so the padding that is left out changes nothing
# CLIP's normalisation of pixels, which ComfyUI applies before any CLIP vision tower
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(str(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"))


class Vocabulary:
    """The tokens that captions use, numbered compactly: only these have embeddings of their own."""

    def __init__(self) -> None:
        self._tokenizer = tokenizer()
        rng = np.random.default_rng(5)
        seen = {TEXT["bos_token_id"], TEXT["eos_token_id"]}
        for _ in range(4000):
            seen.update(self._tokenizer(random_caption(sample_uniform_scene(rng), rng, keep=0.8))["input_ids"])
        self.ids = sorted(seen)
        self._compact = {token: k for k, token in enumerate(self.ids)}

    def rows(self, captions: list[str]) -> Tensor:
        """Compact token numbers `[N, TOKENS]`, padded with the end token as CLIP's tokenizer is in ComfyUI."""
        encoded = self._tokenizer(captions, padding="max_length", max_length=TOKENS)["input_ids"]
        return torch.tensor([[self._compact[token] for token in row] for row in encoded])

    @property
    def end(self) -> int:
        return self._compact[TEXT["eos_token_id"]]


class Siblings:
    """Batches of scenes in groups that differ in one attribute alone, which their captions always state.

    Among random scenes almost any word tells a picture from the others, and a place, the hardest to see, is never
    needed: without these batches "left" and "right" come out as the same text embedding.
    """

    def __init__(self, scenes: Scenes) -> None:
        self._scenes = scenes
        self._with: dict[str, dict[tuple[str, ...], list[int]]] = {name: {} for name in OPTIONAL}
        for k, scene in enumerate(scenes.scenes):
            for name in OPTIONAL:
                others = tuple(getattr(scene, other) for other in VALUES if other != name)
                self._with[name].setdefault(others, []).append(k)

    def batch(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[str]]:
        """Pictures `uint8 [count, 128, 128, 3]` and their captions."""
        chosen: list[int] = []
        captions: list[str] = []
        while len(chosen) < count:
            name = OPTIONAL[rng.integers(len(OPTIONAL))]
            scene = self._scenes.scenes[rng.integers(len(self._scenes))]
            others = tuple(getattr(scene, other) for other in VALUES if other != name)
            by_value = {getattr(self._scenes.scenes[k], name): k for k in rng.permuted(self._with[name][others])}
            stated = [name, *(other for other in OPTIONAL if other != name and rng.random() < 0.6)]
            for k in by_value.values():
                chosen.append(int(k))
                captions.append(caption(self._scenes.scenes[k], stated, rng))
        return self._scenes.images[chosen[:count]], captions[:count]


def build(vocabulary: Vocabulary) -> CLIPModel:
    special = {"eos_token_id": vocabulary.end, "bos_token_id": vocabulary.end - 1, "pad_token_id": vocabulary.end}
    text = {**TEXT, **special, "vocab_size": len(vocabulary.ids)}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=TEXT["projection_dim"]))


def train_clip(folder: Path) -> tuple[CLIPModel, Vocabulary]:
    torch.manual_seed(30)
    natural, uniform = natural_scenes(folder), uniform_scenes(folder)
    vocabulary = Vocabulary()

    siblings = Siblings(uniform)

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        if rng.random() < 0.5:
            images, captions = siblings.batch(rng, BATCH)
        else:
            chosen = rng.choice(len(natural), BATCH, replace=False)
            images = natural.images[chosen]
            captions = [random_caption(natural.scenes[k], rng, keep=0.6) for k in chosen]
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        with torch.autocast(DEVICE.type, torch.bfloat16):
            output = model(
                input_ids=vocabulary.rows(captions).to(DEVICE), pixel_values=((pixels - _MEAN) / _STD).to(DEVICE)
            )
        logits = output.logits_per_image.float()
        # Two pictures may fit one caption: the same caption twice is no negative of itself.
        same = torch.tensor([[a == b for b in captions] for a in captions], device=DEVICE).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    model = build(vocabulary).to(DEVICE)
    return train("clip", model, loss_at, Schedule(STEPS, 1e-3, weight_decay=0.05), folder, seed=31), vocabulary
