"""What a user would try instead, each from its published description, one file each.

A rival is a function of its settings that gives a `Change` of a `Job`. `RIVALS` has all of them by name, with the
models that they apply to and the settings that `benchmarks.search` tries: as many for each, and as many as for ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..job import Change
from .base_first_step import base_first_step
from .cads import cads
from .cfg_interval import cfg_interval
from .contextual_repulsion import contextual_repulsion
from .dave import dave
from .dpp import dpp
from .embedding_noise import conditioning_variation, seed_variance
from .group_selection import group_selection
from .more_seeds import more_seeds
from .particle_guidance import particle_guidance
from .pink import pink_noise

Settings = Mapping[str, Any]
ALL = ("unet", "mmdit", "distilled", "turbo", "turbo_base")
GUIDED = ("unet", "mmdit", "turbo_base")
JOINT = ("mmdit", "distilled")  # text tokens go through the blocks beside the image's


@dataclass(frozen=True)
class Rival:
    """How a rival is made and tried.

    make: settings to the change. knob: the setting that says how much; its curve sweeps it. grid: the settings that
    are tried, `TRIES` of them. models: those that it applies to. free: it costs next to no time.
    """

    make: Callable[..., Change]
    knob: str
    grid: Sequence[Settings]
    models: Sequence[str] = ALL
    free: bool = True


def _grid(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """All combinations."""
    found: list[dict[str, Any]] = [{}]
    for name, options in values.items():
        found = [{**one, name: value} for one in found for value in options]
    return found


TRIES = 8
RIVALS: dict[str, Rival] = {
    "more seeds": Rival(more_seeds, "times", _grid(times=[1, 2, 3, 4, 5, 6, 8, 10]), free=False),
    "CFG interval": Rival(
        cfg_interval, "start", _grid(start=[0.05, 0.1, 0.2, 0.3], end=[1.0, 0.8]), models=GUIDED
    ),
    "pink noise": Rival(pink_noise, "alpha", _grid(alpha=[0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.25, 1.5])),
    "seed variance": Rival(
        seed_variance, "strength", _grid(strength=[0.5, 1.0, 2.0, 4.0], pooled=[False, True])
    ),
    "conditioning variation": Rival(
        conditioning_variation, "strength", _grid(strength=[0.4, 0.8, 1.6, 3.2], end=[1.0, 0.2])
    ),
    "CADS": Rival(cads, "strength", _grid(strength=[0.1, 0.25, 0.5, 1.0], start=[0.6, 0.9])),
    "DAVE": Rival(dave, "strength", _grid(strength=[0.3, 0.5, 0.8, 1.0], end=[0.1, 0.25]), models=JOINT),
    "contextual repulsion": Rival(
        contextual_repulsion, "strength", _grid(strength=[0.25, 0.5, 1.0, 2.0], end=[0.2, 0.5]), models=JOINT
    ),
    "particle guidance": Rival(
        particle_guidance, "strength", _grid(strength=[0.25, 0.5, 1.0, 2.0], pool=[1, 4])
    ),
    "DPP (DiverseFlow)": Rival(dpp, "strength", _grid(strength=[0.1, 0.2, 0.4, 0.8], pool=[1, 4])),
    "first step by the base model": Rival(
        base_first_step, "cfg", _grid(cfg=[1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0]), models=("distilled", "turbo")
    ),
    "group selection": Rival(
        group_selection, "times", _grid(times=[2, 4, 8, 16], window=[1, 16]), free=False
    ),
}  # fmt: skip
