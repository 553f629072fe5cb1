"""What a conditioning carries to the sampler besides embeddings: payloads, which act on what the model reads.

A payload works on any sampler node and needs no patched model. It is kept among an entry's `model_conds`, what the
model reads, because ComfyUI itself gives one entry's `model_conds` to another: where an area of the prompt has no
counterpart, it copies the prompt's entry into the negative side, with the negative's `model_conds`.

No conditioning of ours has `hooks`: with dynamic VRAM, ComfyUI loads a second copy of the model for these. Only the
copy of an entry that a guider makes for its runs brings a hook, which installs the wrappers below for one run, and
which is taken off again as the first thing in that run, since entries with different hooks go through the model apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import comfy.conds
import comfy.hooks
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

_KEY = "diversity_payload"
_NOT_STARTED = (
    "A conditioning of ComfyUI-Diversity reached the model, but not what it carries (a schedule, a token to learn, "
    "image embeddings): a node between it and the sampler has built it anew, or the sampler node leaves out a part of "
    "ComfyUI's own sampling. Put the node of ComfyUI-Diversity behind the other one, or use another sampler node."
)


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


@dataclass(frozen=True, eq=False)
class Beginning:
    """A run that is about to begin: nothing is loaded for it yet.

    noise: `[B, C, ...]`, on the CPU; zeros where the sampler goes on with what another one has begun.
    """

    guider: Any
    sampler: Any
    noise: Tensor
    sigmas: Tensor
    seed: int | None


@dataclass(frozen=True, eq=False)
class Call:
    """A call of the model: its noise level, the run's falling noise levels (T + 1 values), the images at once."""

    model: Any
    sigma: float
    sigmas: Sequence[float]
    batch: int


class Payload:
    """What an entry of a conditioning carries for a driver. Payloads are immutable: each method gives a new one.

    one_embedding_only: why this payload cannot be combined with an image embedding for each image of the batch, in
        words for the user; empty where it can.
    """

    one_embedding_only: ClassVar[str] = ""

    def for_rows(self, rows: Sequence[int]) -> Payload:
        """The payload for the images at positions `rows` of the batch. One that serves all images alike is itself."""
        return self

    def started(self, entry: Mapping[str, Any], guider: Any) -> bool:
        """Whether the entry still carries this payload when a run of this guider begins. Raises ValueError for an
        entry that cannot be sampled."""
        return True

    def begun(self, entry: dict[str, Any], key: str, beginning: Beginning) -> dict[str, Any]:
        """The entry, which carries this payload under `key`, for this run: called once before anything is loaded, so
        that text encoders may run."""
        return entry

    def prepared(self, entry: dict[str, Any], key: str, prepare: Preparation) -> dict[str, Any]:
        """The entry, which carries this payload under `key`, before the first step, once the model's own `model_conds`
        are there. Doing it twice changes nothing."""
        return entry

    def with_model_conds(self, conds: Mapping[str, Any]) -> Payload:
        """The payload, prepared already, with model conditions that hold for all conditionings in it."""
        return self

    def in_force(self, conds: dict[str, Any], call: Call) -> dict[str, Any]:
        """The entry's model conditions at one call of the model; `conds` are those that it has without the payload."""
        return conds


class Carried(comfy.conds.CONDRegular):
    """A payload among the `model_conds` of an entry. The model never sees it."""

    cond: Payload

    def process_cond(self, batch_size: int, **_: Any) -> Any:
        raise ValueError(_NOT_STARTED)

    def size(self) -> list[int]:
        return [1]


class _Entry(dict):
    """The dictionary of an entry that carries a payload. Its copy that goes into a guider gets the hook."""

    def copy(self) -> _Entry:
        return _Entry(self)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        if name == "uuid":  # by which ComfyUI knows the entries of a guider
            super().__setitem__("hooks", _group([*getattr(self.get("hooks"), "hooks", []), _HOOK]))


class _Hook(comfy.hooks.TransformerOptionsHook):
    """Brings the wrappers below to a run."""


def payloads(entry: Mapping[str, Any]) -> dict[str, Payload]:
    """What an entry carries, by key; also the dictionary of an entry `[cond, extras]` of a CONDITIONING."""
    return {key: value.cond for key, value in entry.get("model_conds", {}).items() if isinstance(value, Carried)}


def carrying(cond: Tensor, extras: Mapping[str, Any], key: str, payload: Payload) -> list:
    """An entry `[cond, extras]` of a CONDITIONING with a payload under `key`; nothing given is changed."""
    return [cond, _Entry(with_payload(extras, key, payload))]


def with_payload(entry: Mapping[str, Any], key: str, payload: Payload) -> dict[str, Any]:
    """An entry that carries this payload under `key`, in place of an earlier one."""
    return {**entry, "model_conds": {**entry.get("model_conds", {}), key: Carried(payload)}}


def without_payload(entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An entry that carries nothing under `key`."""
    return {**entry, "model_conds": {name: cond for name, cond in entry["model_conds"].items() if name != key}}


def unchanged(entry: Mapping[str, Any], original: Tensor, changed: str) -> bool:
    """Whether an entry's embeddings are still the `original` ones; False for one that was zeroed out (for the negative
    side). Raises ValueError with the words `changed` for one whose embeddings were changed otherwise."""
    now = entry.get("cross_attn")
    if now is original:
        return True
    if zeroed_out(entry):
        return False
    if now is None or now.shape != original.shape or not torch.equal(now, original.to(now)):
        raise ValueError(changed)
    return True


def zeroed_out(entry: Mapping[str, Any]) -> bool:
    """Whether an entry's embeddings are all zeros, as Conditioning Zero Out makes them for the negative side."""
    now = entry.get("cross_attn")
    return now is not None and int(torch.count_nonzero(now)) == 0


