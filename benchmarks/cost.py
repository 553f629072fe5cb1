"""What the nodes cost on architectures of full size with random weights: seconds, memory and calls of the model.

    python -m benchmarks.cost                                    # SD1.5, an hour
    python -m benchmarks.cost --only SDXL Z-Image                # reduced in depth, as their names in the table say
    python -m benchmarks.cost --batch 4 --side 64 --words 20     # growth with images, resolution and the prompt
    python -m benchmarks.cost --only prompts                     # variants of a prompt, beside one variant at a time

Every run samples the same few steps in this process, on one thread in float32; seconds are CPU time and peaks are those
of PyTorch's allocator beyond what was there, both as multiples of the plain run's. *Calls* are forward passes of the
diffusion model, of any batch. *Inactive steps* is the CPU time of the calls at which a patched model has nothing to do,
as a multiple of the same calls of the plain model: the least of several runs of each, in turn. "released" is what the
papers' own code does where it differs: full gradients for noise, one variant at a time, all positions, for prompts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .tpso_speed import full_clip_l, here, one_by_one  # isort: skip - this makes ComfyUI and the pack importable

import comfy.sample
import comfy.sd
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.z_image
import torch
from comfy.model_patcher import ModelPatcher
from comfyui_diversity.core.drivers.cno import ContrastiveNoise
from comfyui_diversity.core.drivers.minority import Learning, to_learn, with_learning
from comfyui_diversity.core.drivers.schedule import scheduled
from comfyui_diversity.core.drivers.tpso import RECOMMENDED_RATE, Recipe, vary_prompt
from comfyui_diversity.core.hooks.gradients import with_differentiable_attention
from comfyui_diversity.core.hooks.sampling import with_noise_change
from comfyui_diversity.core.hooks.text import prompt_encoders
from comfyui_diversity.core.methods.cno import RECOMMENDED as NOISE
from comfyui_diversity.core.methods.cno import published
from comfyui_diversity.core.methods.minority import Settings, Steps
from comfyui_diversity.core.methods.schedule import Window
from comfyui_diversity.core.methods.tpso import Settings as PromptSettings
from comfyui_diversity.core.methods.tpso import initial_offsets
from torch import Tensor, nn

from .minority_memory import full_unet, peak_of
from .results import SCRATCH, PrintedTable

HEAD = ["architecture", "run", "seconds", "times the plain run", "memory, times the plain run's", "calls",
        "inactive steps"]  # fmt: skip
PROMPTS_HEAD = ["encoder", "words", "variants", "one at a time, all positions (s)", "here (s)", "times faster"]
STEPS = 4  # of sampling
_SDXL = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 1, 1, 1, 1],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1], "transformer_depth_middle": 1,
    "use_spatial_transformer": True, "use_linear_in_transformer": True, "context_dim": 2048, "num_head_channels": 64,
    "num_heads": -1, "num_classes": "sequential", "adm_in_channels": 2816, "legacy": False, "use_checkpoint": False,
    "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
_Z_IMAGE = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 3840, "cap_feat_dim": 2560, "n_layers": 2,
    "n_refiner_layers": 1, "qk_norm": True, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True,
    "time_scale": 1000.0,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A diffusion model and the encoder of its prompts (None: prompts are random embeddings)."""

    name: str
    model: ModelPatcher
    clip: Any
    cfg: float
    width: int
    pooled: int = 0


@torch.inference_mode()
def _built(config: Any) -> ModelPatcher:
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    randomised(model.diffusion_model)
    device = torch.device("cpu")
    patcher = ModelPatcher(model, load_device=device, offload_device=device)
    patcher.model_options = with_differentiable_attention(patcher.model_options)
    return patcher


@torch.no_grad()
def randomised(module: nn.Module) -> None:
    """Normal weights, as large as keeps activations at about one; norms at 1 and biases at 0."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)


def qwen3(layers: int = 2) -> comfy.sd.CLIP:
    """Z-Image's text encoder, Qwen3-4B, with so many of its 36 layers."""
    target = comfy.supported_models_base.ClipTarget(
        comfy.text_encoders.z_image.ZImageTokenizer, comfy.text_encoders.z_image.te()
    )
    sizes = {"qwen3_4b_model_config": {"num_hidden_layers": layers}}
    clip = comfy.sd.CLIP(target, model_options={**sizes, "dtype": torch.float32})
    randomised(clip.cond_stage_model)
    return clip


def sd15() -> Architecture:
    return Architecture("SD1.5", full_unet(), full_clip_l(), 7.0, 768)


def sdxl() -> Architecture:
    model = _built(comfy.supported_models.SDXL(dict(_SDXL)))
    return Architecture("SDXL, 1 transformer layer for 2 and 10", model, None, 7.0, 2048, 1280)


def z_image() -> Architecture:
    model = _built(comfy.supported_models.ZImage(dict(_Z_IMAGE)))
    return Architecture("Z-Image, 2 of 30 layers", model, qwen3(), 1.0, 2560)


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {"SD1.5": sd15, "SDXL": sdxl, "Z-Image": z_image}
PROMPTS = "prompts"


@dataclass
class Clock:
    """CPU seconds of every call of a model's network, while it is watched."""

    calls: list[float] = field(default_factory=list)
    _since: float = 0.0

    def watch(self, module: nn.Module) -> list[Any]:
        def before(*_: Any) -> None:
            self._since = time.process_time()

        def after(*_: Any) -> None:
            self.calls.append(time.process_time() - self._since)

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


