"""Several methods at once, chosen by what a run turns out to be: prompt variants, noise that is moved apart, and
guidance that begins late.

The conditioning makes its variants when a run begins, before the diffusion model is loaded, since only then the number
of images is known. It keeps them, so that the next run with as many images need not make them again. The model does the
rest when it is loaded. Both read off the run itself what to do (see `core.methods.diversify`), and what was done and
what was not is shown on the node.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..hooks.carried import Beginning, Payload, carrying, payloads, unchanged, with_payload
from ..hooks.guidance import can_go_unguided, guidance_of, guide_after, is_guided
from ..hooks.progress import Progress, show
from ..hooks.sampling import SamplerRun, is_probe, with_noise_change
from ..methods.cno import Settings
from ..methods.diversify import VARIANTS_OF_ONE, Plan, Situation, plan
from ..require import require
from .cno import ContrastiveNoise
from .schedule import PAYLOAD, can_blend, scheduled
from .tpso import check_rows, one_variant, plain_conditioning, recommended, unvaried, vary_prompt

logger = logging.getLogger("ComfyUI-Diversity")

KEY = "diversity_diversify"
_CHANGED = (
    "The embeddings of Diversify's conditioning were changed on the way to the sampler (by Conditioning Concat or "
    "Average, for instance), which its variants would undo. Combine them by Conditioning Combine, or write all in one "
    "text."
)
_KEPT = 2  # batches of other sizes whose variants are kept


def diversified_model(model: ModelPatcher, strength: float, node: str | None, prompt: bool) -> ModelPatcher:
    """A clone of the model whose samplers start from noises that are moved apart, and are guided late.

    node: the id of the node on which the report is shown. prompt: whether there is a conditioning of
    `diversified_prompt` that is to come along. At strength 0 the model itself. Raises ValueError for another strength.
    """
    require(0 <= strength <= 1, "strength", strength, "from 0 to 1")
    if strength == 0:
        return model
    return with_noise_change(model, KEY, _ModelSide(strength, node, prompt), any_shape=True)


def diversified_prompt(clip: Any, text: str, seed: int, strength: float, node: str | None) -> list:
    """CONDITIONING of the plain prompt, which becomes its variants when a run begins.

    At strength 0 exactly what CLIP Text Encode gives. Raises ValueError for a strength that is not from 0 to 1.
    """
    require(0 <= strength <= 1, "strength", strength, "from 0 to 1")
    plain = plain_conditioning(clip, clip.tokenize(text))
    if strength == 0:
        return plain
    return [
        carrying(cond, extras, KEY, _Prompt(clip, text, seed, strength, node, cond, len(plain)))
        for cond, extras in plain
    ]


def situation_of(guider: comfy.samplers.CFGGuider, sigmas: Tensor, batch: int) -> Situation:
    """What is known of a run."""
    return Situation(max(len(sigmas) - 1, 1), is_guided(guider), batch)


# --- the prompt -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Variants:
    """Variants with their schedule (None where there are none), what is to be said of them, and the seconds that they
    took."""

    conditioning: list | None
    words: str
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class _Prompt(Payload):
    """What the conditioning carries. `found`: variants by what they were made for; once in force, `done` says what was
    done."""

    clip: Any
    text: str
    seed: int
    strength: float
    node: str | None
    plain: Tensor
    entries: int
    found: dict[Any, _Variants] = field(default_factory=dict)
    done: str = ""

    def started(self, entry: Mapping[str, Any], guider: Any) -> bool:
        return unchanged(entry, self.plain, _CHANGED)

    def begun(self, entry: dict[str, Any], key: str, beginning: Beginning) -> dict[str, Any]:
        if PAYLOAD in payloads(entry):
            raise ValueError(
                "Diversify's conditioning was given to Schedule Conditioning, but it has a schedule of its own. "
                "Schedule plain conditionings, and use Diversify (Model Only) with them."
            )
        situation = situation_of(beginning.guider, beginning.sigmas, len(beginning.noise))
        found = self._variants(situation, beginning)
        done = replace(self, done=found.words)
        if not _model_comes_along(beginning.guider) and not is_probe(beginning.sampler):
            said = f"{_title(self.strength, situation, beginning.guider)}\n{found.words}\nNoise and CFG: as they are, "
            said += "since the MODEL output of Diversify does not reach this sampler (or guider). Connect it, too."
            logger.warning(said)
            show(said, self.node)
        if found.conditioning is None:
            return with_payload(entry, key, done)
        cond, extras = found.conditioning[0]
        own = {name: value for name, value in extras.items() if name not in ("model_conds", "hooks")}
        varied = with_payload({**entry, **own, "cross_attn": cond}, key, done)
        return with_payload(varied, PAYLOAD, payloads(extras)[PAYLOAD])

    def _variants(self, situation: Situation, beginning: Beginning) -> _Variants:
        """For each image of the batch one."""
        if torch.count_nonzero(beginning.noise) == 0:
            return _Variants(
                None, "Prompt: as it is, since this sampler adds no noise and goes on with what another has begun."
            )
        if not self.text.strip():
            return _Variants(None, "Prompt: empty, so there is nothing to make variants of.")
        if self.entries > 1:
            return _Variants(None, "Prompt: as it is, since this CLIP has scheduled hooks (Set CLIP Hooks).")
        chosen = plan(self.strength, situation)
        alone = situation.batch == 1
        which = (beginning.seed or 0) % VARIANTS_OF_ONE
        made_for = (chosen.kappa, chosen.window, chosen.added_tokens, situation.batch, which if alone else -1)
        if made_for not in self.found:
            while len(self.found) >= (VARIANTS_OF_ONE if alone else _KEPT):
                del self.found[next(iter(self.found))]
            self.found[made_for] = self._made(chosen, situation.batch, which)
            return self.found[made_for]
        return replace(self.found[made_for], seconds=0.0)

    def _made(self, chosen: Plan, batch: int, which: int) -> _Variants:
        started = time.perf_counter()
        added, alone = chosen.added_tokens, batch == 1
        recipe = recommended(chosen.kappa, added_tokens=added)
        count = VARIANTS_OF_ONE if alone else batch
        plain = plain_conditioning(self.clip, self.clip.tokenize(self.text))
        progress = Progress(recipe.settings.steps)
        try:
            check_rows(plain, batch)
            variants, outcomes = vary_prompt(
                self.clip, self.text, count, self.seed, recipe, on_step=lambda *_: progress.step()
            )
        except ValueError as error:
            return _Variants(None, f"Prompt: as it is. {error}")
        if alone:
            variants = one_variant(variants, which)
        between = unvaried(self.clip, self.text, "auto", added) if added and not can_blend(variants, plain) else None
        names = " and ".join(outcome.encoder for outcome in outcomes)
        words = f"Prompt: variant {which + 1} of {count}, by the sampler's seed" if alone else "Prompt: "
        words += "" if alone else f"{batch} variants, one for each image"
        words += f", fading into the prompt over the first {chosen.window.ratio:.0%} of the steps ({names}; cosine to "
        words += f"the prompt {chosen.kappa:.2f})."
        seconds = time.perf_counter() - started
        return _Variants(scheduled(variants, plain, chosen.window, between=between), words, seconds)


def _model_comes_along(guider: comfy.samplers.CFGGuider) -> bool:
    wrappers = guider.model_options.get("transformer_options", {}).get("wrappers", {})
    return bool(wrappers.get(WrappersMP.SAMPLER_SAMPLE, {}).get(KEY))


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ModelSide:
    """What the model does when a run has begun. Holds settings only, so that one object serves many runs."""

    strength: float
    node: str | None
    prompt: bool

    def __call__(self, run: SamplerRun) -> Tensor:
        situation = situation_of(run.guider, run.sigmas, len(run.noise))
        chosen = plan(self.strength, situation)
        lines = [_title(self.strength, situation, run.guider), *self._prompt_lines(run)]
        lines.append(self._guidance(run, situation, chosen))
        noise, said = self._noise(run, situation, chosen)
        report = "\n".join(line for line in (*lines, said) if line)
        logger.info(report)
        show(report, self.node)
        return noise

    def _prompt_lines(self, run: SamplerRun) -> list[str]:
        if not self.prompt:
            return ["Prompt: as it is (the node without a prompt)."]
        carried = [payloads(entry).get(KEY) for entries in run.guider.conds.values() for entry in entries or ()]
        found = [payload.done for payload in carried if isinstance(payload, _Prompt)]
        return list(dict.fromkeys(found)) or [
            "Prompt: no variants, since the positive output of Diversify does not reach this sampler (or guider). "
            "Connect it, too."
        ]

    def _guidance(self, run: SamplerRun, situation: Situation, chosen: Plan) -> str:
        if not situation.guided or chosen.unguided_steps == 0:
            return ""
        if not can_go_unguided(run.guider):
            return f"CFG: as it is, since {type(run.guider).__name__} has a guidance of its own."
        guide_after(run.guider, run.sigmas, chosen.unguided_steps)
        steps = chosen.unguided_steps
        return f"CFG: off at the first {'step' if steps == 1 else f'{steps} steps'}."

    def _noise(self, run: SamplerRun, situation: Situation, chosen: Plan) -> tuple[Tensor, str]:
        if situation.batch == 1:
            return run.noise, "Noise: as it is, since a batch of one has nothing to differ from."
        settings = Settings(
            strength=chosen.noise_strength, iterations=chosen.noise_iterations, projection=chosen.projection
        )
        try:
            noise = ContrastiveNoise(settings)(run)
        except ValueError as error:
            return run.noise, f"Noise: as it is. {error}"
        extra = chosen.noise_iterations / situation.steps
        return noise, (
            f"Noise: moved apart in {chosen.noise_iterations} iterations, strength {chosen.noise_strength:.2f}; about "
            f"{extra:.0%} more time."
        )


def _title(strength: float, situation: Situation, guider: comfy.samplers.CFGGuider) -> str:
    images = "a batch of one" if situation.batch == 1 else f"{situation.batch} images"
    guidance = f"CFG {guidance_of(guider):g}" if situation.guided else "no CFG"
    return f"Diversify, strength {strength:g}: {images}, {situation.steps} steps, {guidance}."
