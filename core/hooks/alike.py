"""Whether the images of a batch differ by their noise alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from .carried import Carried
from .sampling import SamplerRun


def differ_by_noise_alone(run: SamplerRun) -> bool:
    """Whether any image of the run could have any other's noise: none has a prompt, an area, a mask or an image to
    start from of its own. A ControlNet may have a hint image for each, so that it counts as a difference."""
    if run.denoise_mask is not None or not _rows_alike(run.latent_image):
        return False
    entries = [entry for entries in run.guider.conds.values() for entry in entries or ()]
    return all(entry.get("control") is None and all(map(_rows_alike, _read_of(entry))) for entry in entries)


def _read_of(entry: Mapping[str, Any]) -> Iterator[Tensor]:
    """What the model reads of an entry of processed conditioning, and where."""
    conds = [cond.cond for cond in entry.get("model_conds", {}).values() if not isinstance(cond, Carried)]
    for value in (*conds, entry.get("mask")):
        several: Sequence[Any] = value if isinstance(value, list) else [value]
        yield from (one for one in several if isinstance(one, Tensor) and one.ndim > 0)


def _rows_alike(tensor: Tensor) -> bool:
    """Whether all rows of `[N, ...]` are equal."""
    return len(tensor) == 1 or bool((tensor[1:] == tensor[:1]).all())
