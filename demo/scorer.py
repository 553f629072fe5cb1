"""Reads the attributes off an image: an attribute classifier that no method optimises.

Its penultimate features also serve the diversity metrics, so that diversity is scored in a space of its own.
"""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from .world.attributes import VALUES, sample_uniform_scene
from .world.draw import draw
from .world.prompts import Prompt

WEIGHTS = Path(__file__).parent / "weights" / "diversity_demo_scorer.safetensors"
_SIDE = 64  # the classifier's own input size
_UNRELATED = 512  # drawn scenes whose features are averaged


class AttributeClassifier(nn.Module):
    """Images `[N, 3, 64, 64]` in 0..1 to features `[N, 128]`, and features to logits of every attribute."""

    def __init__(self) -> None:
        super().__init__()
        widths = (32, 64, 96, 128)
        stages: list[nn.Module] = []
        for before, after in zip((5, *widths), widths, strict=False):
            stages += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            stages += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.stages = nn.Sequential(*stages)
        self.summary = nn.Linear(4 * 4 * widths[-1], 128)
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(values)) for name, values in VALUES.items()})

    def features(self, images: Tensor) -> Tensor:
        # Two more channels hold x and y: a place is then as easy to read as a colour.
        line = torch.linspace(-1, 1, images.shape[-1], device=images.device)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(len(images), -1, -1, -1)
        return F.silu(self.summary(self.stages(torch.cat([images, grid], 1)).flatten(1)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


def to_input(images: np.ndarray) -> Tensor:
    """`uint8 [N, H, W, 3]` to the classifier's `[N, 3, 64, 64]`."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images is {images.dtype} {list(images.shape)}; it must be uint8 [N, H, W, 3].")
    values = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    return F.interpolate(values, size=(_SIDE, _SIDE), mode="area")


class Scorer:
    """Attributes and features of images."""

    def __init__(self, classifier: AttributeClassifier) -> None:
        self._classifier = classifier.eval()

    @classmethod
    @cache
    def load(cls, path: Path = WEIGHTS) -> Scorer:
        """The same object each time. Raises ValueError for a file that is damaged or has other weights."""
        classifier = AttributeClassifier()
        try:
            classifier.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} is damaged or not the classifier's ({reason}); restore it with git.") from error
        return cls(classifier)

    @torch.no_grad()
    def read(self, images: np.ndarray) -> list[dict[str, str]]:
        """The attributes of each image of `uint8 [N, H, W, 3]`."""
        logits = self._classifier(to_input(images))
        winners = {name: values.argmax(1).tolist() for name, values in logits.items()}
        return [{name: VALUES[name][winners[name][k]] for name in VALUES} for k in range(len(images))]

    @torch.no_grad()
    def features(self, images: np.ndarray) -> Tensor:
        """Features `[N, 128]` of `uint8 [N, H, W, 3]` for similarity-based metrics."""
        return self._classifier.features(to_input(images))

    @cached_property
    def common(self) -> Tensor:
        """What the features `[128]` of all images have in common: their mean over evenly drawn scenes.

        No feature is far below zero, so that even unrelated scenes have a cosine of 0.49. With this part removed
        theirs is 0, and only copies have 1.
        """
        rng = np.random.default_rng(512)
        return self.features(np.stack([draw(sample_uniform_scene(rng), rng) for _ in range(_UNRELATED)])).mean(0)


def satisfies(attributes: dict[str, str], prompt: Prompt) -> bool:
    """Whether an image with these attributes shows everything that the prompt states."""
    return all(attributes[name] == value for name, value in prompt.stated.items())
