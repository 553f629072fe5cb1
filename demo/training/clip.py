"""The CLIP: text and vision tower, trained contrastively on images and captions.

Trained as a Hugging Face `CLIPModel`, whose weights carry the names that ComfyUI's own CLIP classes read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from .comfy_boot import DEVICE, autocast  # isort: skip
import comfy.sd1_clip

from ..architectures import TEXT, VISION
from ..loader import CLIP_FILE, WEIGHTS
from ..world.attributes import VALUES, sample_uniform_scene
from ..world.captions import OPTIONAL, caption, random_caption
from .data import Scenes, natural_scenes, uniform_scenes
from .loop import Schedule, train

STEPS, BATCH = 2_500, 128
LOGIT_SCALE = 3.5  # where the first phase leaves it, about; the file does not hold it
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


class Batch:
    """Images, their captions, and which attributes each caption states."""

    def __init__(
        self, source: Scenes, chosen: Sequence[int], captions: list[str], stated: list[Collection[str]]
    ) -> None:
        self.captions = captions
        self.stated = stated
        self.scenes = [source.scenes[k] for k in chosen]
        self._images = source.images[list(chosen)]

    def pixels(self) -> Tensor:
        """`[N, 3, 128, 128]`, normalised as ComfyUI does before any CLIP vision tower."""
        return (torch.from_numpy(self._images).permute(0, 3, 1, 2).float() / 255 - _MEAN) / _STD


def random_batch(source: Scenes, rng: np.random.Generator, count: int) -> Batch:
    """Scenes as they come, each attribute stated with probability 0.6."""
    chosen = rng.choice(len(source), count, replace=False)
    captions: list[str] = []
    told: list[Collection[str]] = []
    for k in chosen:
        stated = [name for name in OPTIONAL if rng.random() < 0.6]
        captions.append(caption(source.scenes[k], stated, rng))
        told.append(stated)
    return Batch(source, chosen.tolist(), captions, told)


class Siblings:
    """Batches of scenes in groups that differ in one attribute alone, which their captions always state.

    Among random scenes almost any word tells an image from the others, and a place, the hardest to see, is never
    needed: without these batches "left" and "right" come out as the same text embedding.
    """

    def __init__(self, scenes: Scenes) -> None:
        self._scenes = scenes
        self._with: dict[str, dict[tuple[str, ...], list[int]]] = {name: {} for name in OPTIONAL}
        for k, scene in enumerate(scenes.scenes):
            for name in OPTIONAL:
                others = tuple(getattr(scene, other) for other in VALUES if other != name)
                self._with[name].setdefault(others, []).append(k)

    def batch(self, rng: np.random.Generator, count: int) -> Batch:
        chosen: list[int] = []
        captions: list[str] = []
        told: list[Collection[str]] = []
        while len(chosen) < count:
            name = OPTIONAL[rng.integers(len(OPTIONAL))]
            scene = self._scenes.scenes[rng.integers(len(self._scenes))]
            others = tuple(getattr(scene, other) for other in VALUES if other != name)
            by_value = {getattr(self._scenes.scenes[k], name): k for k in rng.permuted(self._with[name][others])}
            stated = [name, *(other for other in OPTIONAL if other != name and rng.random() < 0.6)]
            for k in by_value.values():
                chosen.append(int(k))
                captions.append(caption(self._scenes.scenes[k], stated, rng))
                told.append(stated)
        return Batch(self._scenes, chosen[:count], captions[:count], told[:count])


def build(vocabulary: Vocabulary) -> CLIPModel:
    special = {"eos_token_id": vocabulary.end, "bos_token_id": vocabulary.end - 1, "pad_token_id": vocabulary.end}
    text = {**TEXT, **special, "vocab_size": len(vocabulary.ids)}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=TEXT["projection_dim"]))


def from_file(vocabulary: Vocabulary) -> CLIPModel:
    """The CLIP whose weight file the pack holds now."""
    stored = load_file(WEIGHTS / CLIP_FILE)
    if stored.pop("text.token_embedding.ids").tolist() != vocabulary.ids:
        raise SystemExit(f"{CLIP_FILE} has other words than the captions; train the CLIP from the start.")
    stored["text.text_model.embeddings.token_embedding.weight"] = stored.pop("text.token_embedding.rows")
    clip = build(vocabulary)
    weights = {name.removeprefix("text.").removeprefix("vision."): value.float() for name, value in stored.items()}
    missing, unexpected = clip.load_state_dict(weights, strict=False)
    if unexpected or any(name != "logit_scale" and not name.endswith("position_ids") for name in missing):
        raise SystemExit(f"{CLIP_FILE} does not fit: missing {missing}, unexpected {unexpected}.")
    with torch.no_grad():
        clip.logit_scale.fill_(LOGIT_SCALE)
    return clip


def train_clip(folder: Path) -> tuple[CLIPModel, Vocabulary]:
    torch.manual_seed(30)
    scenes = natural_scenes(folder), uniform_scenes(folder)
    vocabulary = Vocabulary()

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        source = scenes[int(rng.random() < 0.5)]
        return contrastive_loss(model, vocabulary, random_batch(source, rng, BATCH))[0]

    model = build(vocabulary).to(DEVICE)
    return train("clip", model, loss_at, Schedule(STEPS, 1e-3, weight_decay=0.05), folder, seed=31), vocabulary


def contrastive_loss(clip: nn.Module, vocabulary: Vocabulary, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """CLIP's loss, and the unit embeddings `[N, D]` of captions and of images."""
    with autocast():
        output = clip(input_ids=vocabulary.rows(batch.captions).to(DEVICE), pixel_values=batch.pixels().to(DEVICE))
    logits = output.logits_per_image.float()
    # Two images may fit one caption: the same caption twice is no negative of itself.
    same = torch.tensor([[a == b for b in batch.captions] for a in batch.captions], device=DEVICE).float()
    target = same / same.sum(1, keepdim=True)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    return loss, output.text_embeds.float(), output.image_embeds.float()
