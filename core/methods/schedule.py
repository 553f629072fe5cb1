"""How much of one conditioning is blended into another at each moment of a sampling run.

The progressive schedule of TPSO (arXiv 2511.19811, equations 10 and 11), and its relatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..require import require

EASINGS = ("linear", "smooth", "hold")
_SAME_STEP = 1e-4  # relative; samplers call the model at a grid sigma that went through a few float operations


@dataclass(frozen=True)
class Window:
    """When the first of two conditionings is in force.

    ratio: the share of the run over which its weight falls from 1 to 0, -1..1. Negative: the mirror image, a window at
        the end of the run over which the weight rises to 1.
    start_percent: share of the run, at most |ratio|, for which the weight stays 1 before it begins to fall.
    easing: "linear"; "smooth", half a cosine wave; "hold", 1 inside the window and 0 outside.
    steps: 0, or the number of steps that the window is long, in place of ratio (which then only gives the side).

    Raises ValueError for a value that is not allowed.
    """

    ratio: float = 0.4
    start_percent: float = 0.0
    easing: str = "linear"
    steps: int = 0

    def __post_init__(self) -> None:
        require(math.isfinite(self.ratio) and -1 <= self.ratio <= 1, "ratio", self.ratio, "from -1 to 1")
        require(self.easing in EASINGS, "easing", self.easing, f"one of {', '.join(EASINGS)}")
        require(self.steps >= 0, "steps", self.steps, "0 or more")
        require(0 <= self.start_percent <= 1, "start_percent", self.start_percent, "from 0 to 1")
        within = self.start_percent <= abs(self.ratio) or self.steps > 0 or self.ratio == 0
        require(within, "start_percent", self.start_percent, f"at most the length of the window, {abs(self.ratio):g}")

    @property
    def fades(self) -> bool:
        """Whether there are moments at which both conditionings are in force."""
        return self.easing != "hold" and (self.ratio != 0 or self.steps > 0)

    def weight(self, progress: float, total: int) -> float:
        """Weight of the first conditioning, 0..1, at `progress` 0..1 through a run of `total` steps.

        Step i of T has progress i / T. The last step mirrors the first one: under a negative ratio it has weight 1.
        """
        end = min(self.steps / total, 1.0) if self.steps else abs(self.ratio)
        if self.ratio < 0:
            progress = max(1 - 1 / total - progress, 0.0)
        # Rounding must not turn a weight that is exactly 0 into a trace of the first conditioning.
        if progress >= end - 1e-9:
            return 0.0
        if self.easing == "hold" or progress <= self.start_percent:
            return 1.0
        linear = (end - progress) / (end - self.start_percent)
        return 0.5 - 0.5 * math.cos(math.pi * linear) if self.easing == "smooth" else linear


@dataclass(frozen=True)
class ReleasedWindow(Window):
    """The weights of TPSO's released code: linspace(1, 0, int(T |ratio|)) over the first steps and 0 after them; the
    mirror image for a negative ratio. A step keeps its weight from beginning to end.

    The last step within the window has weight 0 already, unless it is the only one.

    Raises ValueError for anything but a ratio, which is all that the release has.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.easing == "linear", "easing", self.easing, "linear")
        require(self.start_percent == 0, "start_percent", self.start_percent, "0")
        require(self.steps == 0, "steps", self.steps, "0")

    def weight(self, progress: float, total: int) -> float:
        """Weight of the first conditioning, 0..1, at `progress` 0..1 through a run of `total` steps."""
        step = min(int(progress * total + _SAME_STEP), total - 1)
        if self.ratio < 0:
            step = total - 1 - step
        active = int(total * abs(self.ratio))
        if step >= active:
            return 0.0
        return 1.0 - step / (active - 1) if active > 1 else 1.0


def step_position(sigmas: Sequence[float], sigma: float) -> float:
    """Where `sigma` lies on a run's falling `sigmas` (T + 1 values): i at sigmas[i], a fraction in between.

    Samplers also call the model between two steps, and some twice at one: the place of a sigma, unlike a count of
    calls, is the same for all of them. Above the first sigma it is 0, at or below the last T. Rising sigmas, by which
    an image is turned into its noise, are gone through the other way round.
    """
    if len(sigmas) > 1 and sigmas[0] < sigmas[-1]:
        return len(sigmas) - 1 - _falling_position(sigmas[::-1], sigma)
    return _falling_position(sigmas, sigma)


def _falling_position(sigmas: Sequence[float], sigma: float) -> float:
    for i, (high, low) in enumerate(pairwise(sigmas)):
        if sigma > high * (1 + _SAME_STEP):
            return float(i)
        if sigma > low + _SAME_STEP * (high - low):
            inside = (high - sigma) / (high - low) if high > low else 0.0
            return i + inside if inside > _SAME_STEP else float(i)
    return float(max(len(sigmas) - 1, 0))
