"""What the nodes cost on architectures of full size with random weights: seconds, memory and calls of the model.

    python -m benchmarks.cost                   # all tables; of SD1.5, SDXL and Z-Image, reduced as their names say
    python -m benchmarks.cost --only growth     # with images, resolution and words, of which one is changed at a time
    python -m benchmarks.cost --only idle       # steps at which a patched model has nothing to do
    python -m benchmarks.cost --only prompts    # variants of a prompt, beside one variant at a time
    python -m benchmarks.cost --only profile    # where the time of each method goes
    python -m benchmarks.cost --only savings    # what was found there and taken out, as it was and as it is

Every run samples the same few steps in this process, on one thread in float32. Seconds are CPU time, the least of
several runs of each in turn (of growth one run); peaks are those of PyTorch's allocator beyond what was there; both as
multiples of the plain run's. *Calls* are forward passes of the diffusion model, of any batch. *An idle step* is the
least CPU time of a step at which the patched model has nothing to do. "released" is what the papers' own code does
where it differs: full gradients for noise, one variant at a time, all positions, for prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .cost_runs import MINORITY_5, DIVERSE_NOISE, Bench, Clock, beside, text_of  # isort: skip - makes ComfyUI importable

import copy
import time
from unittest import mock

import torch
from comfyui_diversity.core.drivers.tpso import ADDED_TOKENS, RECOMMENDED_RATE, to_vary
from comfyui_diversity.core.hooks import text as text_hook
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.text import UNRELATED, prompt_encoders
from comfyui_diversity.core.methods.tpso import Settings as PromptSettings
from comfyui_diversity.core.methods.tpso import initial_offsets

from .cost_architectures import ARCHITECTURES, Architecture, tiny
from .cost_profile import HEAD as PROFILE_HEAD
from .cost_profile import paths, shares_of
from .minority_memory import peak_of
from .results import SCRATCH, PrintedTable
from .tpso_speed import Course, full_clip_l, here, one_by_one

HEAD = ["architecture", "run", "seconds", "times the plain run", "memory, times the plain run's", "calls"]
GROWTH_HEAD = ["images", "px", "words", "plain (s)", DIVERSE_NOISE, MINORITY_5, "4 variants (s)"]
IDLE_HEAD = ["run", "an idle step (ms)", "the plain model's (ms)", "difference (ms)"]
PROMPTS_HEAD = [
    "encoder",
    "words",
    "varied",
    "variants",
    "one at a time, all positions (s)",
    "here (s)",
    "times faster",
]
SAVINGS_HEAD = ["what", "before (s)", "now (s)", "calls before", "calls now"]
TABLES = ("growth", "idle", "prompts", "profile", "savings")
CHANGES: tuple[dict[str, int], ...] = ({}, {"batch": 4}, {"side": 24}, {"words": 40})
_IDLE_STEPS = 60


def denoisers(names: Sequence[str], batch: int, side: int, words: int, repeats: int, table: PrintedTable) -> None:
    for name in names:
        bench = Bench(ARCHITECTURES[name](), batch, side, words)
        bench.run()  # what is loaded or prepared once is no part of any row
        peak, _ = peak_of(bench.run)
        size = f"{bench.own.name}; {batch} images, {8 * side} px, {words} words"
        for number, (run_name, run) in enumerate(bench.runs().items()):
            memory, _ = peak_of(run.sample)
            found = beside(bench, run, repeats)
            if number == 0:
                plain = [size, "plain", f"{found.plain:.1f}", "1", "1", str(bench.run().calls)]
                table.add(plain, f"{size}, plain")
            times = f"{found.seconds / found.plain:.2f}"
            cells = [size, run_name, f"{found.seconds:.1f}", times, f"{memory / peak:.2f}", str(found.calls)]
            table.add(cells, f"{size}, {run_name}")


def growth(own: Architecture, batch: int, side: int, words: int, table: PrintedTable) -> None:
    """Seconds as multiples of the plain run's of the same size, at sizes of which one is changed at a time."""
    for change in CHANGES:
        size = {"batch": batch, "side": side, "words": words, **change}
        bench = Bench(own, **size)
        bench.run()
        runs = bench.runs()
        noise, learned = (beside(bench, runs[name], 1) for name in (DIVERSE_NOISE, MINORITY_5))
        times = [f"{one.seconds / one.plain:.2f}" for one in (noise, learned)]
        seconds = variants(own.clip, 4, size["words"], 5, here)
        numbers = [str(size["batch"]), str(8 * size["side"]), str(size["words"])]
        plain = f"{min(noise.plain, learned.plain):.1f}"
        table.add([*numbers, plain, *times, f"{seconds:.1f}"], ", ".join(numbers))


@torch.inference_mode(False)
def variants(
    clip: Any, count: int, words: int, steps: int, method: Callable[..., Course], added: int = ADDED_TOKENS
) -> float:
    """CPU seconds of so many steps on so many variants of a prompt, none of which arrives before. added: tokens that
    are varied behind the prompt, as the nodes do it; 0 varies its words, as the paper does."""
    _, [encoder] = to_vary(clip, text_of(words), "auto", added)
    settings = PromptSettings(0.0, steps=steps, learning_rate=RECOMMENDED_RATE * encoder.deviation)
    start = initial_offsets(count, encoder.positions, encoder.width, 0)
    started = time.process_time()
    method(encoder, start, settings)
    return time.process_time() - started


