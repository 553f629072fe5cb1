"""Every method on the demo's Z-Image Turbo (language model, eight steps, CFG 1), beside what is free.

    python -m benchmarks.turbo --model turbo                              # choose: on the prompts for choosing
    python -m benchmarks.turbo --model turbo --report --only baseline "shipped*" "pink*" "embedding noise*"
    python -m benchmarks.turbo --model turbo_base --report --only "cfg*"  # its teacher, guided less and less
    python -m benchmarks.turbo --cosines                                  # what a cosine means in its text encoder

All rows share prompts and seeds. Adherence and diversity come from the attribute classifier, which nothing optimises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from unittest import mock

from .rows import BATCH, Make, arguments_of, carry_out  # isort: skip - this makes ComfyUI and the pack importable
import numpy as np
import torch
from comfyui_diversity.core.drivers.cno import ContrastiveNoise
from comfyui_diversity.core.drivers.minority_learning import Learning
from comfyui_diversity.core.drivers.schedule import can_blend, scheduled
from comfyui_diversity.core.drivers.tpso import Recipe, native_kappa, recommended, unvaried, vary_prompt
from comfyui_diversity.core.hooks.prompt import Section
from comfyui_diversity.core.hooks.sampling import with_noise_change
from comfyui_diversity.core.hooks.text import PromptEncoder, mean_output, prompt_encoders
from comfyui_diversity.core.methods.cno import RECOMMENDED as NOISE
from comfyui_diversity.core.methods.schedule import Window
from comfyui_diversity.core.methods.tpso import Settings
from comfyui_diversity.demo.turbo import load_turbo_clip
from torch import Tensor

from . import tpso_cosines
from .cno_settings import with_noise
from .minority_settings import learned
from .peers import pink
from .results import PrintedTable
from .world import World


def baseline(world: World, text: str, seed: int) -> Tensor:
    return world.latents(text, seed, BATCH)


def at_cfg(cfg: float) -> Make:
    """The same with another guidance."""

    def make(world: World, text: str, seed: int) -> Tensor:
        own = world.recipe
        try:
            world.recipe = replace(own, cfg=cfg)
            return world.latents(text, seed, BATCH)
        finally:
            world.recipe = own

    return make


def embedding_noise(strength: float, share: float = 0.5, until: float = 0.2) -> Make:
    """Uniform noise on a share of the values of the text embedding during the first steps, as the node packs do that
    people use against alike images. `strength` is in standard deviations of the embedding."""

    @torch.inference_mode()
    def make(world: World, text: str, seed: int) -> Tensor:
        [[plain, extras]] = world.conditioning(text)
        generator = torch.Generator().manual_seed(seed)
        rows = plain.expand(BATCH, -1, -1)
        noise = (2 * torch.rand(rows.shape, generator=generator) - 1) * strength * plain.std()
        noised = rows + noise * (torch.rand(rows.shape, generator=generator) < share)
        first = [noised, {**extras, "start_percent": 0.0, "end_percent": until}]
        rest = [plain, {**extras, "start_percent": until, "end_percent": 1.0}]
        return world.latents(text, seed, BATCH, positive=[first, rest])

    return make


def variants_of(world: World, text: str, seed: int, recipe: Recipe, ratio: float) -> list:
    """CONDITIONING of ten variants that fade into the prompt, as Diverse Prompts gives it."""
    variants, _ = vary_prompt(world.clip, text, BATCH, seed, recipe)
    plain = world.conditioning(text)
    between = None if can_blend(variants, plain) else unvaried(world.clip, text, "auto", recipe.added_tokens)
    return scheduled(variants, plain, Window(ratio, 0.0, "linear", 0), between=between)


def tpso(kappa: float, ratio: float, added: int = 0, tries: int = Settings.steps, keep: bool = False) -> Make:
    """Images from prompt variants, one each; `added` is of tokens, `keep` of words."""
    recipe = Recipe(Settings(kappa, steps=tries), added, keep)

    @torch.inference_mode()
    def make(world: World, text: str, seed: int) -> Tensor:
        return world.latents(text, seed, BATCH, positive=variants_of(world, text, seed, recipe, ratio))

    return make


def read_words(make: Make) -> Make:
    """The same with another vector of a prompt: the mean over its own words."""

    def made(world: World, text: str, seed: int) -> Tensor:
        with mock.patch.object(Section, "summary", property(lambda section: (section.first, section.last))):
            return make(world, text, seed)

    return made


def with_cno(strength: float | None = None) -> Make:
    settings = NOISE if strength is None else replace(NOISE, strength=strength)

    def make(world: World, text: str, seed: int) -> Tensor:
        patched = with_noise_change(world.model, "benchmark", ContrastiveNoise(settings, "stop"))
        return world.latents(text, seed, BATCH, patched=patched)

    return make


def together(ratio: float, kappa: float | None = None, added: int | None = None) -> Make:
    """Diverse Prompts and Diverse Noise in one run."""

    @torch.inference_mode()
    def make(world: World, text: str, seed: int) -> Tensor:
        recipe = recommended(added_tokens=added) if kappa is None else recommended(kappa, added_tokens=added)
        positive = variants_of(world, text, seed, recipe, ratio)
        patched = with_noise_change(world.model, "benchmark", ContrastiveNoise(NOISE, "stop"))
        return world.latents(text, seed, BATCH, patched=patched, positive=positive)

    return make


ROWS: dict[str, Make] = {
    "baseline": baseline,
    **{f"cfg {cfg}": at_cfg(cfg) for cfg in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)},
    **{f"pink {alpha}": with_noise(partial(pink, alpha=alpha)) for alpha in (0.2, 0.5, 1.0)},
    **{f"embedding noise {strength}": embedding_noise(strength) for strength in (0.5, 1.0, 2.0, 4.0)},
    **{
        f"words, kappa {kappa}, ratio {ratio}": tpso(kappa, ratio, tries=60)
        for kappa in (0.95, 0.9, 0.8, 0.6)
        for ratio in (0.2, 0.4, 0.6)
    },
    **{
        f"words kept, kappa {kappa}, ratio {ratio}": tpso(kappa, ratio, tries=60, keep=True)
        for kappa in (0.8, 0.6)
        for ratio in (0.2, 0.4)
    },
    **{
        f"added {added}, kappa {kappa}, ratio {ratio}": tpso(kappa, ratio, added=added, tries=60)
        for added, kappa, ratio in (
            *((4, kappa, ratio) for kappa in (0.9, 0.8, 0.6, 0.4) for ratio in (0.2, 0.4, 0.6)),
            (2, 0.8, 0.2),
            (2, 0.8, 0.4),
        )
    },
    **{
        f"read words, {row}": read_words(make)
        for row, make in {
            "words, kappa 0.8, ratio 0.4": tpso(0.8, 0.4, tries=60),
            "added 4, kappa 0.8, ratio 0.2": tpso(0.8, 0.2, added=4, tries=60),
            "added 4, kappa 0.8, ratio 0.4": tpso(0.8, 0.4, added=4, tries=60),
        }.items()
    },
    "shipped prompts": tpso(0.8, 0.2, added=4, tries=60),
    "shipped noise": with_cno(),
    "noise, strength 1": with_cno(1.0),
    "shipped minority": learned(shipped=True, keep_until=Learning(None, "").keep_until),
    "together, ratio 0.2": together(0.2),
    "together, ratio 0.4": together(0.4),
}


Vector = Callable[[PromptEncoder], Tensor]


def _mean_over(first: int | None, last: int | None) -> Vector:
    """Mean of the hidden states that the transformer reads; None is where the prompt's own words begin, or end."""

    def vector(encoder: PromptEncoder) -> Tensor:
        [section] = encoder.sections
        count = len(section.embeds)
        begin = section.first if first is None else first % count
        end = section.last if last is None else count + last
        return mean_output(encoder.module, section.embeds[None], section, begin, end)[0]

    return vector


