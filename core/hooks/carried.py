"""What a conditioning carries to the sampler besides embeddings: a payload, and the hook that brings our wrappers.

The hook is taken off the run's copy of the conditioning before sampling begins, since ComfyUI would otherwise send
prompt and negative prompt through the model apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.hooks
import torch
from torch import Tensor


class Payload:
    """What a conditioning's dictionary carries for a driver; it follows the conditioning when a batch is cut."""

    def for_rows(self, rows: Sequence[int]) -> Payload:
        """The payload for the images at positions `rows` of the batch. One that serves all images alike is itself."""
        return self


def with_hook(extras: dict[str, Any], hook: comfy.hooks.Hook) -> comfy.hooks.HookGroup:
    """The hooks of a conditioning's dictionary and one more; the dictionary is left as it is."""
    return _group([*getattr(extras.get("hooks"), "hooks", []), hook])


def without_hook(entry: dict[str, Any], kind: type[comfy.hooks.Hook]) -> dict[str, Any]:
    """An entry of a guider's conditioning without its hooks of one kind."""
    group = entry.get("hooks")
    if group is None or not any(isinstance(hook, kind) for hook in group.hooks):
        return entry
    others = [hook for hook in group.hooks if not isinstance(hook, kind)]
    kept = {name: value for name, value in entry.items() if name != "hooks"}
    return {**kept, "hooks": _group(others)} if others else kept


def checked(entry: dict[str, Any], key: str, original: Tensor, changed: str) -> dict[str, Any]:
    """An entry with a payload under `key` whose embeddings were `original`.

    One that was zeroed out (for the negative side) loses the payload. Raises ValueError with the words `changed` for
    one whose embeddings were changed otherwise.
    """
    now = entry.get("cross_attn")
    if now is original:
        return entry
    if now is not None and torch.count_nonzero(now) == 0:
        return {name: value for name, value in entry.items() if name != key}
    if now is None or now.shape != original.shape or not torch.equal(now, original.to(now)):
        raise ValueError(changed)
    return entry


def _group(hooks: list[comfy.hooks.Hook]) -> comfy.hooks.HookGroup:
    group = comfy.hooks.HookGroup()
    for hook in hooks:
        group.add(hook)
    return group