def idle(repeats: int, table: PrintedTable) -> None:
    """Steps of a model that is so small that what a patch adds to them can be seen."""
    bench = Bench(tiny(), 2, 8, 9, _IDLE_STEPS)
    bench.run()
    for name, run in bench.runs().items():
        found = beside(bench, run, repeats)
        steps = [1000 * seconds for seconds in (found.idle, found.plain_idle)]
        table.add([name, *(f"{step:.2f}" for step in steps), f"{steps[0] - steps[1]:+.2f}"])


def prompts(count: int, words: Sequence[int], steps: int, table: PrintedTable) -> None:
    """Variants of a prompt in CLIP-L, ours beside one variant at a time over all 77 positions."""
    clip = full_clip_l()
    for added, varied in ((ADDED_TOKENS, f"{ADDED_TOKENS} added tokens"), (0, "its words")):
        for number in words:
            seconds = [variants(clip, count, number, steps, method, added) for method in (one_by_one, here)]
            times = f"{seconds[0] / seconds[1]:.1f}"
            cells = ["CLIP-L", str(number), varied, str(count), *(f"{one:.1f}" for one in seconds), times]
            table.add(cells, f"CLIP-L, {number} words, {varied}, {count} variants")


def profiled(batch: int, side: int, words: int, table: PrintedTable) -> None:
    found = paths(ARCHITECTURES["SD1.5"](), ARCHITECTURES["Z-Image"](), batch, side, words)
    for name, where, work in found:
        seconds, shares = shares_of(work)
        cells = [name, where, f"{seconds:.1f}", *(f"{100 * share:.0f} %" for share in shares.values())]
        table.add(cells, f"{name}, {where}")


def savings(own: Architecture, words: Sequence[int], table: PrintedTable) -> None:
    """As it was and as it is: the prompts that say what "unrelated" means in an encoder were read one by one, of which
    those of one length are read at once; and what variants of a prompt share was read by each of them."""
    calls, seconds = [], []
    with torch.inference_mode(False):
        [encoder] = prompt_encoders(own.clip, own.clip.tokenize(text_of(9)))
        for groups in ([[text] for text in UNRELATED], [UNRELATED]):
            ended = Clock()
            [hook] = ended.watch(encoder.module.transformer)
            started = time.process_time()
            for texts in groups:
                with mock.patch.object(text_hook, "UNRELATED", texts):
                    copy.copy(encoder).unrelated_cosine()
            seconds.append(time.process_time() - started)
            calls.append(ended.calls)
            hook.remove()
    table.add([f"unrelated prompts, {own.name}", *(f"{one:.1f}" for one in seconds), *map(str, calls)])
    for number in words:
        made = [gradients_of(own.clip, 4, number, 5, together) for together in (False, True)]
        counted = [[f"{seconds:.1f}" for seconds, _ in made], [str(passes) for _, passes in made]]
        table.add([f"5 gradients of 4 variants, {number} words, {own.name}", *counted[0], *counted[1]])


@torch.inference_mode(False)
def gradients_of(clip: Any, count: int, words: int, times: int, together: bool) -> tuple[float, int]:
    """CPU seconds of so many gradients of so many variants, and the passes forward that they took. together: what the
    variants share is read once for all of them."""
    _, [encoder] = to_vary(clip, text_of(words), "auto", ADDED_TOKENS)
    encoder.reads_together = together
    encoder.reference()  # what is measured once is no part of it
    start = initial_offsets(count, encoder.positions, encoder.width, 0, encoder.deviation)
    ended = Clock()
    [hook] = ended.watch(encoder.module.transformer.model)
    started = time.process_time()
    for _ in range(times):
        with gradients():
            vectors, pull_back = encoder(start)
            pull_back(torch.ones_like(vectors))
    seconds = time.process_time() - started
    hook.remove()
    return seconds, ended.calls


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*ARCHITECTURES, *TABLES], default=[*ARCHITECTURES, *TABLES])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=16, help="of the latent: an eighth of the image's")
    parser.add_argument("--words", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=2, help="runs of each, of which the least counts")
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    size = (options.batch, options.side, options.words)

    def table(name: str, head: Sequence[str]) -> PrintedTable:
        command = f"python -m benchmarks.cost --only {name}" if name in TABLES else "python -m benchmarks.cost"
        return PrintedTable(options.out / (f"cost_{name}.json" if name in TABLES else "cost.json"), command, head)

    if names := [name for name in options.only if name in ARCHITECTURES]:
        denoisers(names, *size, options.repeats, table("", HEAD))
    if "growth" in options.only:
        growth(ARCHITECTURES["SD1.5"](), *size, table("growth", GROWTH_HEAD))
    if "idle" in options.only:
        idle(5, table("idle", IDLE_HEAD))
    if "prompts" in options.only:
        prompts(10, (3, options.words, 40), 2, table("prompts", PROMPTS_HEAD))
    if "profile" in options.only:
        profiled(*size, table("profile", PROFILE_HEAD))
    if "savings" in options.only:
        savings(ARCHITECTURES["Z-Image"](), (options.words, 40), table("savings", SAVINGS_HEAD))


if __name__ == "__main__":
    main()
