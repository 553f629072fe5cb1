"""Runs of a sampler with the nodes and without, whose calls of the model are timed one by one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from .cost_architectures import Architecture  # isort: skip - this makes ComfyUI and the pack importable

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfyui_diversity.core.drivers.cno import ContrastiveNoise
from comfyui_diversity.core.drivers.minority import to_learn, with_learning
from comfyui_diversity.core.drivers.minority_learning import Learning
from comfyui_diversity.core.drivers.schedule import scheduled
from comfyui_diversity.core.drivers.tpso import Recipe, vary_prompt
from comfyui_diversity.core.hooks.sampling import with_noise_change
from comfyui_diversity.core.methods.cno import RECOMMENDED as NOISE
from comfyui_diversity.core.methods.cno import published
from comfyui_diversity.core.methods.minority import Settings, Steps
from comfyui_diversity.core.methods.schedule import Window
from comfyui_diversity.core.methods.tpso import Settings as PromptSettings
from torch import nn

STEPS = 4  # of sampling
# Names of rows that other tables have, too.
PROMPTS, DIVERSE_NOISE, MINORITY_5 = "Diverse Prompts, while sampling", "Diverse Noise", "Minority Prompt, 5 iterations"


@dataclass
class Clock:
    """CPU time at which each call of a model's network ended, while it is watched."""

    ended: list[float] = field(default_factory=list)

    def watch(self, module: nn.Module) -> list[Any]:
        return [module.register_forward_hook(lambda *_: self.ended.append(time.process_time()))]

    @property
    def calls(self) -> int:
        return len(self.ended)

    def least_step(self, idle: int, per_step: int) -> float:
        """Seconds of the fastest step of the last `idle` calls, with what is done between the calls."""
        last = self.ended[-idle:][::-1][::per_step]
        return min(later - earlier for later, earlier in pairwise(last))


@dataclass(frozen=True)
class Run:
    """idle: at how many of its last calls the patched model has nothing to do."""

    sample: Callable[[], Clock]
    idle: int


class Bench:
    """One architecture, a prompt and a batch; `run` samples it."""

    def __init__(self, own: Architecture, batch: int, side: int, words: int, steps: int = STEPS) -> None:
        self.own, self.batch, self.steps = own, batch, steps
        self.latent = torch.zeros(batch, own.model.model.latent_format.latent_channels, side, side)
        self.noise = comfy.sample.prepare_noise(self.latent, 0)
        self.text = text_of(words)
        self.plain, self.negative = self.encoded(self.text), self.encoded("")

    @torch.inference_mode()
    def encoded(self, text: str) -> list:
        if self.own.clip is not None:
            return self.own.clip.encode_from_tokens_scheduled(self.own.clip.tokenize(text))
        generator = torch.Generator().manual_seed(len(text))
        cond = torch.randn(1, 77, self.own.width, generator=generator)
        return [[cond, {"pooled_output": torch.randn(1, self.own.pooled, generator=generator)}]]

    def varied(self, ratio: float) -> list:
        """One embedding an image, in force for the first step alone (`ratio`), then the prompt's own."""
        if self.own.clip is None:
            rows = [[torch.cat([c + k for k in range(self.batch)]), extras] for c, extras in self.plain]
        else:
            recipe = Recipe(PromptSettings(steps=1))
            with torch.inference_mode():
                rows, _ = vary_prompt(self.own.clip, self.text, self.batch, 0, recipe)
        return scheduled(rows, self.plain, Window(ratio))

    @torch.inference_mode()
    def run(self, model: ModelPatcher | None = None, positive: list | None = None) -> Clock:
        clock = Clock()
        model = self.own.model if model is None else model
        assert model is not None
        hooks = clock.watch(model.model.diffusion_model)
        try:
            comfy.sample.sample(
                model, self.noise, self.steps, self.own.cfg, "euler", "normal", positive or self.plain, self.negative,
                self.latent, seed=0, disable_pbar=True,
            )  # fmt: skip
        finally:
            for hook in hooks:
                hook.remove()
        return clock

    def runs(self) -> dict[str, Run]:
        """By name, as recommended and, where that differs, as the papers' code has it."""
        model, calls = self.own.model, self.run().calls
        rest = calls - calls // self.steps
        varied = self.varied(1 / self.steps)
        found = {PROMPTS: Run(lambda: self.run(positive=varied), rest)}
        if self.batch > 1:  # a single noise has nothing to be moved away from
            noise = {
                DIVERSE_NOISE: ContrastiveNoise(NOISE),
                "Diverse Noise, 10 iterations": ContrastiveNoise(replace(NOISE, iterations=10)),
                "Diverse Noise, released (full gradient, 3 iterations)": ContrastiveNoise(published("release"), "full"),
            }
            for name, change in noise.items():
                patched = with_noise_change(model, "cost", change)
                found[name] = Run(lambda patched=patched: self.run(patched), calls)
        if self.own.clip is not None:
            for name, iterations in ((MINORITY_5, 5), ("Minority Prompt, 10 iterations", 10)):
                learning = Learning(self.own.clip, self.text, Settings(iterations), Steps(0.0, 1e-3), keep_until=0.0)
                patched, positive = with_learning(model), self._to_learn(learning)
                found[name] = Run(lambda patched=patched, positive=positive: self.run(patched, positive), rest)
        return found

    @torch.inference_mode()
    def _to_learn(self, learning: Learning) -> list:
        return to_learn(learning)


def text_of(words: int) -> str:
    """A prompt of so many words."""
    known = ["a", "small", "red", "fish", "on", "the", "left", "of", "a", "house"]
    return " ".join(known[k % len(known)] for k in range(words))


@dataclass(frozen=True)
class Beside:
    """A run beside the plain one, both taken in turn: CPU seconds, the least of each; the least step of those at which
    the run has nothing to do; and how often the model was called."""

    seconds: float
    plain: float
    idle: float
    plain_idle: float
    calls: int


def beside(bench: Bench, run: Run, repeats: int) -> Beside:
    least, idle, calls = [math.inf] * 2, [math.inf] * 2, 0
    per_step = bench.run().calls // bench.steps
    for _ in range(repeats):
        for k, sample in enumerate((bench.run, run.sample)):
            started = time.process_time()
            clock = sample()
            least[k] = min(least[k], time.process_time() - started)
            idle[k] = min(idle[k], clock.least_step(run.idle, per_step))
            calls = clock.calls
    return Beside(least[1], least[0], idle[1], idle[0], calls)
