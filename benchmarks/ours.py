"""The pack's methods as changes of a job: as published, as recommended, and ideas beyond both.

Like a rival, each is a function of its settings; `OURS` has them by name, with the settings that `benchmarks.search`
tries, as many as for every rival.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .job import Change, Job
from .results import SCRATCH
from .rivals import ALL, GUIDED, Rival, _grid
from .rivals.group_selection import group_selection

if TYPE_CHECKING:
    from comfyui_diversity.core.hooks.sampling import SamplerRun

_FEW_STEPS = 8


def tpso(mode: str = "recommended", ratio: float = 0.2, negative: bool = False, **settings: Any) -> Change:
    """Diverse Prompts. mode "published": the released procedure, with its bank where `negative`; it takes no other
    settings. settings: see the driver."""
    if mode == "published":
        return _tpso_as_released(ratio, negative)

    @torch.inference_mode()
    def change(job: Job) -> None:
        from comfyui_diversity.core.drivers import tpso as driver
        from comfyui_diversity.core.drivers.schedule import can_blend, scheduled
        from comfyui_diversity.core.methods.schedule import Window

        recipe = driver.recommended(**settings)

        def varied(text: str, plain: list, seed: int) -> list:
            variants, _ = driver.vary_prompt(job.world.clip, text, job.images, seed, recipe)
            added, between = recipe.added_tokens, None
            if added and not can_blend(variants, plain):  # as in the node
                between = driver.unvaried(job.world.clip, text, "auto", added)
            return scheduled(variants, plain, Window(ratio), between=between)

        job.positive = varied(job.text, job.positive, job.seed)
        if negative:
            job.negative = varied("", job.negative, job.seed + 1)

    return change


def _tpso_as_released(ratio: float, negative: bool) -> Change:
    """By the preset of SD1.5 for the UNet and of SD3.5 for flow models; without the noise of a batch, see
    `shared_noise`."""

    @torch.inference_mode()
    def change(job: Job) -> None:
        from comfyui_diversity.core.drivers import tpso_published as driver
        from comfyui_diversity.core.drivers.schedule import scheduled
        from comfyui_diversity.core.methods.schedule import ReleasedWindow

        preset = driver.SD15 if job.world.recipe.scheduler == "normal" else driver.SD35
        rule, window = driver.rule_of(preset), ReleasedWindow(ratio)
        clip, count, seed = job.world.clip, job.images, job.seed
        variants, _ = driver.vary_as_released(clip, job.text, count, seed, preset, rule)
        job.positive = scheduled(variants, job.positive, window)
        if negative:
            drawn, _ = driver.draw_negative(clip, "", count, seed, preset, rule, SCRATCH / "published_bank")
            job.negative = scheduled(drawn, job.negative, window)

    return change


def diversify(strength: float, **changed: Any) -> Change:
    """Diversify. changed: what its plan is to have in place of its own, see `core.methods.diversify.Plan`."""

    @torch.inference_mode()
    def change(job: Job) -> None:
        from comfyui_diversity.core.drivers.diversify import diversified_model, diversified_prompt
        from comfyui_diversity.core.methods.diversify import Plan, Situation, plan

        def choose(of: float, situation: Situation) -> Plan:
            return replace(plan(of, situation), **changed)

        job.model = diversified_model(job.model, strength, None, True, choose)
        job.positive = diversified_prompt(job.world.clip, job.text, job.seed, strength, None, choose)

    return change


def wide_noise(factor: float) -> Change:
    """The noise's coarsest structure `factor` times as large, as Diverse Noise has it in its options."""

    def change(job: Job) -> None:
        from comfyui_diversity.core.methods.starts import wide

        job.noise = wide(job.noise, factor)

    return change


def shared_noise(per_step: float = 0.0) -> Change:
    """One noise for all images (TPSO, published)."""

    def change(job: Job) -> None:
        from comfyui_diversity.core.drivers.shared_noise import with_shared_noise

        job.model = with_shared_noise(job.model, per_step)

    return change


def cno(mode: str = "recommended", gradient: str = "stop", cfg: float = 0.0, **settings: Any) -> Change:
    """Diverse Noise. cfg: of its estimates, 0 for the sampler's own."""

    def change(job: Job) -> None:
        from comfyui_diversity.core.drivers.cno import ContrastiveNoise
        from comfyui_diversity.core.hooks.sampling import with_noise_change

        make = {"recommended": ContrastiveNoise.recommended, "published": ContrastiveNoise.published}[mode]
        contrast = make(gradient=gradient, **settings)

        def optimise(run: SamplerRun) -> Tensor:
            return contrast(at_cfg(run, cfg) if cfg else run)

        job.model = with_noise_change(job.model, "cno", optimise)

    return change


def at_cfg(run: SamplerRun, cfg: float) -> SamplerRun:
    """The same run, guided otherwise."""
    guider = copy.copy(run.guider)
    guider.cfg = cfg
    return replace(run, guider=guider)