class Bench:
    """One architecture, a prompt and a batch; `run` samples it."""

    def __init__(self, own: Architecture, batch: int, side: int, words: int) -> None:
        self.own, self.batch = own, batch
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
        """One embedding a image, in force for the first step alone (`ratio`), then the prompt's own."""
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
                model, self.noise, STEPS, self.own.cfg, "euler", "normal", positive or self.plain, self.negative,
                self.latent, seed=0, disable_pbar=True,
            )  # fmt: skip
        finally:
            for hook in hooks:
                hook.remove()
        return clock

    def runs(self) -> dict[str, tuple[Callable[[], Clock], int | None]]:
        """By name: the run, and how many of its last calls have nothing to do (None: that is not asked)."""
        model, calls = self.own.model, len(self.run().calls)
        a_step = calls // STEPS
        rest = calls - a_step
        varied = self.varied(1 / STEPS)
        noise = {
            f"Diverse Noise, {count} iterations": ContrastiveNoise(replace(NOISE, iterations=count))
            for count in (3, 10)
        }
        noise["Diverse Noise, released (full gradient, 3 iterations)"] = ContrastiveNoise(published("release"), "full")
        found: dict[str, tuple[Callable[[], Clock], int | None]] = {
            "Diverse Prompts, while sampling": (lambda: self.run(positive=varied), rest)
        }
        for name, change in noise.items():
            patched = with_noise_change(model, "cost", change)
            found[name] = (lambda patched=patched: self.run(patched), calls)
        if self.own.clip is not None:
            for name, iterations in (("Minority Prompt, 5 iterations", 5), ("Minority Prompt, 10 iterations", 10)):
                learning = Learning(self.own.clip, self.text, Settings(iterations), Steps(0.0, 1e-3), keep_until=0.0)
                patched, positive = with_learning(model), self._to_learn(learning)
                found[name] = (lambda patched=patched, positive=positive: self.run(patched, positive), rest)
        return found

    @torch.inference_mode()
    def _to_learn(self, learning: Learning) -> list:
        return to_learn(learning)


def text_of(words: int) -> str:
    """A prompt of so many words."""
    known = ["a", "small", "red", "fish", "on", "the", "left", "of", "a", "house"]
    return " ".join(known[k % len(known)] for k in range(words))


def measured(run: Callable[[], Clock]) -> tuple[float, float, int]:
    """CPU seconds, peak in MiB, and calls of the model."""
    started = time.process_time()
    clock = run()
    seconds = time.process_time() - started
    peak, _ = peak_of(run)
    return seconds, peak, len(clock.calls)


def inactive(plain: Callable[[], Clock], patched: Callable[[], Clock], last: int, repeats: int) -> float:
    """CPU time of the last so many calls of the patched model, as a multiple of the plain one's; the least of each."""
    least = [float("inf"), float("inf")]
    for _ in range(repeats):
        for k, run in enumerate((plain, patched)):
            least[k] = min(least[k], sum(run().calls[-last:]))
    return least[1] / least[0]


def denoisers(names: Sequence[str], batch: int, side: int, words: int, repeats: int, table: PrintedTable) -> None:
    for name in names:
        bench = Bench(ARCHITECTURES[name](), batch, side, words)
        bench.run()  # what is loaded or prepared once is no part of any row
        seconds, peak, calls = measured(bench.run)
        size = f"{bench.own.name}; {batch} images, {8 * side} px, {words} words"
        table.add([size, "plain", f"{seconds:.1f}", "1", "1", str(calls), ""], f"{size}, plain")
        for run_name, (run, last) in bench.runs().items():
            own, memory, count = measured(run)
            idle = "" if last is None else f"{inactive(bench.run, run, last, repeats):.3f}"
            cells = [size, run_name, f"{own:.1f}", f"{own / seconds:.2f}", f"{memory / peak:.2f}", str(count), idle]
            table.add(cells, f"{size}, {run_name}")


def prompts(variants: int, words: Sequence[int], steps: int, table: PrintedTable) -> None:
    """Variants of a prompt in CLIP-L, ours beside one variant at a time over all 77 positions."""
    clip = full_clip_l()
    for count in words:
        with torch.inference_mode(False):
            [encoder] = prompt_encoders(clip, clip.tokenize(text_of(count)))
            rate = RECOMMENDED_RATE * encoder.deviation
            settings = PromptSettings(0.0, steps=steps, learning_rate=rate)  # out of reach: all steps
            start: Tensor = initial_offsets(variants, encoder.positions, encoder.width, 0)
            seconds = []
            for method in (one_by_one, here):
                started = time.process_time()
                method(encoder, start, settings)
                seconds.append(time.process_time() - started)
        cells = [
            "CLIP-L",
            str(count),
            str(variants),
            *(f"{one:.1f}" for one in seconds),
            f"{seconds[0] / seconds[1]:.1f}",
        ]
        table.add(cells, f"CLIP-L, {count} words, {variants} variants")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*ARCHITECTURES, PROMPTS], default=["SD1.5", PROMPTS])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=32, help="of the latent: an eighth of the image's")
    parser.add_argument("--words", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each for the inactive steps")
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = [name for name in options.only if name != PROMPTS]
    if names:
        table = PrintedTable(options.out / "cost.json", "python -m benchmarks.cost", HEAD)
        denoisers(names, options.batch, options.side, options.words, options.repeats, table)
    if PROMPTS in options.only:
        table = PrintedTable(
            options.out / "cost_prompts.json", "python -m benchmarks.cost --only prompts", PROMPTS_HEAD
        )
        prompts(10, (3, options.words, 40), 2, table)


if __name__ == "__main__":
    main()
