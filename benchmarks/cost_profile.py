"""Where the time of each method's slowest path goes, by PyTorch's profiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .cost_runs import MINORITY_5, DIVERSE_NOISE, Bench, text_of  # isort: skip - this makes ComfyUI and the pack importable

import comfy.clip_vision
import torch
from comfyui_diversity.core.drivers.tpso import Recipe, vary_prompt
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.vision import VisionTower
from comfyui_diversity.core.methods.ovi import initial_tokens
from comfyui_diversity.core.methods.tpso import Settings as PromptSettings
from torch.profiler import ProfilerActivity, profile

from .cost_architectures import Architecture, randomised

HEAD = ["method", "on", "seconds", "products, convolutions and attention", "norms and activations", "copies", "rest"]
# Parts of the names of PyTorch's operations: the first group that has one has the operation.
GROUPS: dict[str, Sequence[str]] = {
    HEAD[3]: ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "conv", "attention"),
    HEAD[4]: ("norm", "gelu", "silu", "sigmoid", "softmax", "aten::mul", "aten::add", "aten::div", "aten::sub"),
    HEAD[5]: ("copy_", "clone", "aten::cat", "aten::fill_", "aten::stack"),
}


def group_of(operation: str) -> str:
    """The column of a profiled operation: one of HEAD's last four."""
    return next((name for name, parts in GROUPS.items() if any(part in operation for part in parts)), HEAD[6])


def shares_of(work: Callable[[], Any]) -> tuple[float, dict[str, float]]:
    """CPU seconds of `work`, and the share of each group of operations in them."""
    started = time.process_time()
    work()
    seconds = time.process_time() - started
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    found = dict.fromkeys(HEAD[3:], 0.0)
    for event in profiler.key_averages():
        found[group_of(event.key)] += event.self_cpu_time_total
    whole = sum(found.values())
    return seconds, {name: value / whole for name, value in found.items()}


def variants_of(own: Architecture, variants: int, words: int, steps: int) -> Callable[[], Any]:
    """So many steps of Diverse Prompts, out of reach of its similarity, on an architecture's text encoder."""
    recipe = Recipe(PromptSettings(0.0, steps=steps))

    @torch.inference_mode()
    def work() -> Any:
        return vary_prompt(own.clip, text_of(words), variants, 0, recipe)

    return work


def inversion(batch: int, tokens: int) -> Callable[[], Any]:
    """One step of Text to Vision Embedding: tokens through CLIP-L's vision tower and back."""
    with torch.inference_mode():
        config = Path(comfy.clip_vision.__file__).with_name("clip_vision_config_vitl.json")
        vision = comfy.clip_vision.ClipVisionModel(str(config))
        randomised(vision.model)
    tower = VisionTower(vision)
    start = initial_tokens(batch, tokens, 1024, 0)

    def work() -> Any:
        with gradients():
            vectors, pull_back = tower(start)
            return pull_back(torch.ones_like(vectors))

    return work


def paths(
    sd15: Architecture, z_image: Architecture, batch: int, side: int, words: int
) -> list[tuple[str, str, Callable[[], Any]]]:
    """What is run, on what, and the run."""
    runs, variants = Bench(sd15, batch, side, words).runs(), "Diverse Prompts, 4 variants, 5 steps"
    return [
        (DIVERSE_NOISE, sd15.name, runs[DIVERSE_NOISE].sample),
        (MINORITY_5, sd15.name, runs[MINORITY_5].sample),
        (variants, "CLIP-L", variants_of(sd15, 4, words, 5)),
        (variants, z_image.name, variants_of(z_image, 4, words, 5)),
        ("Text to Vision Embedding, 4 embeddings, a step", "CLIP-L's vision tower", inversion(4, 16)),
    ]
