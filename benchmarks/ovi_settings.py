"""What the settings of Text to Vision Embedding (OVI) do: constraint, weight, tokens and steps, on the demo CLIP.

    python -m benchmarks.ovi_settings                       # choose: on the prompts for choosing
    python -m benchmarks.ovi_settings --published           # with mode published, in a file of their own
    python -m benchmarks.ovi_settings --report --only none "nearest neighbour 0.35"

The bank is 400 images drawn as the demo world's training images are. "neighbours that fit": of 1500 other images,
drawn with all attributes equally likely, the share of an embedding's five nearest that show all that the prompt states;
no method sees them. Beside the embeddings: the text's own vector, and that of an image drawn for the prompt.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from . import world  # noqa: F401 # isort: skip - this makes ComfyUI and the pack importable

import numpy as np
import torch
from comfyui_diversity.core.drivers.ovi import Plan, Target, invert_text, published, text_target
from comfyui_diversity.core.hooks.vision import VisionTower
from comfyui_diversity.core.methods.image_bank import ImageBank
from comfyui_diversity.core.methods.ovi import MAHALANOBIS_WEIGHT, NEAREST_WEIGHT, Settings
from comfyui_diversity.demo import loader
from comfyui_diversity.demo.world.attributes import Scene, sample_scene, sample_uniform_scene
from comfyui_diversity.demo.world.draw import draw
from comfyui_diversity.demo.world.prompts import EIGHT_PROMPTS, TEN_PROMPTS, Prompt
from torch import Tensor
from torch.nn import functional as F

from .results import SCRATCH, PrintedTable

BANK, OTHERS, NEIGHBOURS = 400, 1500, 5
BESIDE = ("image", "text")  # rows that are no optimisation
HEAD = ["row", "text cosine", "nearest of the bank", "neighbours that fit", "Mahalanobis", "length", "steps", "seconds"]


@dataclass(frozen=True)
class Row:
    """One way to an embedding; `weight` is a multiple of the calibrated one. Names of rows have it as it is. With
    `published` as the node does it with mode published, whatever else is given but the constraint."""

    constraint: str = "off"
    weight: float = 1.0
    tokens: int = 16
    steps: int = 500
    rate: float = 0.02
    published: bool = False

    @property
    def plan(self) -> Plan:
        if self.published:
            return published()
        return Plan(Settings(self.steps, self.rate), self.tokens, self.weight, False)


PUBLISHED_ROWS = {
    "published, none": Row(published=True),
    "published, nearest neighbour": Row("nearest neighbour", published=True),
    "published, mahalanobis": Row("mahalanobis", published=True),
}
ROWS: dict[str, Row] = {
    "none, 1 token": Row(tokens=1),
    "none, 6 tokens": Row(tokens=6),
    "none": Row(),
    "none, 64 tokens": Row(tokens=64),
    "none, 6 tokens, rate 0.05": Row(tokens=6, rate=0.05),
    "none, 32 tokens": Row(tokens=32),
    "none, 150 steps, rate 0.1": Row(steps=150, rate=0.1),
    **{
        f"nearest neighbour, {steps} steps, rate {rate}": Row("nearest neighbour", steps=steps, rate=rate)
        for steps, rate in ((150, 0.1), (75, 0.1), (75, 0.2))
    },
    "nearest neighbour, weight 0.25, 150 steps, rate 0.1": Row("nearest neighbour", 0.25, steps=150, rate=0.1),
    **{
        f"nearest neighbour {w:g}": Row("nearest neighbour", w / NEAREST_WEIGHT)
        for w in (0.125, 0.25, 0.35, 0.4, 0.6, 0.7, 2.1)
    },
    **{f"mahalanobis {w:g}": Row("mahalanobis", w / MAHALANOBIS_WEIGHT) for w in (0.03, 0.16, 0.2, 0.4, 1.5, 45)},
    **PUBLISHED_ROWS,
}


def images(scenes: Sequence[Scene], rng: np.random.Generator) -> Tensor:
    """IMAGE `[N, 128, 128, 3]`."""
    return torch.from_numpy(np.stack([draw(scene, rng) for scene in scenes])).float() / 255


def make_bank(tower: VisionTower, count: int = BANK, seed: int = 7) -> ImageBank:
    """Embeddings of images drawn as the training images are."""
    rng = np.random.default_rng(seed)
    embeddings = tower.encode_images(images([sample_scene(rng) for _ in range(count)], rng), True)
    return ImageBank(embeddings, tower.negative.image_embeds[0].float().cpu())


class Others:
    """Images that no method sees."""

    def __init__(self, tower: VisionTower, count: int = OTHERS, seed: int = 11) -> None:
        rng = np.random.default_rng(seed)
        self.scenes = [sample_uniform_scene(rng) for _ in range(count)]
        self.unit = F.normalize(tower.encode_images(images(self.scenes, rng), True), dim=1)

    def fitting(self, embeddings: Tensor, prompts: Sequence[Prompt]) -> float:
        """Of each embedding's nearest images, the share that show all that its prompt states."""
        nearest = (F.normalize(embeddings, dim=1) @ self.unit.T).topk(NEIGHBOURS, dim=1).indices.tolist()
        fits = [
            all(getattr(self.scenes[index], name) == value for name, value in prompt.stated.items())
            for prompt, own in zip(prompts, nearest, strict=True)
            for index in own
        ]
        return sum(fits) / len(fits)


