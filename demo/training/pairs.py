"""Noises and what a teacher makes of them: made in chunks, once, so that a run that was stopped goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from .comfy_boot import DEVICE  # isort: skip

TIMES = 3  # how often the worst third counts
Drawn = TypeVar("Drawn")
# Noises [N, 16, 16, 16] of a chunk, and where the chunk lies, to tensors [N, ...] by name.
Make = Callable[[Tensor, slice], dict[str, Tensor]]


@torch.no_grad()
def made_pairs(path: Path, count: int, chunk: int, seed: int, teacher: Callable[[], Make]) -> dict[str, Tensor]:
    """`noise` `[count, 16, 16, 16]` fp16 and, under its own names, all that the teacher made of it; from the file if
    there is one. What is done is kept every eight chunks. teacher: called only where there is something to make.
    """
    if not path.exists():
        partial = path.with_suffix(".partial")
        noise = torch.randn(count, 16, 16, 16, generator=torch.Generator().manual_seed(seed)).half()
        found = load_file(partial) if partial.exists() else {}
        done, make = int(found.pop("done", torch.tensor(0))), teacher()
        for k in tqdm(range(done, count, chunk), initial=done // chunk, total=-(-count // chunk), desc=path.stem):
            own = slice(k, k + chunk)
            for name, value in make(noise[own].float().to(DEVICE), own).items():
                found.setdefault(name, torch.zeros(count, *value.shape[1:], dtype=value.dtype))[own] = value.cpu()
            if (k // chunk) % 8 == 7:
                save_file({**found, "done": torch.tensor(k + chunk)}, partial)
        save_file({"noise": noise, **found}, partial)
        os.replace(partial, path)
    return load_file(path)


def with_the_worst_again(drawn: Drawn) -> list[Drawn]:
    """What a model drew, and the third of it with the greatest `error` another TIMES - 1 times.

    drawn: a dataclass of lists and tensors with one entry an image, among them `error` `[N]`.
    """
    parts = {one.name: getattr(drawn, one.name) for one in fields(drawn)}
    worst = parts["error"].topk(len(parts["error"]) // 3).indices
    chosen = {name: [part[k] for k in worst] if isinstance(part, list) else part[worst] for name, part in parts.items()}
    return [drawn, *[replace(drawn, **chosen)] * (TIMES - 1)]
