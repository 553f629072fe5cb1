"""Conditioning of some images of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .carried import Carried


def conditioning_rows(conds: dict[str, list[dict[str, Any]]], rows: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """A guider's processed conditioning for the images at positions `rows` of the batch; the input is left as it is.

    Image k reads row k of a conditioning with several rows, and row k modulo their number where they are fewer.
    Raises ValueError for a ControlNet with several hint images, which keeps its place in the batch to itself.
    """
    return {name: [_entry_rows(entry, rows) for entry in entries] for name, entries in conds.items()}


def _entry_rows(entry: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    control = entry.get("control")
    while control is not None:
        hint = getattr(control, "cond_hint_original", None)
        if isinstance(hint, Tensor) and len(hint) > 1:
            raise ValueError(
                f"A ControlNet has {len(hint)} hint images, one for each image of the batch, so the batch cannot be "
                "cut into chunks: use a batch that fits in memory at once (chunk_size -1), or one hint image."
            )
        control = getattr(control, "previous_controlnet", None)
    model_conds = {name: cond_rows(cond, rows) for name, cond in entry["model_conds"].items()}
    chosen = {**entry, "model_conds": model_conds}
    if isinstance(entry.get("mask"), Tensor):
        chosen["mask"] = _tensor_rows(entry["mask"], rows)
    return chosen


def in_force(entries: Sequence[dict[str, Any]], sigma: float) -> list[dict[str, Any]]:
    """Of one side of a guider's processed conditioning, what ComfyUI reads at this noise level (Conditioning (Set
    Timestep Range))."""
    level = torch.tensor(sigma)  # float32, in which ComfyUI compares
    return [
        entry
        for entry in entries
        if bool(level <= entry.get("timestep_start", float("inf"))) and bool(level >= entry.get("timestep_end", 0.0))
    ]


def at_all_times(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry, read at every noise level."""
    return {name: value for name, value in entry.items() if name not in ("timestep_start", "timestep_end")}


def cond_rows(cond: Any, rows: Sequence[int]) -> Any:
    """A model condition (`comfy.conds`) for the images at positions `rows` of the batch."""
    value = cond.cond
    if isinstance(cond, Carried):
        return Carried(value.for_rows(rows))
    if isinstance(value, Tensor) and value.ndim > 0:
        return cond._copy_with(_tensor_rows(value, rows))
    if isinstance(value, list) and all(isinstance(item, Tensor) and item.ndim > 0 for item in value):
        return cond._copy_with([_tensor_rows(item, rows) for item in value])
    return cond


def _tensor_rows(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    if len(tensor) == 1:
        return tensor
    return tensor[torch.tensor([row % len(tensor) for row in rows], device=tensor.device)]
