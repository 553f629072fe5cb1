"""Makes ComfyUI's own classes importable for training. Import this before anything from `comfy`."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

if importlib.util.find_spec("comfy") is None:
    _source = os.environ.get("COMFYUI_PATH", str(Path(__file__).parents[2] / ".dev" / "comfyui"))
    if not (Path(_source) / "comfy").is_dir():
        raise SystemExit(f"COMFYUI_PATH is {_source!r}, which holds no ComfyUI. `python dev.py train` sets it.")
    sys.path.insert(0, _source)

import torch
from comfy.cli_args import args

args.cpu = not torch.cuda.is_available()
args.use_pytorch_cross_attention = True  # the other kernels are slower on a CPU, some have no backward pass

DEVICE = torch.device("cpu" if args.cpu else "cuda")


def autocast() -> torch.autocast:
    """bfloat16 where the machine multiplies it faster than float32; elsewhere it would take several times as long."""
    fast = DEVICE.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=fast)
