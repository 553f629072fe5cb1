"""What the settings of Minority Prompt do: those closer to the paper, and restraints that keep the prompt.

    python -m benchmarks.minority_settings --model unet                  # choose: on the prompts for choosing
    python -m benchmarks.minority_settings --model unet --report --only baseline "closer*" shipped
    python -m benchmarks.minority_settings --model distilled

All rows share prompts and seeds. Adherence and the rare share come from the attribute classifier, which nothing
optimises. Rows of the distilled model learn at all four steps, as published for few-step models.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from .rows import BATCH, Make, arguments_of, carry_out  # isort: skip - this makes ComfyUI and the pack importable
import torch
from comfyui_diversity.core.drivers.minority import Learning, to_learn, with_learning
from comfyui_diversity.core.methods.minority import OBJECTIVES, PUBLISHED, RECOMMENDED, Settings, Steps
from comfyui_diversity.nodes.minority import MinorityPrompt, MinorityPromptOptions
from torch import Tensor

from .cno_settings import with_noise
from .peers import pink
from .world import World

# The paper's learning rates in standard deviations of SD1.5's token embeddings, about 0.014.
OWN_RATE = {"base model": 0.7, "few-step model": 0.07}


def learned(
    rate: float = 0.0,
    iterations: int = 0,
    window: tuple[float, float] | None = None,
    objective: str = "minority",
    shipped: bool = False,
    typical: bool = False,
    **options: Any,
) -> Make:
    """Images with a token learned by these settings; what is 0 or None has the published value for the model's kind,
    but the learning rate in standard deviations; nothing holds the token back, and it is kept to the end.

    shipped: what is 0 or None is the preset's.
    """
    options.setdefault("keep_until", 1.0)

    @torch.inference_mode()
    def make(world: World, text: str, seed: int) -> Tensor:
        kind = "few-step model" if world.recipe.steps <= 8 else "base model"
        preset = (RECOMMENDED if shipped else PUBLISHED)[kind]
        own_rate = preset.learning_rate if shipped else OWN_RATE[kind]
        learning = Learning(
            clip=world.clip,
            text=text,
            settings=Settings(iterations or preset.iterations, rate or own_rate, typical),
            steps=Steps(*(window or (0.0, preset.end))),
            objective=OBJECTIVES[objective],
            **options,
        )
        return world.latents(text, seed, BATCH, with_learning(world.model), positive=to_learn(learning))

    return make


def as_published(word: str = Learning(None, "").word, **options: Any) -> Make:
    """What the node does with mode published and these values of its options node."""

    @torch.inference_mode()
    def make(world: World, text: str, seed: int) -> Tensor:
        kind = "few-step model" if world.recipe.steps <= 8 else "base model"
        main = (world.model, world.clip, text, kind, 1.0, word, "minority", "published")
        given = MinorityPromptOptions.execute(**options).args[0]
        model, positive = MinorityPrompt.execute(*main, options=given).args
        return world.latents(text, seed, BATCH, model, positive=positive)

    return make


@torch.inference_mode()
def word_alone(world: World, text: str, seed: int) -> Tensor:
    """The prompt with the word that the token starts from, and nothing learned."""
    return world.latents(f"{text} {Learning(None, '').word}", seed, BATCH)


ROWS: dict[str, Make] = {
    "baseline": lambda world, text, seed: world.latents(text, seed, BATCH),
    "word alone": word_alone,
    "published": as_published(),
    "closer to the paper": learned(),
    **{f"similarity {least}": learned(similarity=least) for least in (0.97, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)},
    **{f"rate {rate}": learned(rate=rate) for rate in (0.05, 0.1, 0.2)},
    **{f"keep until {share}": learned(keep_until=share) for share in (0.1, 0.2, 0.3, 0.5)},
    **{f"half rate, keep until {share}": learned(rate=0.35, keep_until=share) for share in (0.3, 0.5)},
    "similarity 0.8, keep until 0.5": learned(similarity=0.8, keep_until=0.5),
    "similarity 0.6, keep until 0.3": learned(similarity=0.6, keep_until=0.3),
    "later 0.1 to 0.2": learned(window=(0.1, 0.2)),
    "later 0.2 to 0.3": learned(window=(0.2, 0.3)),
    "longer 0 to 0.3": learned(window=(0.0, 0.3)),
    "first step alone": learned(window=(0.0, 0.01)),
    "first step alone, dropped": learned(window=(0.0, 0.01), keep_until=0.0),
    "first step alone, dropped, 10 at 0.7": learned(rate=0.7, iterations=10, window=(0.0, 0.01), keep_until=0.0),
    "first step alone, dropped, 10 at 0.2": learned(rate=0.2, iterations=10, window=(0.0, 0.01), keep_until=0.0),
    "first step alone, dropped, 20 at 0.7": learned(rate=0.7, iterations=20, window=(0.0, 0.01), keep_until=0.0),
    "first step alone, 10 at 0.7, keep until 0.3": learned(rate=0.7, iterations=10, window=(0, 0.01), keep_until=0.3),
    "first step alone, 20 at 0.7, keep until 0.3": learned(rate=0.7, iterations=20, window=(0, 0.01), keep_until=0.3),
    "first two steps, dropped": learned(window=(0.0, 0.3), keep_until=0.0),
    "keep until 0.3, similarity 0.95": learned(keep_until=0.3, similarity=0.95),
    "keep until 0.2, rate 0.2": learned(keep_until=0.2, rate=0.2),
    "keep until 0.1, similarity 0.8": learned(keep_until=0.1, similarity=0.8),
    "keep until 0.1, renoise 0.75": learned(keep_until=0.1, renoise=0.75),
    "keep until 0.1, both": learned(keep_until=0.1, objective="both"),
    "keep until 0.15, longer": learned(window=(0.0, 0.15), keep_until=0.15),
    **{
        f"{count} at {rate}, keep until 0.2": learned(rate=rate, iterations=count, keep_until=0.2)
        for count, rate in ((5, 1.4), (5, 0.7), (3, 2.4), (2, 3.5))
    },
    **{f"5 at 1.4, keep until {share}": learned(rate=1.4, iterations=5, keep_until=share) for share in (0.1, 0.15)},
    "first step alone, dropped, 5 at 2.8": learned(rate=2.8, iterations=5, window=(0.0, 0.01), keep_until=0.0),
    "first step alone, dropped, 10 at 1.4": learned(rate=1.4, iterations=10, window=(0.0, 0.01), keep_until=0.0),
    "iterations 4": learned(iterations=4),
    "iterations 20": learned(iterations=20, rate=0.35),
    "renoise 0.25": learned(renoise=0.25),
    "renoise 0.5": learned(renoise=0.5),
    "renoise 0.75": learned(renoise=0.75),
    "renoise 0.75, similarity 0.8": learned(renoise=0.75, similarity=0.8),
    "renoise 0.75, keep until 0.3": learned(renoise=0.75, keep_until=0.3),
    "start at random": learned(word=""),
    "token first": learned(position="start"),
    "diversity": learned(objective="diversity"),
    "diversity, similarity 0.8": learned(objective="diversity", similarity=0.8),
    "both": learned(objective="both"),
    "both, similarity 0.8": learned(objective="both", similarity=0.8),
    "typical": learned(typical=True),
    "pink 0.5": with_noise(partial(pink, alpha=0.5)),
    "shipped": learned(shipped=True, keep_until=Learning(None, "").keep_until),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = arguments_of(__doc__)
    options = parser.parse_args(arguments)
    carry_out("minority_settings", ROWS, parser, options)


if __name__ == "__main__":
    main()
