"""What the settings of Minority Prompt do: those closer to the paper, and restraints that keep the prompt.

    python -m benchmarks.minority_settings --model unet                  # choose: on the prompts for choosing
    python -m benchmarks.minority_settings --model unet --report --only baseline "closer*" shipped
    python -m benchmarks.minority_settings --model distilled

All rows share prompts and seeds. Adherence and the rare share come from the attribute classifier, which nothing
optimises. Rows of the distilled model learn at all four steps, as published for few-step models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .rows import BATCH, Make, arguments_of, carry_out  # isort: skip - this makes ComfyUI and the pack importable
import torch
from comfyui_diversity.core.drivers.minority import to_learn, with_learning
from comfyui_diversity.core.drivers.minority_learning import Learning
from comfyui_diversity.core.methods.minority import OBJECTIVES, PUBLISHED, RECOMMENDED, Settings, Steps
from comfyui_diversity.nodes.minority import MinorityPrompt
from comfyui_diversity.nodes.minority_options import MinorityPromptOptions
from torch import Tensor

from .world import World

# The paper's learning rates in standard deviations of SD1.5's token embeddings, about 0.014.
OWN_RATE = {"base model": 0.7, "few-step model": 0.07}


def learned(
    rate: float = 0.0,
    iterations: int = 0,
    window: tuple[float, float] | None = None,
    shipped: bool = False,
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
            settings=Settings(iterations or preset.iterations, rate or own_rate),
            steps=Steps(*(window or (0.0, preset.end))),
            objective=OBJECTIVES["minority"],
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


ROWS: dict[str, Make] = {
    "baseline": lambda world, text, seed: world.latents(text, seed, BATCH),
    "published": as_published(),
    "closer to the paper": learned(),
    "first step alone, 10 at 0.7, keep until 0.3": learned(rate=0.7, iterations=10, window=(0, 0.01), keep_until=0.3),
    "first step alone, dropped, 10 at 0.7": learned(rate=0.7, iterations=10, window=(0.0, 0.01), keep_until=0.0),
    "shipped": learned(shipped=True, keep_until=Learning(None, "").keep_until),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = arguments_of(__doc__)
    options = parser.parse_args(arguments)
    carry_out("minority_settings", ROWS, parser, options)


if __name__ == "__main__":
    main()
