"""How fast prompt variants are optimised, beside all 77 positions one variant at a time, and whether losses are equal.

    python -m benchmarks.tpso_speed                   # the demo CLIP, and a CLIP-L of full size with random weights
    python -m benchmarks.tpso_speed --only "demo CLIP" --variants 4

The reference sends each variant through ComfyUI's own text encoder by itself, padding and all. For the published rule
it takes the gradient of the written-out losses by autograd; for the spread it gives vectors and gradients to the same
optimiser. Seconds are CPU time of one thread in float32, without loading and without the final encoding.

The difference is that of two runs of their own in float64. In float32 it would be that of rounding: near the prompt the
losses' gradients nearly vanish, and these optimisers take as long a step along a small gradient as along a large one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import world  # noqa: F401 # isort: skip - this makes ComfyUI and the pack importable

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import torch
from comfyui_diversity.core.drivers.tpso import RECOMMENDED_RATE
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.text import PromptEncoder, prompt_encoders
from comfyui_diversity.core.methods.tpso import (
    INITIAL_DEVIATION,
    Encode,
    Pullback,
    Settings,
    initial_offsets,
    optimise_variants,
)
from comfyui_diversity.core.methods.tpso_published import Rule, optimise_as_released
from comfyui_diversity.demo import loader
from torch import Tensor
from torch.nn import functional as F

from .results import SCRATCH, PrintedTable

PROMPT = "a small red fish on the left"
HEAD = ["encoder", "positions", "rule", "steps", "one by one (s)", "here (s)", "times faster", "largest difference"]
# Cosines to the prompt [S, N], mean pairwise cosines [S].
Course = tuple[Tensor, Tensor]


class OneByOne:
    """Offsets `[N, P, D]` to vectors `[N, E]` and their pullback, by one run of all positions for each variant."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self.module, self._projected = encoder.module, encoder.projected
        [self.section] = encoder.sections

    def vector(self, offset: Tensor) -> Tensor:
        """`[E]`, with its graph; call it inside `gradients(module)`."""
        embeds, first, last = self.section.embeds.to(offset), self.section.start, self.section.last
        moved = torch.cat([embeds[:first], embeds[first:last] + offset, embeds[last:]])[None]
        outputs = self.module.transformer(
            None, None, embeds=moved, num_tokens=[self.section.end + 1], dtype=offset.dtype, embeds_info=[]
        )
        return outputs[2 if self._projected else 3][0]

    def __call__(self, offsets: Tensor) -> tuple[Tensor, Pullback]:
        variables = [offset.detach().clone().requires_grad_() for offset in offsets]
        with gradients(self.module):
            vectors = [self.vector(variable) for variable in variables]

        def pull_back(gradient: Tensor) -> Tensor:
            with gradients(self.module):
                pairs = zip(vectors, variables, gradient, strict=True)
                return torch.cat([torch.autograd.grad(vector, own, row)[0][None] for vector, own, row in pairs])

        return torch.stack(vectors).detach(), pull_back


def by_autograd(slow: OneByOne, start: Tensor, rule: Rule) -> Course:
    """The published losses and steps as long as no variant is in the band, from their equations: cosines to the prompt
    `[S, N]`, mean pairwise cosines `[S]`."""
    count, positions = start.shape[:2]
    offsets = [offset.clone().requires_grad_() for offset in start]
    optimiser = torch.optim.RMSprop(offsets, lr=rule.learning_rate)
    with gradients(slow.module), torch.no_grad():
        prompt = F.normalize(slow.vector(torch.zeros_like(start[0])), dim=0)
    cosines, spreads = [], []
    for _ in range(rule.steps):
        with gradients(slow.module):
            unit = F.normalize(torch.stack([slow.vector(offset / positions) for offset in offsets]), dim=1)
            to_prompt, between = unit @ prompt, unit @ unit.T
            spread = (between.sum() - between.trace()) / (count * (count - 1))
            cosines.append(to_prompt.detach())
            spreads.append(spread.detach())
            semantic = ((to_prompt - rule.kappa).abs() - rule.tolerance).clamp(min=0).sum()
            found = torch.autograd.grad(semantic - rule.diversity * (1 - spread), offsets)
        for offset, gradient in zip(offsets, found, strict=True):
            offset.grad = gradient
        optimiser.step()
    return torch.stack(cosines), torch.stack(spreads)


def here(encoder: PromptEncoder, start: Tensor, how: Settings | Rule) -> Course:
    with gradients():
        # As many as there are variants: what the encoder takes at once is what it took first.
        reference = encoder(torch.zeros_like(start))[0][0]
    return course(encoder, reference, start, how)


def one_by_one(encoder: PromptEncoder, start: Tensor, how: Settings | Rule) -> Course:
    slow = OneByOne(encoder)
    if isinstance(how, Rule):
        return by_autograd(slow, start, how)
    return course(slow, slow(torch.zeros_like(start[:1]))[0][0], start, how)


def course(encode: Encode, reference: Tensor, start: Tensor, how: Settings | Rule) -> Course:
    with gradients():
        if isinstance(how, Rule):
            found = optimise_as_released(start, reference, encode, how)
        else:
            found = optimise_variants(start, reference, encode, how)
    return found.cosines, found.spreads


def row(name: str, clip: Any, count: int, spread: bool, steps: int) -> list[str]:
    """One line of the table."""
    with torch.inference_mode(False):
        [encoder] = prompt_encoders(clip, clip.tokenize(PROMPT))
        # Kappa out of reach: no variant stops early, so that all steps are compared.
        how: Settings | Rule = Rule(0.001, 0.001, steps=steps + 1, learning_rate=0.001)
        if spread:
            how = Settings(0.0, steps=steps, learning_rate=RECOMMENDED_RATE * encoder.deviation)
        start = initial_offsets(count, encoder.positions, encoder.width, 0, INITIAL_DEVIATION)
        seconds = []
        for method in (one_by_one, here):
            started = time.process_time()
            method(encoder, start, how)
            seconds.append(time.process_time() - started)
        encoder.module.double()
        courses = [method(encoder, start.double(), how) for method in (one_by_one, here)]
    # The losses are sums of these.
    difference = max((a - b).abs().max().item() for a, b in zip(*courses, strict=True))
    return [
        name,
        f"{encoder.sections[0].end + 1} of 77",
        "spread" if spread else "published",
        str(steps),
        f"{seconds[0]:.1f}",
        f"{seconds[1]:.1f}",
        f"{seconds[0] / seconds[1]:.1f}",
        f"{difference:.0e}",
    ]


def full_clip_l() -> comfy.sd.CLIP:
    """SD1.5's text encoder in its released size; weights are normal, as large as keeps activations at about one."""
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in clip.cond_stage_model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return clip


CLIPS: dict[str, Callable[[], Any]] = {"demo CLIP": loader.load_clip, "CLIP-L": full_clip_l}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(CLIPS), default=list(CLIPS))
    parser.add_argument("--variants", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    table = PrintedTable(options.out / "tpso_speed.json", "python -m benchmarks.tpso_speed", HEAD)
    for name in options.only:
        for spread in (False, True):
            cells = row(name, CLIPS[name](), options.variants, spread, options.steps)
            table.add(cells, f"{name}, {cells[2]}")


if __name__ == "__main__":
    main()