def drawn(tower: VisionTower, prompts: Sequence[Prompt]) -> Tensor:
    """Embeddings of an image for each prompt, the rest of which is as likely as in the training images."""
    rng = np.random.default_rng(13)
    scenes = []
    for prompt in prompts:
        scene = sample_scene(rng, prompt.object)
        scenes.append(Scene(**{**vars(scene), **prompt.stated}))
    return tower.encode_images(images(scenes, rng), True)


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="the prompts that figures are published on")
    parser.add_argument("--published", action="store_true", help="the rows with mode published, in a file of their own")
    parser.add_argument("--only", nargs="*", default=["*"], help='rows of these names, "*" for anything')
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    prompts = TEN_PROMPTS if options.report else EIGHT_PROMPTS
    clip, tower = loader.load_clip(), VisionTower(loader.load_clip_vision())
    bank, others = make_bank(tower), Others(tower)
    texts = torch.cat([text_target(clip, prompt.text, tower.width).vectors for prompt in prompts])

    def show(name: str, embeddings: Tensor, steps: float, seconds: float) -> None:
        cosine = F.cosine_similarity(embeddings, texts).mean().item()
        nearest = bank.nearest(embeddings)[0].mean().item()
        fits, length = others.fitting(embeddings, prompts), embeddings.norm(dim=1).mean().item()
        distance = bank.squared_distance(embeddings).mean().item()
        cells = [f"{cosine:.3f}", f"{nearest:.3f}", f"{fits:.2f}", f"{distance:.2f}", f"{length:.1f}"]
        table.add([name, *cells, f"{steps:.0f}", f"{seconds:.0f}"])

    kind = "report" if options.report else "tune"
    command = f"python -m benchmarks.ovi_settings{' --report' if options.report else ''}"
    if options.published:
        kind, command = f"{kind}_published", f"{command} --published"
    table = PrintedTable(options.out / f"ovi_settings_{kind}.json", command, HEAD)
    image, text = BESIDE
    show(image, drawn(tower, prompts), 0, 0)
    show(text, F.normalize(texts, dim=1) * bank.length, 0, 0)
    for name, row in ROWS.items():
        if not any(fnmatch(name, wanted) for wanted in options.only) or options.published != row.published:
            continue
        started = time.perf_counter()
        plan, target = row.plan, Target(texts, "prompts")
        found = invert_text(
            tower,
            target,
            len(texts),
            plan.tokens,
            0,
            plan.settings,
            row.constraint,
            plan.weight,
            bank,
            constraints=plan.constraints,
        )
        embeddings = torch.cat([output.image_embeds for output in found.outputs])
        show(name, embeddings, found.inversion.steps.float().mean().item(), time.perf_counter() - started)


if __name__ == "__main__":
    main()