def cno_hinge(limit: float = 1.25, **settings: Any) -> Change:
    """Diverse Noise that repels an image only while its estimate still shows the prompt: while what guidance adds to
    it is at most `limit` times what it added at the start. An image beyond is drawn back to where it started.

    Costs three passes of each half of the model in place of one. Raises ValueError for a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; it must be 1 or more.")

    def change(job: Job) -> None:
        from comfyui_diversity.core.hooks.denoise import CleanEstimate
        from comfyui_diversity.core.hooks.gradients import gradients
        from comfyui_diversity.core.hooks.sampling import with_noise_change
        from comfyui_diversity.core.methods.cno import Settings, optimise_noise

        def optimise(run: SamplerRun) -> Tensor:
            start: list[Tensor] = []
            with gradients():
                estimate, led, free = (CleanEstimate(one, "stop") for one in (run, at_cfg(run, 2.0), at_cfg(run, 0.0)))

                def hinged(noise: Tensor) -> tuple[Tensor, Any]:
                    clean, pullback = estimate(noise)
                    added = (led(noise)[0] - free(noise)[0]).detach().flatten(1).norm(dim=1)
                    if not start:
                        start[:] = [added, noise.detach().clone()]
                    outside, back = added > limit * start[0], noise.detach() - start[1]
                    return clean, lambda gradient: drawn_back(pullback(gradient), back, outside)

                return optimise_noise(run.noise.clone(), hinged, Settings(**settings))

        job.model = with_noise_change(job.model, "cno hinge", optimise)

    return change


def drawn_back(gradient: Tensor, back: Tensor, outside: Tensor) -> Tensor:
    """The gradient `[B, ...]`, for images `outside` `[B]` the way `back` at the gradient's length."""
    lengths = [x.flatten(1).norm(dim=1)[:, None, None, None] for x in (gradient, back)]
    return torch.where(outside[:, None, None, None], back * lengths[0] / lengths[1].clamp(min=1e-6), gradient)


def minority(mode: str = "recommended", window: Sequence[float] = (), **settings: Any) -> Change:
    """Minority Prompt. settings: of the preset (`iterations`, `rate`), and of `Learning`."""

    @torch.inference_mode()
    def change(job: Job) -> None:
        from comfyui_diversity.core.drivers.minority import to_learn as learning_of
        from comfyui_diversity.core.drivers.minority import with_learning
        from comfyui_diversity.core.drivers.minority_learning import Learning
        from comfyui_diversity.core.methods.minority import OBJECTIVES, PRESETS, Settings, Steps

        kind = "few-step model" if job.world.recipe.steps <= _FEW_STEPS else "base model"
        preset, given = PRESETS[mode][kind], dict(settings)
        rate = given.pop("rate", preset.learning_rate)
        learning = Learning(
            clip=job.world.clip,
            text=job.text,
            settings=Settings(given.pop("iterations", preset.iterations), rate),
            steps=Steps(*(window or (0.0, preset.end))),
            objective=OBJECTIVES[given.pop("objective", "minority")],
            absolute=preset.absolute,
            keep_until=given.pop("keep_until", preset.keep_until),
            **given,
        )
        job.model = with_learning(job.model)
        job.positive = learning_of(learning)

    return change


def keep_best(times: float, **settings: Any) -> Change:
    """Keep the Best, of `times` as many images. It comes first, so that the other parts see the larger batch.
    settings: see the driver."""

    def change(job: Job) -> None:
        import comfy.sample
        from comfyui_diversity.core.drivers.selection import select

        keep, plain, sample = job.images, job.positive, job.sample
        job.images = round(times * keep)
        job.noise = comfy.sample.prepare_noise(torch.zeros(job.images, *job.noise.shape[1:]), job.seed)

        def of_more(job: Job) -> Tensor:
            latents = sample(job)
            return latents[select(job.world.model, plain, {"samples": latents}, keep, **settings).kept]

        job.sample = of_more

    return change


STRENGTHS = [0.15, 0.25, 0.5, 1.0]
OURS: dict[str, Rival] = {
    "Diverse Prompts": Rival(tpso, "kappa", _grid(kappa=[0.8, 0.65, 0.5, 0.35], ratio=[0.2, 0.4]), free=False),
    "Diverse Noise": Rival(
        cno, "strength",
        _grid(strength=STRENGTHS, iterations=[3], projection=["spectrum", "norm"], cells=[0]), free=False
    ),
    "Minority Prompt": Rival(
        minority, "rate", _grid(rate=[0.35, 0.7, 1.4, 2.8], iterations=[5], keep_until=[0.15, 0.3]), free=False
    ),
    "wide noise": Rival(wide_noise, "factor", _grid(factor=[1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0])),
    # Ideas: what may lie beyond.
    "Diverse Noise, low frequencies": Rival(
        cno, "strength",
        _grid(strength=STRENGTHS, iterations=[3], cells=[2, 4], projection=["norm"]), free=False
    ),
    "Diverse Noise, hinge": Rival(
        cno_hinge, "strength",
        _grid(strength=STRENGTHS, iterations=[3], limit=[1.1, 1.25], projection=["norm"]), GUIDED, False
    ),
}  # fmt: skip
# Parts that only stand beside others.
BESIDE = {
    "Diversify": Rival(diversify, "strength", _grid(strength=[0.5, 1.0]), free=False),
    "shared noise": Rival(shared_noise, "per_step", ()),
    "N of 2N": Rival(group_selection, "times", (), ALL),
    "Keep the Best": Rival(keep_best, "times", ()),
}
