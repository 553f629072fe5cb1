"""One strength for all methods: what is done to a run of which no more is known than what a sampler says of it."""

from __future__ import annotations

from dataclasses import dataclass

from ..require import require
from .schedule import Window

FEW_STEPS = 9  # a run of so many steps or fewer is one of a few-step model where it has no guidance
# How many variants of a prompt there are for batches of one image: the sampler's seed chooses one of them.
VARIANTS_OF_ONE = 16


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
        """Whether the model is one that is made for few steps."""
        return not self.guided and self.steps <= FEW_STEPS


@dataclass(frozen=True)
class Plan:
    """What is done to a run.

    kappa: cosine of the prompt's variants to the prompt. window: when they are in force. added_tokens: see TPSO.
    noise_strength, noise_iterations, projection: of Contrastive Noise Optimization.
    unguided_steps: at so many steps from the first on there is no guidance.
    """

    kappa: float
    window: Window
    added_tokens: int
    noise_strength: float
    noise_iterations: int
    projection: str
    unguided_steps: int


def plan(strength: float, situation: Situation) -> Plan:
    """What a strength from 0 (nothing) to 1 means for a run. Raises ValueError for another strength."""
    require(0 <= strength <= 1, "strength", strength, "from 0 to 1")
    few = situation.few_steps
    unguided = round(0.2 * strength * situation.steps) if situation.guided else 0
    return Plan(
        kappa=1 - 0.4 * strength,
        window=Window(0.2, 0.0, "linear", 0),
        added_tokens=2 if few else 4,
        noise_strength=(0.5 if few else 1.0) * strength if situation.batch > 1 else 0.0,
        noise_iterations=3 if few else 4,
        projection="norm" if few else "spectrum",
        unguided_steps=unguided,
    )
