"""Figures of one row of the demo: what the scorer reads off the images of every prompt, averaged over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from devtools.pack import load_pack

load_pack()

from comfyui_diversity.demo.world.attributes import VALUES, rare_values  # noqa: E402

if TYPE_CHECKING:
    from comfyui_diversity.demo.scorer import Scorer
    from comfyui_diversity.demo.world.prompts import Prompt


@dataclass(frozen=True)
class Group:
    """The images of one prompt, `uint8 [N, H, W, 3]`."""

    prompt: Prompt
    images: np.ndarray


def measure(groups: Sequence[Group], scorer: Scorer) -> dict[str, Any]:
    """Adherence and diversity of the images of several prompts.

    Every figure is taken within the images of one prompt and then averaged over prompts; what a prompt states is
    left out of its effective numbers and its rare share. Returns `adherence` (share of images that show everything
    stated), `effective_number` (attribute to effective number of its values), `rare_share` (share of unstated
    attributes whose value fewer than a tenth of such scenes have), `mss`, `mss_centred` (of features less what the
    features of all images have in common: 0 for unrelated scenes) and `vendi`. An attribute that every prompt states
    has no effective number.
    """
    # Here, not above: these take seconds to import (torch), and the demo's server is to start before that.
    from comfyui_diversity.core.methods.metrics import effective_number, mean_pairwise_similarity, vendi_score
    from comfyui_diversity.demo.scorer import satisfies

    adherence, rare, mss, centred, vendi = [], [], [], [], []
    numbers: dict[str, list[float]] = {name: [] for name in VALUES}
    for group in groups:
        prompt, read = group.prompt, scorer.read(group.images)
        adherence.append(fmean(satisfies(attributes, prompt) for attributes in read))
        for name in prompt.unstated:
            numbers[name].append(effective_number(attributes[name] for attributes in read))
        if prompt.unstated:
            uncommon = rare_values(prompt.object)
            rare.append(fmean(a[name] in uncommon[name] for a in read for name in prompt.unstated))
        features = scorer.features(group.images)
        mss.append(mean_pairwise_similarity(features))
        centred.append(mean_pairwise_similarity(features - scorer.common))
        vendi.append(vendi_score(features))
    return {
        "adherence": round(fmean(adherence), 4),
        "effective_number": {name: round(fmean(found), 4) for name, found in numbers.items() if found},
        "rare_share": round(fmean(rare), 4),
        "mss": round(fmean(mss), 4),
        "mss_centred": round(fmean(centred), 4),
        "vendi": round(fmean(vendi), 4),
    }
