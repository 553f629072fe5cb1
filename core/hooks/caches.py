"""Step caches of other packs (EasyCache, LazyCache, TeaCache ...), which give an earlier step's output again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import comfy.samplers

_WORD = "cache"
_FUNCTION = "model_function_wrapper"


def without_caches(model_options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a sampler's model options without step caches, for passes that are not the sampler's own: a cache would
    answer them with what it kept, and keep theirs for the sampler's next step.

    Caches are known by their name: that of a wrapper's key, of its function, or of its pack.
    """
    options = dict(model_options)
    if _FUNCTION in options and _is_cache(None, options[_FUNCTION]):
        del options[_FUNCTION]
    wrappers = {kind: _others(own) for kind, own in _wrappers(options).items()}
    if wrappers:
        options["transformer_options"] = {**options["transformer_options"], "wrappers": wrappers}
    return options


def has_caches(model_options: Mapping[str, Any]) -> bool:
    """Whether a sampler's model options hold a step cache."""
    left, wrappers = without_caches(model_options), _wrappers(model_options)
    return (_FUNCTION in model_options and _FUNCTION not in left) or _wrappers(left) != wrappers


def guider_without_caches(guider: comfy.samplers.CFGGuider) -> comfy.samplers.CFGGuider:
    """A copy of a guider in the middle of a run which asks the model past all step caches."""
    asked = copy.copy(guider)
    asked.model_options = without_caches(guider.model_options)
    return asked


def _wrappers(model_options: Mapping[str, Any]) -> dict[str, Any]:
    return model_options.get("transformer_options", {}).get("wrappers", {})


def _others(wrappers: Mapping[str | None, list[Callable]]) -> dict[str | None, list[Callable]]:
    return {key: [function for function in own if not _is_cache(key, function)] for key, own in wrappers.items()}


def _is_cache(key: str | None, function: Callable) -> bool:
    # Of a pack's module name, which is a path, the part within `custom_nodes`.
    module = (getattr(function, "__module__", "") or "").rpartition("custom_nodes")[2]
    names = (key, module, getattr(function, "__qualname__", type(function).__qualname__))
    return any(_WORD in str(name).lower() for name in names)
