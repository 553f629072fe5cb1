"""What a conditioning carries to the sampler besides embeddings: payloads, and the wrappers that act on them.

An entry of a CONDITIONING that carries a `Payload` brings its wrappers along in a hook, so that it works on any sampler
node and needs no patched model. When a run begins, the hook is taken off the run's copy of the conditioning, since
ComfyUI would otherwise send prompt and negative prompt through the model apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import comfy.hooks
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

_SHARED = "diversity_payload"


@dataclass(frozen=True, eq=False)
class Preparation:
    """The model's own preparation of conditioning for one run and one kind ("positive", "negative")."""

    model: Any
    kind: str
    noise: Tensor
    latent_image: Tensor | None
    denoise_mask: Tensor | None
    seed: int | None

    def __call__(self, entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """`model_conds` of entries that hold `cross_attn` and what nodes have set besides."""
        encoded = comfy.samplers.encode_model_conds(
            self.model.extra_conds,
            [{**entry, "model_conds": {}} for entry in entries],
            self.noise,
            self.noise.device,
            self.kind,
            latent_image=self.latent_image,
            denoise_mask=self.denoise_mask,
            seed=self.seed,
        )
        return [entry["model_conds"] for entry in encoded]


class Payload:
    """What an entry of a conditioning carries for a driver. Payloads are immutable: each method gives a new one.

    one_embedding_only: why this payload cannot be combined with an image embedding for each image of the batch, in
        words for the user; empty where it can.
    """

    one_embedding_only: ClassVar[str] = ""

    def for_rows(self, rows: Sequence[int]) -> Payload:
        """The payload for the images at positions `rows` of the batch. One that serves all images alike is itself."""
        return self

    def started(self, entry: dict[str, Any], key: str) -> dict[str, Any]:
        """The entry, which carries this payload under `key`, when a run begins. Raises ValueError for one that cannot
        be sampled."""
        return entry

    def prepared(self, entry: dict[str, Any], key: str, prepare: Preparation) -> dict[str, Any]:
        """The entry before the first step, once its `model_conds` are there. Doing it twice changes nothing."""
        return entry

    def with_model_conds(self, conds: Mapping[str, Any]) -> Payload:
        """The payload, prepared already, with model conditions that hold for all conditionings in it."""
        return self


class PayloadHook(comfy.hooks.TransformerOptionsHook):
    """Brings a payload's wrappers to every run whose conditioning carries it."""


def payloads(entry: Mapping[str, Any]) -> dict[str, Payload]:
    """What an entry carries, by key."""
    return {key: value for key, value in entry.items() if isinstance(value, Payload)}


def carrying(
    cond: Tensor,
    extras: Mapping[str, Any],
    key: str,
    payload: Payload,
    wrappers: Mapping[str, Callable] | None = None,
) -> list:
    """An entry `[cond, extras]` of a CONDITIONING with a payload under `key`; nothing given is changed.

    wrappers: by kind (`WrappersMP`), which every run with this conditioning gets under `key`.
    """
    hook = PayloadHook()
    hook.transformers_dict = {
        "wrappers": {
            WrappersMP.OUTER_SAMPLE: {_SHARED: [_start]},
            WrappersMP.SAMPLER_SAMPLE: {_SHARED: [_prepare]},
        }
    }
    for kind, wrapper in (wrappers or {}).items():
        hook.transformers_dict["wrappers"].setdefault(kind, {})[key] = [wrapper]
    return [cond, {**extras, key: payload, "hooks": with_hook(extras, hook)}]


def _start(executor: Any, *args: Any, **named: Any) -> Any:
    """The guider's conditioning and its options are this run's own copies."""
    guider = executor.class_obj
    guider.conds = {kind: [_started(entry) for entry in entries] for kind, entries in guider.conds.items()}
    wrappers = guider.model_options["transformer_options"]["wrappers"]
    # First of all, so that whoever asks the model before the first step (noise optimisation) finds all prepared.
    others = wrappers[WrappersMP.SAMPLER_SAMPLE]
    wrappers[WrappersMP.SAMPLER_SAMPLE] = {_SHARED: others[_SHARED], **others}
    return executor(*args, **named)


def _started(entry: dict[str, Any]) -> dict[str, Any]:
    for key, payload in payloads(entry).items():
        entry = payload.started(entry, key)
    return without_hook(entry, PayloadHook)


def _prepare(
    executor: Any,
    guider: Any,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Any,
    noise: Tensor,
    latent_image: Tensor | None = None,
    denoise_mask: Tensor | None = None,
    *rest: Any,
    **named: Any,
) -> Any:
    """Once for the run, what a payload holds goes through the model's own preparation."""
    for kind, entries in guider.conds.items():
        prepare = Preparation(guider.inner_model, kind, noise, latent_image, denoise_mask, extra_args.get("seed"))
        guider.conds[kind] = [prepared(entry, prepare) for entry in entries]
    return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *rest, **named)


def prepared(entry: dict[str, Any], prepare: Preparation) -> dict[str, Any]:
    """An entry of a guider's conditioning whose payloads are prepared."""
    for key, payload in payloads(entry).items():
        if entry.get(key) is payload:  # one may have prepared another
            entry = payload.prepared(entry, key, prepare)
    return entry


def with_hook(extras: Mapping[str, Any], hook: comfy.hooks.Hook) -> comfy.hooks.HookGroup:
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
