"""Tensors on disk: written in one step, and named by what they were computed from."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger("ComfyUI-Diversity")


def key(tensors: Iterable[Tensor], *settings: object) -> str:
    """A name for these tensors and settings: 32 hexadecimal digits.

    Tensors count to three decimals: another number of threads changes their last digits and must not change the name.
    """
    digest = hashlib.sha256(repr(settings).encode())
    for tensor in tensors:
        digest.update((tensor.detach().cpu().float() * 1000).round().int().numpy().tobytes())
    return digest.hexdigest()[:32]


def load(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """The tensors of a file; None when it is missing, and, with a warning, when it is damaged: unreadable, with other
    names or shapes than these, or with values that are not finite."""
    if not path.is_file():
        return None
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        return _damaged(path, str(error))
    held = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if held != shapes:
        return _damaged(path, f"it holds {held} in place of {shapes}")
    if not all(bool(tensor.float().isfinite().all()) for tensor in found.values()):
        return _damaged(path, "it has values that are not finite")
    return found


def _damaged(path: Path, why: str) -> None:
    logger.warning("%s is damaged (%s). It is made again.", path, why)


def store(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors to a safetensors file, making its folder where it is missing.

    The file is written under a temporary name of this process and thread and then renamed, so that a reader, or another
    writer, finds the old file or the new one whole. A failed write leaves no temporary file behind.

    Raises OSError, which names the file and the reason, when the folder or the file cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, unfinished)
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} could not be written ({error}). Is the disk full, or the folder read-only?") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def keep(path: Path, tensors: dict[str, Tensor]) -> None:
    """As `store`, for what can be made again: the work that made it is not lost with a write that fails, which is
    logged in place of raised."""
    try:
        store(path, tensors)
    except OSError as error:
        logger.warning("%s It will be made again when it is needed.", error)
