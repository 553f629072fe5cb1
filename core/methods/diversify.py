"""One strength for all methods: what is done to a run of which no more is known than what a sampler says of it.

What a strength gives and costs is in docs/measurements/frontier.md. With many steps everything grows together: the
distance of a prompt's variants from the prompt, that of a noise from the sampler's own, and the share of the steps
without guidance. Models of few steps break images over variants sooner than over noise, so there noise comes first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..require import require
from .schedule import Window

FEW_STEPS = 9  # a run without guidance of so many steps or fewer is one of a model that was made for few
# How many variants of a prompt there are for batches of one image: the sampler's seed chooses one of them.
VARIANTS_OF_ONE = 8
RATIO = 0.2  # of the steps, over which variants fade into the prompt
GENTLER = 0.4  # above strength .5, of what there is below, for models of many steps: what is lost grows faster there


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
    noise_strength, noise_iterations, projection, cells: of Contrastive Noise Optimization.
    unguided_steps: at so many steps from the first on there is no guidance.
    """

    kappa: float
    window: Window
    added_tokens: int
    noise_strength: float
    noise_iterations: int
    projection: str
    cells: int
    unguided_steps: int

    def extra_passes(self, situation: Situation) -> float:
        """How many passes of one image through the model come on top, as a share of those of the run."""
        each = 2 if situation.guided else 1
        first = 1 if self.unguided_steps else each
        passes = self.noise_iterations * first if self.noise_strength > 0 else 0
        return (passes - self.unguided_steps) / (each * situation.steps)


def plan(strength: float, situation: Situation) -> Plan:
    """What a strength from 0 (nothing) to 1 means for a run. Raises ValueError for another strength."""
    require(0 <= strength <= 1, "strength", strength, "from 0 to 1")
    few, guided, several = situation.few_steps, situation.guided, situation.batch > 1
    amount = strength if strength <= 0.5 else 0.5 + GENTLER * (strength - 0.5)
    if not few:
        distance, noise = (0.5 if guided else 0.6) * amount, 0.4 * amount
    elif several:
        distance, noise = 0.5 * max(strength - 0.5, 0.0), 0.25 * strength**2
    else:
        distance, noise = 0.25 * strength, 0.0
    return Plan(
        kappa=math.sqrt(
            1 - distance**2
        ),  # a distance of unit vectors from the prompt's axis: sine of their angle to it
        window=Window(RATIO),
        added_tokens=2 if few else 4,
        noise_strength=noise if several else 0.0,
        noise_iterations=3 if few else 4,
        projection="norm" if few else "spectrum",
        cells=0,
        # Rounded down, but for what is lost in the product of two decimal fractions.
        unguided_steps=int(0.2 * amount * situation.steps + 1e-9) if guided else 0,
    )
