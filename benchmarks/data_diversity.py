"""How diverse the data itself is: scenes drawn as the world draws them, under the report prompts, read as pictures are.

    python -m benchmarks.data_diversity

A model that has learned the data perfectly comes to these figures, and a method that goes beyond them makes pictures
that the data does not have. Means over several draws of ten pictures for each prompt, as many as the demo makes.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from statistics import fmean

from devtools.pack import load_pack
from devtools.places import HERE

# `python -m` puts the pack's root on the path, where its `nodes` would hide ComfyUI's.
sys.path[:] = [entry for entry in sys.path if entry not in ("", str(HERE.root))]
load_pack()

import numpy as np  # noqa: E402
from comfyui_diversity.demo.scorer import Scorer  # noqa: E402
from comfyui_diversity.demo.world.attributes import sample_scene  # noqa: E402
from comfyui_diversity.demo.world.draw import draw  # noqa: E402
from comfyui_diversity.demo.world.prompts import REPORT_PROMPTS, Prompt  # noqa: E402

from benchmarks.measure import Group, measure  # noqa: E402

PICTURES, DRAWS = 10, 20


def main() -> None:
    rng, scorer = np.random.default_rng(2024), Scorer.load()
    rows = [measure([drawn(prompt, rng) for prompt in REPORT_PROMPTS], scorer) for _ in range(DRAWS)]
    numbers = {name: fmean(row["effective_number"][name] for row in rows) for name in rows[0]["effective_number"]}
    print(f"data, {DRAWS} x {PICTURES} pictures of each report prompt")
    for name in ("adherence", "rare_share", "mss", "mss_centred", "vendi"):
        print(f"{name:<12} {fmean(row[name] for row in rows):.3f}")
    print("effective    " + "  ".join(f"{name} {value:.2f}" for name, value in numbers.items()))


def drawn(prompt: Prompt, rng: np.random.Generator) -> Group:
    """Pictures of the prompt: what it states as it states it, the rest as the world draws it (attributes are
    independent given the object)."""
    scenes = [replace(sample_scene(rng, prompt.object), **prompt.stated) for _ in range(PICTURES)]
    return Group(prompt, np.stack([draw(scene, rng) for scene in scenes]))


if __name__ == "__main__":
    main()