# --- a run ------------------------------------------------------------------------------------------------------------


def _start(
    executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, *rest: Any, **named: Any
) -> Any:
    """The guider's conditioning and its options are this run's own copies."""
    guider = executor.class_obj
    seed = named["seed"] if "seed" in named else (*rest, None, None, None, None)[3]
    beginning = Beginning(guider, sampler, noise, sigmas, seed)
    groups = [group for entries in guider.conds.values() for entry in entries if (group := entry.get("hooks"))]
    groups = [group for group in groups if _HOOK not in group.hooks]
    guider.conds = {
        kind: [_started(entry, beginning, groups) for entry in entries] for kind, entries in guider.conds.items()
    }
    if comfy.samplers.get_total_hook_groups_in_conds(guider.conds) <= 1:
        guider.model_patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram  # as ComfyUI, which has counted ours
    wrappers = guider.model_options["transformer_options"]["wrappers"]
    # First of all: whoever asks the model before the first step (noise optimisation) finds all prepared, and other
    # wrappers of a call find the conditioning that is in force.
    for kind in (WrappersMP.SAMPLER_SAMPLE, WrappersMP.CALC_COND_BATCH):
        wrappers[kind] = {_KEY: wrappers[kind][_KEY], **wrappers[kind]}
    return executor(noise, latent_image, sampler, sigmas, *rest, **named)


def _started(entry: dict[str, Any], beginning: Beginning, groups: list[comfy.hooks.HookGroup]) -> dict[str, Any]:
    entry = _without_hook(entry, groups)
    for key, payload in payloads(entry).items():
        if not payload.started(entry, beginning.guider):
            entry = without_payload(entry, key)
    for key, payload in payloads(entry).items():
        entry = payload.begun(entry, key, beginning)
    return entry


def _without_hook(entry: dict[str, Any], groups: list[comfy.hooks.HookGroup]) -> dict[str, Any]:
    """An entry, as a plain dictionary, with the hooks of others alone: with that of `groups` which has the same ones,
    so that entries which had the same hooks before they carried a payload go through the model together."""
    group = entry.get("hooks")
    if group is None or _HOOK not in group.hooks:
        return {**entry}
    bare = {name: value for name, value in entry.items() if name != "hooks"}
    others = [hook for hook in group.hooks if hook != _HOOK]
    if not others:
        return bare
    own = next((known for known in groups if _same(known.hooks, others)), None)
    if own is None:
        own = _group(others)
        groups.append(own)
    return {**bare, "hooks": own}


def _same(a: Sequence[comfy.hooks.Hook], b: Sequence[comfy.hooks.Hook]) -> bool:
    # Hooks with other keyframes are equal to ComfyUI.
    return len(a) == len(b) and all(x == y and x.hook_keyframe is y.hook_keyframe for x, y in zip(a, b, strict=True))


def _group(hooks: Sequence[comfy.hooks.Hook]) -> comfy.hooks.HookGroup:
    group = comfy.hooks.HookGroup()
    for hook in hooks:
        group.add(hook)
    return group


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
        # An entry that ComfyUI made out of another side's area holds the `model_conds` of an entry of this side, and
        # that one is the right one to prepare.
        done: dict[tuple, dict[str, Any]] = {}
        found = []
        for entry in entries:
            own = tuple((name, id(cond)) for name, cond in entry["model_conds"].items())
            if own not in done:
                done[own] = prepared(entry, prepare)["model_conds"]
            found.append({**entry, "model_conds": done[own]})
        guider.conds[kind] = found
    return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *rest, **named)


def prepared(entry: dict[str, Any], prepare: Preparation) -> dict[str, Any]:
    """An entry of a guider's conditioning whose payloads are prepared."""
    for key, payload in payloads(entry).items():
        if payloads(entry).get(key) is payload:  # one may have prepared another
            entry = payload.prepared(entry, key, prepare)
    return entry


def _at_call(
    executor: Any, model: Any, conds: list, x: Tensor, timestep: Tensor, model_options: dict[str, Any], *rest: Any
) -> Any:
    """Before every call of the model: what is in force at exactly this noise level."""
    sigma = float(timestep.flatten()[0])
    sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
    call = Call(model, sigma, [sigma, 0.0] if sigmas is None else sigmas.tolist(), len(x))
    conds = [None if entries is None else [_in_force(entry, call) for entry in entries] for entries in conds]
    return executor(model, conds, x, timestep, model_options, *rest)


def _in_force(entry: dict[str, Any], call: Call) -> dict[str, Any]:
    carried = payloads(entry)
    if not carried:
        return entry
    conds = {name: cond for name, cond in entry["model_conds"].items() if not isinstance(cond, Carried)}
    for payload in carried.values():
        conds = payload.in_force(conds, call)
    return {**entry, "model_conds": conds}


_HOOK = _Hook(
    {
        "wrappers": {
            WrappersMP.OUTER_SAMPLE: {_KEY: [_start]},
            WrappersMP.SAMPLER_SAMPLE: {_KEY: [_prepare]},
            WrappersMP.CALC_COND_BATCH: {_KEY: [_at_call]},
        }
    }
)
