"""How diverse the data itself is: scenes drawn as the world draws them, under the report prompts, read as images are.

    python -m benchmarks.data_diversity               # the prompts for reporting
    python -m benchmarks.data_diversity --set ten     # those of older measurements

A model that has learned the data perfectly comes to these figures, and a method that goes beyond them makes images
that the data does not have. Means over several draws of ten images for each prompt, as many as the demo makes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
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
from comfyui_diversity.demo.world.prompts import REPORT_PROMPTS, TEN_PROMPTS, Prompt  # noqa: E402

from benchmarks.measure import Group, Judged, figures  # noqa: E402

from .results import SCRATCH, add_row  # noqa: E402

IMAGES = 10
SETS = {"report": (REPORT_PROMPTS, 4), "ten": (TEN_PROMPTS, 20)}  # prompts, draws
NAMES = ("adherence", "good_share", "quality_vendi", "rare_share", "mss", "mss_centred", "vendi", "divergence", "kid")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(SETS), default="report")
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    options = parser.parse_args(arguments)
    rng, scorer = np.random.default_rng(2024), Scorer.load()
    prompts, draws = SETS[options.set]
    rows = [figures([read_off(drawn(prompt, rng), scorer) for prompt in prompts], scorer) for _ in range(draws)]
    found = {name: round(fmean(row[name] for row in rows), 4) for name in NAMES}
    effective = [row["effective_number"] for row in rows]
    numbers = {name: round(fmean(one[name] for one in effective), 4) for name in effective[0]}
    row = {"row": "the data itself", **found, "effective_number": numbers}
    command = "python -m benchmarks.data_diversity" + (" --set ten" if options.set == "ten" else "")
    add_row(options.out / f"data_diversity_{options.set}.json", command, row)
    print(row)


def drawn(prompt: Prompt, rng: np.random.Generator, images: int = IMAGES) -> Group:
    """Images of the prompt: what it states as it states it, the rest as the world draws it (attributes are
    independent given the object)."""
    scenes = [replace(sample_scene(rng, prompt.object), **prompt.stated) for _ in range(images)]
    return Group(prompt, np.stack([draw(scene, rng) for scene in scenes]))


def read_off(group: Group, scorer: Scorer) -> Judged:
    """What is read off drawings. A drawing is sound by definition."""
    sound = np.zeros(len(group.images))
    return Judged(group.prompt, scorer.read(group.images), scorer.features(group.images), sound, sound.astype(bool))


if __name__ == "__main__":
    main()
