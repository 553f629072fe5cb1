"""One strength for all methods: what is done to a run of which no more is known than what a sampler says of it.

What a strength gives and costs is in docs/measurements/frontier.md. Noise comes first: variants of the prompt, and
guidance that begins late, break more images for the same diversity. One image alone has no noise to be moved away from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..require import require
from .cno import RECOMMENDED
from .schedule import Window

FEW_STEPS = 9  # a run without guidance of so many steps or fewer is one of a model that was made for few
# How many variants of a prompt there are for batches of one image: the sampler's seed chooses one of them.
VARIANTS_OF_ONE = 8
RATIO = 0.2  # of the steps, over which variants fade into the prompt


@dataclass(frozen=True)
class Situation:
    """What is known of a run before its first step.

    steps: of the sampler. guided: whether the model is asked for the negative prompt too. batch: number of images.
    """

    steps: int
    guided: bool
    batch: int

    @property
    def few_steps(self) -> bool:
        """Whether the model is one that was made for few steps."""
        return not self.guided and self.steps <= FEW_STEPS


@dataclass(frozen=True)
class Plan:
    """What is done to a run.

    kappa: cosine of the prompt's variants to the prompt. window: when they are in force. added_tokens: so many tokens
        behind the prompt are varied, see TPSO.
    noise_strength, cells: of Contrastive Noise Optimization; all else of it is as recommended.
    unguided_steps: at so many steps from the first on there is no guidance.
    """

    kappa: float
    window: Window
    added_tokens: int
    noise_strength: float
    cells: int
    unguided_steps: int

    def extra_passes(self, situation: Situation) -> float:
        """How many passes of one image through the model come on top, as a share of those of the run."""
        each = 2 if situation.guided else 1
        passes = each * RECOMMENDED.iterations if self.noise_strength > 0 else 0
        return (passes - self.unguided_steps) / (each * situation.steps)


def plan(strength: float, situation: Situation) -> Plan:
    """What a strength from 0 (nothing) to 1 means for a run. Raises ValueError for another strength."""
    require(0 <= strength <= 1, "strength", strength, "from 0 to 1")
    few, several = situation.few_steps, situation.batch > 1
    # Of unit vectors from the prompt's axis: the sine of their angle to it.
    distance = 0.25 * strength
    if several:  # with few steps a batch has none: at strength 1 they would break as many images again as its noise
        distance = 0.0 if few else 0.5 * max(strength - 0.5, 0.0)
    # Models of few steps keep what they are given in all detail, and show it: there little does much. With more steps a
    # tenth of the noise gives half of the difference, so that the lower strengths need next to none.
    noise = 0.15 * strength**1.25 if few else 0.4 * strength**3
    return Plan(
        kappa=math.sqrt(1 - distance**2),
        window=Window(RATIO),
        added_tokens=2 if few else 4,
        noise_strength=noise if several else 0.0,
        cells=0 if few else RECOMMENDED.cells,
        # Rounded down, but for what is lost in the product of two decimal fractions.
        unguided_steps=int(0.1 * strength * situation.steps + 1e-9) if situation.guided and not several else 0,
    )
