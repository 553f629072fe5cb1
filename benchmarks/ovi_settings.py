"""What the settings of Text to Vision Embedding (OVI) do: constraint, weight, tokens and steps, on the demo CLIP.

    python -m benchmarks.ovi_settings                           # choose: on the prompts for choosing
    python -m benchmarks.ovi_settings --report --only none "nearest neighbour 0.35"
    python -m benchmarks.ovi_settings --published --report --prompts 16     # the ablations of the paper

`--published` has the rows in mode published, in a file of their own. The bank is 400 images drawn as the demo world's
training images are. Beside the embeddings stand the text's own vector, and that of an image drawn for the prompt.

Of each prompt's embedding: "text cosine", and "halfway" the one after half of the steps; "nearest of the bank", the
cosine to that member; "neighbours that fit": of 1500 other images, drawn with all attributes equally likely, the share
of its five nearest that show all that the prompt states (no method sees them); "prompt's images", the cosine to the
mean of 20 images drawn for the prompt, in place of a trained prior's embedding; "bank's mean", the cosine to that;
"other prompts", the mean cosine to the embeddings of the other prompts; "Mahalanobis", the squared distance to the
bank's mean divided by the width; and the length.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import world  # noqa: F401 # isort: skip - this makes ComfyUI and the pack importable

import numpy as np
import torch
from comfyui_diversity.core.drivers.ovi import Plan, Target, invert_text, published, text_target
from comfyui_diversity.core.hooks.vision import VisionTower
from comfyui_diversity.core.methods.image_bank import ImageBank
from comfyui_diversity.core.methods.ovi import (
    MAHALANOBIS_WEIGHT,
    NEAREST_WEIGHT,
    PUBLISHED_MAHALANOBIS_WEIGHT,
    PUBLISHED_NEAREST_WEIGHT,
    Settings,
)
from comfyui_diversity.demo import loader
from comfyui_diversity.demo.world.attributes import Scene, sample_scene, sample_uniform_scene
from comfyui_diversity.demo.world.draw import draw
from comfyui_diversity.demo.world.prompts import REPORT_PROMPTS, TUNE_PROMPTS, Prompt
from torch import Tensor
from torch.nn import functional as F

from .results import SCRATCH, add_row

BANK, OTHERS, NEIGHBOURS, DRAWN = 400, 1500, 5, 20
BESIDE = ("image", "text")  # rows that are no optimisation


@dataclass(frozen=True)
class Row:
    """One way to an embedding; `weight` is a multiple of the calibrated one. Names of rows have it as it is."""

    constraint: str = "off"
    weight: float = 1.0
    tokens: int = 16
    steps: int = 500
    rate: float = 0.02

    @property
    def plan(self) -> Plan:
        return Plan(Settings(self.steps, self.rate), self.tokens, self.weight, False)


@dataclass(frozen=True)
class PublishedRow:
    """As the node does it with mode published; `weight` is a multiple of the paper's."""

    constraint: str = "off"
    weight: float = 1.0
    tokens: int = 6

    @property
    def plan(self) -> Plan:
        return published(weight=self.weight, tokens=self.tokens)


