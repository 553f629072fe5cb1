"""Images from image embeddings: real ones, the text's own vector, and optimised ones under each constraint.

    python -m benchmarks.ovi_images                   # choose: on the prompts for choosing
    python -m benchmarks.ovi_images --report --only "real*" "text*" none nearest

The demo's unCLIP model draws all of them, on an empty prompt; prompts and seeds are the same in all rows. The bank
holds images of all kinds, of a seed of their own. Adherence and diversity come from the attribute classifier, which
nothing optimises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from .rows import BATCH, Make, arguments_of, carry_out  # isort: skip - this makes ComfyUI and the pack importable
import numpy as np
import torch
from comfyui_diversity.core.drivers.ovi import invert_text, natural_length, rescaled, text_as_output, text_target
from comfyui_diversity.core.drivers.unclip import per_image
from comfyui_diversity.core.hooks.vision import VisionTower
from comfyui_diversity.core.methods.image_bank import ImageBank
from comfyui_diversity.core.methods.ovi import Settings
from comfyui_diversity.demo import loader
from comfyui_diversity.demo.world.attributes import sample_scene
from comfyui_diversity.demo.world.captions import stated_in
from comfyui_diversity.demo.world.draw import draw
from torch import Tensor

from .world import World

BANK, BANK_SEED, TOKENS = 1000, 901, 16
SETTINGS = Settings(steps=150, learning_rate=0.1)  # as the workflow has it: quick


@cache
def tower() -> VisionTower:
    return VisionTower(loader.load_clip_vision())


def seen(text: str, count: int, seed: int) -> Tensor:
    """Embeddings `[count, E]` of images that the text describes."""
    stated, rng = stated_in(text), np.random.default_rng(seed)
    scenes = [replace(sample_scene(rng, stated.get("object")), **stated) for _ in range(count)]
    images = np.stack([draw(scene, rng) for scene in scenes])
    return tower().encode_images(torch.from_numpy(images).float() / 255, crop=True)


@cache
def bank() -> ImageBank:
    return ImageBank(seen("", BANK, BANK_SEED), tower().negative.image_embeds[0].float())


def told(world: World, seed: int, text: str, outputs: Sequence[Any]) -> Tensor:
    """Images of these CLIP vision outputs, one each; the negative is the embedding of no image."""
    empty = world.conditioning("")
    positive, negative = per_image(empty, outputs), per_image(empty, [tower().negative])
    return world.latents(text, seed, BATCH, positive=positive, negative=negative)


@torch.inference_mode()
def real(world: World, text: str, seed: int) -> Tensor:
    output = tower().negative
    one = seen(text, BATCH, seed)
    outputs = []
    for k in range(BATCH):
        own = rescaled(output, 1.0)
        own["image_embeds"] = one[k : k + 1]
        outputs.append(own)
    return told(world, seed, text, outputs)


@torch.inference_mode()
def directly(world: World, text: str, seed: int) -> Tensor:
    target = text_target(world.clip, text, tower().width)
    return told(world, seed, text, [text_as_output(tower(), target, natural_length(tower(), bank()))])


def optimised(constraint: str, strength: float = 1.0, tokens: int = TOKENS, match: bool = False) -> Make:
    @torch.inference_mode()
    def make(world: World, text: str, seed: int) -> Tensor:
        target = text_target(world.clip, text, tower().width)
        found = invert_text(tower(), target, BATCH, tokens, seed, SETTINGS, constraint, strength, bank())
        length = natural_length(tower(), bank())
        return told(world, seed, text, [rescaled(o, length) if match else o for o in found.outputs])

    return make


ROWS: dict[str, Make] = {
    "real images": real,
    "text directly": directly,
    "none": optimised("off"),
    "none, length matched": optimised("off", match=True),
    "mahalanobis": optimised("mahalanobis"),
    "nearest": optimised("nearest neighbour"),
    "nearest, length matched": optimised("nearest neighbour", match=True),
    "mahalanobis, length matched": optimised("mahalanobis", match=True),
    **{
        f"nearest, weight {weight:g}, length matched": optimised("nearest neighbour", weight, match=True)
        for weight in (0.25, 0.5, 2.0)
    },
    "nearest, 1 token": optimised("nearest neighbour", tokens=1),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = arguments_of(__doc__)
    parser.set_defaults(model="unclip")
    options = parser.parse_args(arguments)
    carry_out("ovi_images", ROWS, parser, options)


if __name__ == "__main__":
    main()
