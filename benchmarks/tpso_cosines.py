"""What cosines between prompt vectors mean: paraphrases, one swapped word, unrelated captions, in each kind of vector.

    python -m benchmarks.tpso_cosines

Measured on the demo CLIP: its projected and its unprojected pooled vector, and the surrogate that encoders without a
pooled vector have (the mean of the output over the prompt's own positions); each as it is, and less a common mean, that
of a dozen captions which are not among those measured. In brackets is the share of the way from the caption itself (0)
to unrelated captions (1), which is what similarity is carried over by.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import world  # noqa: F401 # isort: skip - this makes ComfyUI and the pack importable

import numpy as np
import torch
from comfyui_diversity.core.hooks.text import PromptEncoder, clip_vector, mean_output, prompt_encoders
from comfyui_diversity.demo import loader
from comfyui_diversity.demo.world.attributes import VALUES, Scene, sample_uniform_scene
from comfyui_diversity.demo.world.captions import OPTIONAL, caption
from torch import Tensor
from torch.nn import functional as F

from .results import SCRATCH, PrintedTable

_SWAPPED = {"swapped place": "place", "swapped colour": "colour", "swapped noun": "object"}
KINDS = ("paraphrase", *_SWAPPED, "unrelated")
MEAN_OF = 12  # as many as the pack takes for encoders without a pooled vector
_UNSTATED = 0.5  # probability that a size or a background is left out

Vector = Callable[[PromptEncoder], Tensor]


def _pooled(encoder: PromptEncoder, projected: bool) -> Tensor:
    [section] = encoder.sections
    return clip_vector(encoder.module, section.embeds[None, : section.end + 1], projected)[0]


def _surrogate(encoder: PromptEncoder) -> Tensor:
    [section] = encoder.sections
    return mean_output(encoder.module, section.embeds[None], section, section.first, section.last)[0]


VECTORS: dict[str, Vector] = {
    "projected pooled": lambda encoder: _pooled(encoder, True),
    "unprojected pooled": lambda encoder: _pooled(encoder, False),
    "surrogate": _surrogate,
}


@dataclass(frozen=True)
class Case:
    """A caption and another one for each of `KINDS`."""

    text: str
    others: dict[str, str]


def make_case(rng: np.random.Generator) -> Case:
    """Captions that state colour and place, and half of the time size and background."""
    scene, stated, wording = _drawn(rng)
    text = caption(scene, stated, np.random.default_rng(wording))
    others = {"paraphrase": text}
    while others["paraphrase"] == text:
        others["paraphrase"] = caption(scene, stated, rng)
    for kind, attribute in _SWAPPED.items():
        swapped = replace(scene, **{attribute: _another(attribute, scene, rng)})
        # The same wording: the same random numbers.
        others[kind] = caption(swapped, stated, np.random.default_rng(wording))
    _, other_stated, other_wording = _drawn(rng)
    unrelated = Scene(**{attribute: _another(attribute, scene, rng) for attribute in VALUES})
    others["unrelated"] = caption(unrelated, other_stated, np.random.default_rng(other_wording))
    return Case(text, others)


def _drawn(rng: np.random.Generator) -> tuple[Scene, list[str], int]:
    """A scene, what is stated of it, and the seed of its wording."""
    stated = [name for name in OPTIONAL if name in ("colour", "place") or rng.random() > _UNSTATED]
    return sample_uniform_scene(rng), stated, int(rng.integers(2**31))


def _another(attribute: str, scene: Scene, rng: np.random.Generator) -> str:
    left = [value for value in VALUES[attribute] if value != getattr(scene, attribute)]
    return left[rng.integers(len(left))]


def cosines(
    texts: Sequence[PromptEncoder],
    others: dict[str, list[PromptEncoder]],
    mean_of: Sequence[PromptEncoder],
    vector: Vector,
) -> list[dict[str, Tensor]]:
    """Cosines `[N]` by kind: of the vectors as they are, and of those less the mean of the vectors of `mean_of`."""

    def vectors(encoders: Sequence[PromptEncoder]) -> Tensor:
        return torch.stack([vector(encoder) for encoder in encoders])

    own, mean = vectors(texts), vectors(mean_of).mean(0)
    compared = {kind: vectors(encoders) for kind, encoders in others.items()}
    return [
        {kind: F.cosine_similarity(own - removed, other - removed) for kind, other in compared.items()}
        for removed in (torch.zeros_like(mean), mean)
    ]


def row(name: str, found: dict[str, Tensor]) -> list[str]:
    """Mean cosines and shares of the way, and those of all swapped words."""
    means = {kind: cosines.mean().item() for kind, cosines in found.items()}
    unrelated = means.pop("unrelated")
    means["any swapped word"] = sum(means[kind] for kind in _SWAPPED) / len(_SWAPPED)
    return [name, *(f"{mean:.3f} ({(1 - mean) / (1 - unrelated):.2f})" for mean in means.values()), f"{unrelated:.3f}"]


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=200, help="how many captions, each with one other of each kind")
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    cases = [make_case(rng) for _ in range(options.captions)]
    mean_of = [make_case(rng).text for _ in range(MEAN_OF)]
    clip = loader.load_clip()

    def encoders(texts: Iterable[str]) -> list[PromptEncoder]:
        return [encoder for text in texts for encoder in prompt_encoders(clip, clip.tokenize(text))]

    own, common = encoders(case.text for case in cases), encoders(mean_of)
    others = {kind: encoders(case.others[kind] for case in cases) for kind in KINDS}
    head = ["vector", "paraphrase", *_SWAPPED, "any swapped word", "unrelated"]
    table = PrintedTable(options.out / "tpso_cosines.json", "python -m benchmarks.tpso_cosines", head)
    for name, vector in VECTORS.items():
        for less, found in zip(("", ", common mean removed"), cosines(own, others, common, vector), strict=True):
            table.add(row(name + less, found))


if __name__ == "__main__":
    main()