# Each changes one thing: the number of tokens, or a constraint's weight (0.009 and 0.5 are the paper's).
PUBLISHED_ROWS = {
    "published, none, 1 token": PublishedRow(tokens=1),
    "published, none, 3 tokens": PublishedRow(tokens=3),
    "published, none": PublishedRow(),
    **{
        f"published, mahalanobis {w:g}": PublishedRow("mahalanobis", w / PUBLISHED_MAHALANOBIS_WEIGHT)
        for w in (0.009, 0.05, 0.2, 0.9)  # 0.9 is the most that the node takes
    },
    **{
        f"published, nearest neighbour {w:g}": PublishedRow("nearest neighbour", w / PUBLISHED_NEAREST_WEIGHT)
        for w in (0.125, 0.5, 2)
    },
}
ROWS: dict[str, Row | PublishedRow] = {
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

    def fitting(self, embeddings: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Of each embedding's nearest images, the share that show all that its prompt states, `[N]`."""
        nearest = (F.normalize(embeddings, dim=1) @ self.unit.T).topk(NEIGHBOURS, dim=1).indices.tolist()
        fits = [
            [all(getattr(self.scenes[index], name) == value for name, value in prompt.stated.items()) for index in own]
            for prompt, own in zip(prompts, nearest, strict=True)
        ]
        return torch.tensor(fits).float().mean(1)


def drawn(tower: VisionTower, prompts: Sequence[Prompt], seed: int = 13) -> Tensor:
    """Embeddings of an image for each prompt, the rest of which is as likely as in the training images."""
    rng = np.random.default_rng(seed)
    scenes = []
    for prompt in prompts:
        scene = sample_scene(rng, prompt.object)
        scenes.append(Scene(**{**vars(scene), **prompt.stated}))
    return tower.encode_images(images(scenes, rng), True)


class Figures:
    """What is read off an embedding of each of the prompts."""

    def __init__(self, tower: VisionTower, prompts: Sequence[Prompt], texts: Tensor, bank: ImageBank) -> None:
        self.prompts, self.texts, self.bank, self.others = prompts, texts, bank, Others(tower)
        several = drawn(tower, [prompt for prompt in prompts for _ in range(DRAWN)], seed=17)
        self.own = several.unflatten(0, (len(prompts), DRAWN)).mean(1)

    def __call__(self, embeddings: Tensor) -> dict[str, Tensor]:
        """By name, one value a prompt, `[N]`; the names are explained at the top of this file."""
        unit = F.normalize(embeddings, dim=1)
        return {
            "text cosine": F.cosine_similarity(embeddings, self.texts),
            "nearest of the bank": self.bank.nearest(embeddings)[0],
            "neighbours that fit": self.others.fitting(embeddings, self.prompts),
            "prompt's images": F.cosine_similarity(embeddings, self.own),
            "bank's mean": F.cosine_similarity(embeddings, self.bank.mean[None]),
            "other prompts": ((unit @ unit.T).sum(1) - 1) / (len(unit) - 1),
            "Mahalanobis": self.bank.squared_distance(embeddings),
            "length": embeddings.norm(dim=1),
        }


def numbers(name: str, found: Mapping[str, Tensor], **given: Any) -> dict[str, Any]:
    """A row of results: means over prompts, and the figures prompt by prompt (`benchmarks.measure.difference`)."""
    by_prompt = {figure: [round(value, 4) for value in values.tolist()] for figure, values in found.items()}
    means = {figure: round(values.mean().item(), 4) for figure, values in found.items()}
    return {"row": name, "model": "demo CLIP", **given, **means, "by_prompt": by_prompt}


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="the prompts that figures are published on")
    parser.add_argument("--prompts", type=int, default=0, help="only the first so many prompts")
    parser.add_argument("--published", action="store_true", help="the rows with mode published, in a file of their own")
    parser.add_argument("--only", nargs="*", default=["*"], help='rows of these names, "*" for anything')
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    prompts = (REPORT_PROMPTS if options.report else TUNE_PROMPTS)[: options.prompts or None]
    clip, tower = loader.load_clip(), VisionTower(loader.load_clip_vision())
    bank = make_bank(tower)
    texts = torch.cat([text_target(clip, prompt.text, tower.width).vectors for prompt in prompts])
    figures = Figures(tower, prompts, texts, bank)

    command, kind = "python -m benchmarks.ovi_settings", "ovi_settings"
    if options.published:
        command, kind = f"{command} --published", f"{kind}_published"
    command, kind = (f"{command} --report", f"{kind}_report") if options.report else (command, f"{kind}_tune")
    if options.prompts:
        command, kind = f"{command} --prompts {options.prompts}", f"{kind}_{options.prompts}"

    def show(name: str, found: Mapping[str, Tensor], steps: float = 0, seconds: float = 0) -> None:
        row = numbers(name, found, steps=round(steps, 1), seconds=round(seconds, 1))
        print(name, *(f"{figure} {row[figure]:.3f}" for figure in found), f"{seconds:.0f} s", sep="  ", flush=True)
        add_row(options.out / f"{kind}.json", command, row)

    image, text = BESIDE
    show(image, figures(drawn(tower, prompts)))
    show(text, figures(F.normalize(texts, dim=1) * bank.length))
    for name, row in ROWS.items():
        if not any(fnmatch(name, wanted) for wanted in options.only) or options.published != (name in PUBLISHED_ROWS):
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
        halfway = found.inversion.cosines[len(found.inversion.cosines) // 2].cpu()
        steps = found.inversion.steps.float().mean().item()
        show(name, {**figures(embeddings), "halfway": halfway}, steps, time.perf_counter() - started)


if __name__ == "__main__":
    main()
