"""Images that a benchmark has made, kept on disk: what was stopped goes on from there, and to measure them in another
way they need not be made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .results import SCRATCH

STORE = SCRATCH / "images"
SHAPE = (128, 128, 3)  # of an image of the demo


def stored(path: Path, text: str, count: int, make: Callable[[], Any]) -> np.ndarray:
    """The images `uint8 [count, 128, 128, 3]` in the file, or, where it is missing, those that `make` gives, then kept.

    text: the prompt, which the file must be of. Raises ValueError for a file that is damaged or of something else.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        try:
            with unfinished.open("wb") as file:  # a stopped run must leave no half of a file under the final name
                np.savez_compressed(file, images=make(), text=np.array(text))
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    try:
        with np.load(path) as found:
            images, own = found["images"], str(found["text"])
    except Exception as error:  # numpy, zipfile and zlib each have their own for a damaged file
        raise ValueError(f"{path} is damaged; delete it, and it is made again.") from error
    if own != text or images.dtype != np.uint8 or images.shape != (count, *SHAPE):
        raise ValueError(
            f"{path} has {images.dtype} {list(images.shape)} of {own!r}; it must have {count} images of {text!r}, "
            f"uint8 {[count, *SHAPE]}. Delete it, and it is made again."
        )
    return images
