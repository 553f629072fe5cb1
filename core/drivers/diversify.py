"""Several methods at once, chosen by what a run turns out to be: noises that are moved apart or made wider, guidance in
a limited interval, and prompt variants.

The conditioning of one image becomes a variant when its run begins, since only then the number of images is known, and
before the diffusion model is loaded, so that it need not share the memory with the text encoder. Variants are kept for
the next run. The model does the rest. Both read off the run itself what to do (see `core.methods.diversify`); what was
done, and what was not, is shown on the node.

A learned token (Minority Prompt) is no part of it: it takes the place of the variants where it is in force, and its
gradients through the diffusion model take more time and memory than all the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..hooks.carried import Beginning, Payload, carrying, payloads, unchanged, with_payload, zeroed_out
from ..hooks.guidance import guidance_of, guidance_stays, guide_between, is_guided
from ..hooks.progress import Progress, show
from ..hooks.sampling import SamplerRun, check_shape, is_probe, with_noise_change
from ..hooks.text import NoRoom
from ..methods.cno import RECOMMENDED
from ..methods.diversify import VARIANTS_OF_ONE, Plan, Situation, plan
from ..require import require
from .cno import ContrastiveNoise, Start
from .schedule import PAYLOAD, can_blend, scheduled
from .tpso import Outcome, one_variant, plain_conditioning, recommended, unvaried, vary_prompt

logger = logging.getLogger("ComfyUI-Diversity")

KEY = "diversity_diversify"
Planner = Callable[[float, Situation], Plan]
_CHANGED = (
    "The embeddings of Diversify's conditioning were changed on the way to the sampler (by Conditioning Concat or "
    "Average, for instance), which its variants would undo. Combine them by Conditioning Combine, or write all in one "
    "text."
)
_SCHEDULED = (
    "Diversify's conditioning was given to Schedule Conditioning, but it has a schedule of its own. Schedule plain "
    "conditionings, and use Diversify (Model Only) with them."
)
_TOP = 0.9  # of the highest noise level: some schedulers begin below it
_DETAIL = "  "  # begins a line that is for the log alone


def diversified_model(
    model: ModelPatcher, strength: float, node: str | None, prompt: bool, choose: Planner = plan
) -> ModelPatcher:
    """A clone of the model whose samplers start from noises that are moved apart or made wider, and are guided in an
    interval.

    node: the id of the node on which the report is shown. prompt: whether there is a conditioning of
    `diversified_prompt` that is to come along. choose: what a strength means. At strength 0 the model itself. Raises
    ValueError for a strength that is not from 0 to 1.
    """
    require(0 <= strength <= 1, "strength", strength, "from 0 to 1")
    if strength == 0:
        return model
    return with_noise_change(model, KEY, _ModelSide(strength, node, prompt, choose), any_shape=True)


def diversified_prompt(
    clip: Any, text: str, seed: int, strength: float, node: str | None, choose: Planner = plan
) -> list:
    """CONDITIONING of the plain prompt, which becomes one of its variants when a run of one image begins.

    At strength 0 exactly what CLIP Text Encode gives. Raises ValueError for a strength that is not from 0 to 1.
    """
    require(0 <= strength <= 1, "strength", strength, "from 0 to 1")
    plain = plain_conditioning(clip, clip.tokenize(text))
    if strength == 0:
        return plain
    prompt = _Prompt(clip, text, seed, plain)
    return [carrying(cond, extras, KEY, _Carried(prompt, strength, node, choose, cond)) for cond, extras in plain]


def situation_of(guider: comfy.samplers.CFGGuider, sigmas: Tensor, batch: int) -> Situation:
    """What is known of a run."""
    top = float(guider.model_patcher.get_model_object("model_sampling").sigma_max)
    starts, ends = float(sigmas[0]) >= _TOP * top, float(sigmas[-1]) == 0
    return Situation(max(len(sigmas) - 1, 1), is_guided(guider), batch, starts, ends)


# --- the prompt -------------------------------------------------------------------------------------------------------


class _CannotVary(ValueError):
    """There are no variants; the message says why."""


@dataclass(frozen=True)
class _Variants:
    """Row k is variant k; `between` is what it fades towards (see `scheduled`).

    remark: what a reader should know of how they were made; "" for nothing. details: a line an encoder, for the log.
    """

    rows: list
    between: list | None
    remark: str
    details: str
    seconds: float


@dataclass(frozen=True, eq=False)
class _Prompt:
    """A prompt whose variants are made when they are asked for, and kept: made again they would be the same.

    There are as many as `VARIANTS_OF_ONE`, for runs of one image: the seed chooses.
    """

    clip: Any
    text: str
    seed: int
    plain: list
    _kept: dict[Any, _Variants | str] = field(default_factory=dict)

    def variants(self, kappa: float, added: int) -> tuple[_Variants, bool]:
        """The variants, and whether they are made anew. Raises _CannotVary."""
        asked = (kappa, added)
        new = asked not in self._kept
        if new:
            self._kept[asked] = self._made(kappa, added)
        found = self._kept[asked]
        if isinstance(found, str):
            raise _CannotVary(found)
        return found, new

    def _made(self, kappa: float, added: int) -> _Variants | str:
        """Variants, or why there are none."""
        if not self.text.strip():
            return "it is empty, so there is nothing to make variants of."
        if len(self.plain) > 1:
            return "this CLIP has scheduled hooks (Set CLIP Hooks). Switch schedule_clip off."
        started = time.perf_counter()
        try:
            try:
                rows, outcomes, between = self._varied(kappa, added)
                remark = ""
            except NoRoom:
                rows, outcomes, between = self._varied(kappa, 0)
                remark = ". The prompt fills its encoder, so its own words vary"
        except ValueError as error:
            return str(error)
        remark += ", found by search without gradients" if any(outcome.searched for outcome in outcomes) else ""
        remark += ". Some missed their aim: see the log" if any(outcome.missed for outcome in outcomes) else ""
        details = "\n".join(f"{_DETAIL}{outcome.report}" for outcome in outcomes)
        return _Variants(rows, between, remark, details, time.perf_counter() - started)

    def _varied(self, kappa: float, added: int) -> tuple[list, list[Outcome], list | None]:
        """The variants, what came out in each encoder, and what they fade towards."""
        recipe, count = recommended(kappa, added_tokens=added), VARIANTS_OF_ONE
        progress = Progress(recipe.settings.steps)

        def after_step(encoder: str, cosines: Tensor, spread: Tensor | None) -> None:
            progress.step(f"Diversify: {encoder}, {count} variants, cosine to the prompt {cosines.mean():.3f}")

        rows, outcomes = vary_prompt(self.clip, self.text, count, self.seed, recipe, on_step=after_step)
        # Encoders that do not pad every text to one length need a prompt of the variants' length to fade into.
        between = None if can_blend(rows, self.plain) else unvaried(self.clip, self.text, "auto", added)
        return rows, outcomes, between


@dataclass(frozen=True, eq=False)
class _Carried(Payload):
    """What the conditioning carries. `done`: once a run has begun, what was done in it."""

    prompt: _Prompt
    strength: float
    node: str | None
    choose: Planner
    plain: Tensor
    done: str = ""

    def started(self, entry: Mapping[str, Any], guider: Any) -> bool:
        return not zeroed_out(entry)

    def begun(self, entry: dict[str, Any], key: str, beginning: Beginning) -> dict[str, Any]:
        if torch.count_nonzero(beginning.noise) == 0:
            logger.info("Diversify: a sampler that adds no noise goes on with what another has begun; nothing is done.")
            return entry
        situation = situation_of(beginning.guider, beginning.sigmas, len(beginning.noise))
        try:
            entry, done = self._varied(entry, situation, beginning.seed or 0)
        except _CannotVary as error:
            done = f"Prompt: no variants, {error}"
        if not is_probe(beginning.sampler) and not _model_comes_along(beginning.guider):
            _tell(
                [
                    _title(self.strength, situation, beginning.guider),
                    done,
                    "Noise and CFG: as they are, since the model output of Diversify does not reach this sampler (or "
                    "guider). Connect it, too.",
                ],
                self.node,
            )
        return with_payload(entry, key, replace(self, done=done))

    def _varied(self, entry: dict[str, Any], situation: Situation, seed: int) -> tuple[dict[str, Any], str]:
        """The entry with a variant of its own for one image, and what is to be said of it.

        Raises _CannotVary, and ValueError for embeddings that were changed or scheduled.
        """
        chosen = self.choose(self.strength, situation)
        if chosen.kappa >= 1:
            return entry, "Prompt: as it is. Variants of it are for single images."
        variants, new = self.prompt.variants(chosen.kappa, chosen.added_tokens)
        unchanged(entry, self.plain, _CHANGED)  # raises
        if PAYLOAD in payloads(entry):
            raise ValueError(_SCHEDULED)
        which = seed % VARIANTS_OF_ONE
        row = one_variant(variants.rows, which)
        cond, extras = scheduled(row, self.prompt.plain, chosen.window, between=variants.between)[0]
        own = {name: value for name, value in extras.items() if name not in ("model_conds", "hooks")}
        entry = {**entry, **own, "cross_attn": cond}
        made = f"made in {variants.seconds:.1f} s" if new else "kept from an earlier run"
        share = f"{chosen.window.ratio:.0%}"
        return with_payload(entry, PAYLOAD, payloads(extras)[PAYLOAD]), (
            f"Prompt: variant {which + 1} of {VARIANTS_OF_ONE}, by the sampler's seed, {made},\n"
            f"in force over the first {share} of the steps{variants.remark}.\n{variants.details}"
        )


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
    choose: Planner

    def __call__(self, run: SamplerRun) -> Tensor:
        situation = situation_of(run.guider, run.sigmas, len(run.noise))
        chosen = self.choose(self.strength, situation)
        guidance, chosen = self._guidance(run, situation, chosen)
        noise, about_noise, chosen = self._noise(run, situation, chosen)
        lines = [_title(self.strength, situation, run.guider), *self._prompt_lines(run), guidance, about_noise]
        _tell([*lines, _cost(chosen, situation)], self.node)
        return noise

    def _prompt_lines(self, run: SamplerRun) -> list[str]:
        if not self.prompt:
            return ["Prompt: as it is, since this node has none."]
        carried = [payloads(entry).get(KEY) for entries in run.guider.conds.values() for entry in entries or ()]
        found = [payload.done for payload in carried if isinstance(payload, _Carried)]
        return list(dict.fromkeys(found)) or [
            "Prompt: no variants, since the positive output of Diversify does not reach this sampler (or guider). "
            "Connect it, too."
        ]

    def _guidance(self, run: SamplerRun, situation: Situation, chosen: Plan) -> tuple[str, Plan]:
        """What is said, and what is really done."""
        first, last = chosen.unguided
        if first == last == 0 or guidance_of(run.guider) < 1:
            return "", replace(chosen, unguided=(0, 0))
        if why := guidance_stays(run.guider, run.sampler):
            return f"CFG: as it is, since {why}.", replace(chosen, unguided=(0, 0))
        guide_between(run.guider, run.sigmas, first, last)
        ends = [f"{end} {'step' if n == 1 else f'{n} steps'}" for end, n in (("first", first), ("last", last)) if n]
        return f"CFG: off at the {' and the '.join(ends)}.", chosen

    def _noise(self, run: SamplerRun, situation: Situation, chosen: Plan) -> tuple[Tensor, str, Plan]:
        """The noise, what is said, and what is really done."""
        nothing = replace(chosen, noise_strength=0.0, wide=1.0)
        settings = replace(RECOMMENDED, strength=chosen.noise_strength)
        start = Start(wide=chosen.wide)
        if not settings.active and start == Start():
            why = "the image is begun already" if situation.batch == 1 and not situation.starts else "by choice"
            return run.noise, f"Noise: as it is, {why}.", nothing
        try:
            check_shape(run.noise)
            noise = ContrastiveNoise(settings, start=start)(run)
        except ValueError as error:
            return run.noise, f"Noise: as it is. {error}", nothing
        done = [f"its coarsest structure {start.wide:.3g} times as large"] if start != Start() else []
        if settings.active:
            how = f"moved apart by {settings.strength:.2f} in {settings.iterations} iterations"
            done.append(f"its coarse structure {how}")
        return noise, "Noise: " + ",\nthen ".join(done) + ".", chosen


def _title(strength: float, situation: Situation, guider: comfy.samplers.CFGGuider) -> str:
    images = "one image" if situation.batch == 1 else f"{situation.batch} images"
    guidance = f"CFG {guidance_of(guider):g}" if situation.guided else "no CFG"
    steps = "1 step" if situation.steps == 1 else f"{situation.steps} steps"
    return f"Diversify {strength:g}: {images}, {steps}, {guidance}."


def _cost(chosen: Plan, situation: Situation) -> str:
    extra = chosen.extra_passes(situation)
    return f"Sampling takes about {abs(extra):.0%} {'more' if extra > 0 else 'less'} time." if extra else ""


def _tell(lines: list[str], node: str | None) -> None:
    """All in the log; on the node, which is small and breaks long lines within a word, without the details."""
    told = [line for text in lines for line in text.splitlines() if line]
    logger.info("\n".join(told))
    show("\n".join(line for line in told if not line.startswith(_DETAIL)), node)
