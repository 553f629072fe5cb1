"""Results that depend on an encoder and settings alone, kept on disk between sessions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def key(tensors: Iterable[Tensor], *settings: object) -> str:
    """A name for these tensors and settings: 32 hexadecimal digits. Tensors count to three decimals, so that another
    number of threads, which changes the last digits, does not make another name."""
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in tensors:
        digest.update((tensor.detach().cpu().float() * 1000).round().int().numpy().tobytes())
    return digest.hexdigest()[:32]


def load(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """The tensors of a bank; None when there is none or it does not hold exactly these shapes."""
    if not path.is_file():
        return None
    try:
        found = load_file(path)
    except (SafetensorError, OSError):
        return None
    return found if {name: tuple(tensor.shape) for name, tensor in found.items()} == shapes else None


def store(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a bank in one step: an interrupted run leaves none, or the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, unfinished)
    os.replace(unfinished, path)
