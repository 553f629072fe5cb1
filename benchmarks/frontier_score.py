"""The figures of one prompt's images that the frontier is drawn from."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

from .measure import Group, measure

if TYPE_CHECKING:
    from comfyui_diversity.demo.scorer import Scorer

FIGURES = ("adherence", "fidelity", "good_share", "vendi", "quality_vendi", "rare_share", "mss", "mss_centred")


def score(group: Group, scorer: Scorer) -> dict[str, float]:
    """`FIGURES` of the images of one prompt; of several prompts each is the mean."""
    found: dict[str, Any] = measure([group], scorer)
    return {name: float(found[name]) for name in FIGURES}


def means(prompts: list[dict[str, float]]) -> dict[str, float]:
    """Over prompts."""
    return {name: round(fmean(one[name] for one in prompts), 4) for name in FIGURES}
