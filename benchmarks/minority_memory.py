"""How much memory learning a token takes, as a multiple of a plain sampling step, and what sparing it costs.

    python -m benchmarks.minority_memory                    # SD1.5's UNet and CLIP-L in full size, two 256 px images
    python -m benchmarks.minority_memory --batch 1 --side 64

Weights are random, in float32. Each row is a run of KSampler of one step with CFG, in which the token is learned once
(one iteration); "plain step" learns nothing. Peaks are those of PyTorch's allocator, by its profiler, beyond what is
there before sampling (weights, encoded prompts); buffers that oneDNN takes for itself are not among them. Attention is
PyTorch's own in all rows. Seconds are CPU time of one thread without the plain step, and with the profiler's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .tpso_speed import full_clip_l  # isort: skip - this makes ComfyUI and the pack importable

import comfy.sample
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from comfyui_diversity.core.drivers.minority import to_learn, with_learning
from comfyui_diversity.core.drivers.minority_learning import Learning
from comfyui_diversity.core.hooks.gradients import with_differentiable_attention
from comfyui_diversity.core.methods.minority import Settings, Steps
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from .results import SCRATCH, PrintedTable

PROMPT = "a small red fish on the left"
HEAD = ["run", "peak (MiB)", "multiple of the plain step", "seconds of learning"]
SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "context_dim": 768,
    "num_heads": 8,
    "use_checkpoint": False,
    "legacy": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
ROWS: dict[str, dict[str, Any]] = {
    "all at once": {},
    "checkpointing": {"checkpointing": True},
    "one image at a time": {"chunk_size": 1},
    "both": {"chunk_size": 1, "checkpointing": True},
}


@torch.inference_mode()
def full_unet() -> ModelPatcher:
    """SD1.5's UNet in its released size; weights are normal, as large as keeps activations finite."""
    config = comfy.supported_models.SD15(dict(SD15))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.diffusion_model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.zero_()
    for name, parameter in model.diffusion_model.named_parameters():
        if "norm" in name or (parameter.ndim == 1 and name.endswith("weight")):
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    device = torch.device("cpu")
    patcher = ModelPatcher(model, load_device=device, offload_device=device)
    patcher.model_options = with_differentiable_attention(patcher.model_options)
    return patcher


def peak_of(work: Callable[[], Any]) -> tuple[float, float]:
    """Furthest in MiB that allocations of `work` went beyond what was there, and its seconds."""
    started = time.process_time()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    seconds = time.process_time() - started
    recorded: Any = profiler.profiler
    found, waiting = [], list(recorded.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        kind, fields = event.typed
        if kind == _EventType.Allocation:
            found.append((event.start_time_ns, fields.alloc_size))
    held = peak = 0
    for _, size in sorted(found, key=lambda one: one[0]):
        held += size
        peak = max(peak, held)
    return peak / 2**20, seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=32, help="of the latent: an eighth of the image's")
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    unet, clip = full_unet(), full_clip_l()
    latent = torch.zeros(options.batch, 4, options.side, options.side)
    noise = comfy.sample.prepare_noise(latent, 0)

    @torch.inference_mode()
    def encoded(text: str) -> list:
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    @torch.inference_mode()
    def run(model: ModelPatcher, positive: list) -> None:
        comfy.sample.sample(
            model, noise, 1, 7.0, "euler", "normal", positive, negative, latent, seed=0, disable_pbar=True
        )

    plain, negative = encoded(PROMPT), encoded("")
    run(unet, plain)  # what is loaded or prepared once is no part of any row
    least, base = peak_of(lambda: run(unet, plain))
    table = PrintedTable(options.out / "minority_memory.json", "python -m benchmarks.minority_memory", HEAD)
    table.add(["plain step", f"{least:.0f}", "1", ""])
    for name in options.only:
        learning = Learning(clip, PROMPT, Settings(1), Steps(0.0, 1.0), **ROWS[name])
        with torch.inference_mode():
            positive = to_learn(learning)
        peak, seconds = peak_of(lambda positive=positive: run(with_learning(unet), positive))
        table.add([name, f"{peak:.0f}", f"{peak / least:.1f}", f"{seconds - base:.0f}"])


if __name__ == "__main__":
    main()
