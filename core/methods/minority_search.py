"""MinorityPrompt without gradients: a token that climbs its objective by forward passes alone.

Simultaneous perturbation (Spall, 1992): at each step all values of the token move at once by the same amount, each with
a sign of its own at random; of the two ways along that direction an image takes the one with the higher objective. Much
weaker than a gradient, which knows the direction itself: a token has hundreds of values. For models through which no
gradient passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .minority import Learned, Margin, NoGradientError, Offsets, Settings, restrained

# The objective [B] of tokens with these offsets; higher is better.
Score = Callable[[Offsets], Tensor]


def search(
    offsets: Offsets,
    score: Score,
    settings: Settings,
    seed: int,
    margin: Margin | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> Learned:
    """Tokens after one round of searching from `offsets`, as `learn` gives them; two calls of `score` an iteration.

    A step moves a value by the learning rate times the root of the iterations, so that a round of steps whose signs are
    random leads as far as one of `learn`. What an image tries depends on the seed and its place in the batch alone.

    Raises NoGradientError when no image's objective depends on its token, and ValueError for one that is not finite.
    """
    current = {name: offset.detach().float().clone() for name, offset in offsets.items()}
    size = settings.learning_rate * math.sqrt(settings.iterations)
    # One for each iteration, so that an image's signs do not depend on how many images there are.
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (settings.iterations,), generator=generator).tolist()
    history: list[Tensor] = []
    for own in seeds:
        moves = _signs(current, torch.Generator().manual_seed(own))
        ways = [
            restrained({name: offset + way * size * moves[name] for name, offset in current.items()}, margin)
            for way in (1, -1)
        ]
        scores = torch.stack([score(way).detach().float() for way in ways])
        if not torch.isfinite(scores).all():
            raise ValueError("The objective of the token is not finite: the model gives NaN or infinity at this step.")
        if bool((scores[0] == scores[1]).all()):
            raise NoGradientError
        history.append(scores.mean(0))
        first = scores[0] >= scores[1] if not settings.typical else scores[0] <= scores[1]
        current = {
            name: torch.where(first.to(ahead.device)[:, None, None], ahead, ways[1][name])
            for name, ahead in ways[0].items()
        }
        after_step()
    return Learned(current, torch.stack(history) if history else torch.zeros(0, 0))


def _signs(offsets: Offsets, generator: torch.Generator) -> Offsets:
    """-1 or 1 for every value, drawn image by image."""
    count = len(next(iter(offsets.values())))
    rows = [
        {name: torch.randint(2, offset.shape[1:], generator=generator) * 2.0 - 1 for name, offset in offsets.items()}
        for _ in range(count)
    ]
    return {name: torch.stack([row[name] for row in rows]).to(offset) for name, offset in offsets.items()}
