"""The CLIP's second phase, in which it learns places: first its text tower, then its vision tower.

To tell the captions and images of a batch apart hardly ever takes the place, so the first phase leaves "left" and
"right" with the same embedding. Here linear readers ask an embedding for the attributes behind it, beside the
contrastive loss; they are thrown away afterwards. Each tower learns against the other, which is left as it is, so the
denoisers, which read the text tower alone, need not wait for the vision tower. Both stages go on from the weight file.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel

from .comfy_boot import DEVICE  # isort: skip
from comfy.ldm.modules.diffusionmodules.mmdit import get_2d_sincos_pos_embed

from ..architectures import TEXT, VISION
from ..world.attributes import VALUES, Scene
from .clip import BATCH, Siblings, Vocabulary, contrastive_loss, from_file, random_batch
from .data import natural_scenes, uniform_scenes
from .loop import Schedule, train

TEXT_PLACES = Schedule(500, 1e-3, warmup=50, weight_decay=0.05, average=0.99)
VISION_PLACES, VISION_BATCH = Schedule(1_200, 1e-3, warmup=50, weight_decay=0.05, average=0.99), 64
POSITION_SCALE = 2.0
_NOT_ASKED = -100  # what PyTorch's cross-entropy passes over


class Readers(nn.ModuleDict):
    """One linear reader of each attribute on a unit embedding."""

    def __init__(self) -> None:
        width = TEXT["projection_dim"]
        super().__init__({name: nn.Linear(width, len(values)) for name, values in VALUES.items()})

    def loss(self, embeddings: Tensor, scenes: list[Scene], asked: list[Collection[str]] | None = None) -> Tensor:
        """Mean cross-entropy over attributes; with `asked` each embedding is asked for these and the object alone."""
        losses = []
        for name, values in VALUES.items():
            truth = [values.index(getattr(scene, name)) for scene in scenes]
            if asked is not None and name != "object":
                truth = [k if name in names else _NOT_ASKED for k, names in zip(truth, asked, strict=True)]
            scaled = embeddings * embeddings.shape[1] ** 0.5  # unit variance
            losses.append(F.cross_entropy(self[name](scaled), torch.tensor(truth, device=embeddings.device)))
        return torch.stack(losses).mean()


class Read(nn.Module):
    """A CLIP and the readers of one of its embeddings."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip, self.readers = clip, Readers()


def train_clip_text(folder: Path) -> tuple[CLIPModel, Vocabulary]:
    torch.manual_seed(32)
    vocabulary = Vocabulary()
    sources = natural_scenes(folder), uniform_scenes(folder)

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        assert isinstance(model, Read)
        # No siblings: to a vision tower without places they would say that all places read alike.
        batch = random_batch(sources[int(rng.random() < 0.5)], rng, BATCH)
        contrast, text, _ = contrastive_loss(model.clip, vocabulary, batch)
        return contrast + model.readers.loss(text, batch.scenes, batch.stated)

    model = Read(from_file(vocabulary)).to(DEVICE)
    for part in (model.clip.vision_model, model.clip.visual_projection):
        part.requires_grad_(False)
    trained = train("clip_text", model, loss_at, TEXT_PLACES, folder, seed=33)
    assert isinstance(trained, Read)
    return trained.clip, vocabulary


def train_clip_vision(folder: Path) -> tuple[CLIPModel, Vocabulary]:
    torch.manual_seed(34)
    vocabulary = Vocabulary()
    natural, siblings = natural_scenes(folder), Siblings(uniform_scenes(folder))

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        assert isinstance(model, Read)
        batch = siblings.batch(rng, VISION_BATCH) if step % 2 else random_batch(natural, rng, VISION_BATCH)
        contrast, _, image = contrastive_loss(model.clip, vocabulary, batch)
        return contrast + model.readers.loss(image, batch.scenes)

    model = Read(from_file(vocabulary)).to(DEVICE)
    _strong_positions(model.clip)
    for part in (model.clip.text_model, model.clip.text_projection):
        part.requires_grad_(False)
    trained = train("clip_vision", model, loss_at, VISION_PLACES, folder, seed=35)
    assert isinstance(trained, Read)
    return trained.clip, vocabulary


@torch.no_grad()
def _strong_positions(clip: CLIPModel) -> None:
    """Position embeddings of the patches as sinusoids, as strong as what patches differ by.

    The first phase leaves them a thirtieth of that, and a tower that starts from there does not find places at all.
    """
    table = clip.vision_model.embeddings.position_embedding.weight
    side, width = VISION["image_size"] // VISION["patch_size"], VISION["hidden_size"]
    table[1:] = POSITION_SCALE * torch.from_numpy(get_2d_sincos_pos_embed(width, side)).to(table)
    table[0] = 0
