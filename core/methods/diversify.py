"""One strength for all methods: what is done to a run of which no more is known than what a sampler says of it.

What a strength gives and costs is in docs/measurements/frontier.md. A batch gets noises that are moved apart, and
guidance in a limited interval (Kynkaanniemi et al. 2024, arXiv 2404.07724). Variants of the prompt would add nothing
to it that is certain; they are for one image alone, which has no other to be moved away from. Its noise is made wider
instead: away from what all images have in common. So is that of a batch on models of few steps, whose images are the
most alike; elsewhere that gives a batch no more than moving its noise further.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..require import require
from .cno import RECOMMENDED
from .schedule import Window

FEW_STEPS = 9  # a run without guidance of so many steps or fewer is one of a few-step model
# How many variants of a prompt there are for batches of one image: the sampler's seed chooses one of them.
VARIANTS_OF_ONE = 8
RATIO = 0.2  # of the steps, over which variants fade into the prompt
# Shares of the steps without guidance. At the first it decides what is where; at the last it only costs time.
FIRST_UNGUIDED, LAST_UNGUIDED = 0.1, 0.2


@dataclass(frozen=True)
class Situation:
    """What is known of a run before its first step.

    steps: of the sampler. guided: whether the model is asked for the negative prompt too. batch: number of images.
    starts: whether from noise, not from an image that is begun. ends: whether with a finished image.
    """

    steps: int
    guided: bool
    batch: int
    starts: bool = True
    ends: bool = True

    @property
    def few_steps(self) -> bool:
        """Whether the model is one that was made for few steps."""
        return not self.guided and self.steps <= FEW_STEPS


@dataclass(frozen=True)
class Plan:
    """What is done to a run.

    kappa: cosine of the prompt's variants to the prompt. window: when they are in force. added_tokens: so many tokens
        behind the prompt are varied, see TPSO.
    noise_strength: of Contrastive Noise Optimization; all else of it is as recommended.
    wide: how many times as large the coarsest structure of the noise is, see `core.methods.starts`.
    unguided: number of steps without guidance at the start and at the end.
    """

    kappa: float
    window: Window
    added_tokens: int
    noise_strength: float
    wide: float
    unguided: tuple[int, int]

    def extra_passes(self, situation: Situation) -> float:
        """How many passes of one image through the model come on top, as a share of those of the run."""
        each, (first, last) = 2 if situation.guided else 1, self.unguided
        # The noise is moved by what the first step predicts, with its guidance or without.
        passes = RECOMMENDED.iterations * (1 if first else each) if self.noise_strength > 0 else 0
        return (passes - first - last) / (each * situation.steps)


def plan(strength: float, situation: Situation) -> Plan:
    """What a strength from 0 (nothing) to 1 means for a run. Raises ValueError for another strength."""
    require(0 <= strength <= 1, "strength", strength, "from 0 to 1")
    few, several = situation.few_steps, situation.batch > 1
    # Of unit vectors from the prompt's axis: the sine of their angle to it.
    distance = 0.0 if several else 0.25 * strength
    # With more steps a fifth of the noise gives about half of the difference, so that the lower strengths need little.
    noise = 0.5 * strength ** (1 if few else 2.3)
    # An image that is begun has its layout, and noise that is wider would only shift its tones.
    wider = _wider(strength, few, several) if situation.starts else 0.0
    first = FIRST_UNGUIDED * strength if situation.starts else 0.0
    last = LAST_UNGUIDED * min(2 * strength, 1.0) if situation.ends else 0.0
    steps = situation.steps if situation.guided else 0
    return Plan(
        kappa=math.sqrt(1 - distance**2),
        window=Window(RATIO),
        added_tokens=2 if few else 4,
        noise_strength=noise if several else 0.0,
        wide=1 + wider,
        unguided=(_whole(first * steps), _whole(last * steps)),
    )


def _wider(strength: float, few: bool, several: bool) -> float:
    """How much larger the coarsest structure of the noise is. In a batch it comes on top of noise that is moved."""
    if several:
        return strength**2 if few else 0.0
    return (1.5 if few else 1.0) * strength


def _whole(steps: float) -> int:
    """Rounded down, but for what is lost in the product of two decimal fractions."""
    return int(steps + 1e-9)