VECTORS: dict[str, Vector] = {
    "mean over the words": _mean_over(None, None),
    "mean over words and template": _mean_over(0, 0),
    "mean over what follows the words (the pack's)": lambda encoder: _mean_over(encoder.sections[0].last, 0)(encoder),
    "last token": _mean_over(-1, 0),
}


@torch.inference_mode()
def print_cosines(count: int, table: PrintedTable) -> None:
    rng = np.random.default_rng(0)
    cases = [tpso_cosines.make_case(rng) for _ in range(count)]
    clip = load_turbo_clip()

    def encoders(texts: Sequence[str]) -> list[PromptEncoder]:
        return [encoder for text in texts for encoder in prompt_encoders(clip, clip.tokenize(text))]

    own = encoders([case.text for case in cases])
    others = {kind: encoders([case.others[kind] for case in cases]) for kind in tpso_cosines.KINDS}
    common = encoders([tpso_cosines.make_case(rng).text for _ in range(tpso_cosines.MEAN_OF)])
    for name, vector in VECTORS.items():
        plain, centred = tpso_cosines.cosines(own, others, common, vector)
        table.add(tpso_cosines.row(name, plain))
        table.add(tpso_cosines.row(f"{name}, common mean removed", centred))
    [first] = prompt_encoders(clip, clip.tokenize("a heart"))
    print(f"unrelated prompts {first.unrelated_cosine():.3f}; kappa 0.8 is {native_kappa(first, 0.8):.3f} here")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = arguments_of(__doc__)
    parser.set_defaults(model="turbo")
    parser.add_argument("--cosines", type=int, nargs="?", const=60, help="of so many captions; no images")
    options = parser.parse_args(arguments)
    if options.cosines:
        head = ["vector", "paraphrase", *tpso_cosines.KINDS[1:-1], "any swapped word", "unrelated"]
        command = "python -m benchmarks.turbo --cosines"
        print_cosines(options.cosines, PrintedTable(options.out / "turbo_cosines.json", command, head))
        return
    carry_out("turbo", ROWS, parser, options)


if __name__ == "__main__":
    main()
