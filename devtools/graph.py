"""Edits prompts by following their links from the sampler, so that no node number and no order of nodes matters."""

from __future__ import annotations

import copy
import json
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from .places import HERE

Prompt = dict[str, dict[str, Any]]  # API format: node id -> {"class_type", "inputs", "_meta"}

SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
# Names under which nodes of different makers keep the same thing.
INPUTS: dict[str, tuple[str, ...]] = {
    "text": ("text", "prompt"),
    "seed": ("seed", "noise_seed"),
    "cfg": ("cfg",),
    "steps": ("steps",),
    "width": ("width",),
    "height": ("height",),
    "batch_size": ("batch_size",),
    "filename_prefix": ("filename_prefix",),
}


def shipped_prompt(name: str) -> Prompt:
    """The prompt of a workflow that ships. Raises OSError when there is none of that name."""
    return json.loads((HERE.prompts / f"{name}.json").read_text(encoding="utf-8"))


def only_node(prompt: Prompt, kinds: Sequence[str]) -> str:
    """The id of the one node of these types. Raises ValueError for none or several."""
    found = [node_id for node_id, node in prompt.items() if node["class_type"] in kinds]
    if len(found) != 1:
        raise ValueError(f"The workflow has {len(found)} nodes of type {' or '.join(kinds)}; it must have 1.")
    return found[0]


def nearest(prompt: Prompt, start: str, names: Sequence[str]) -> tuple[str, str]:
    """The node nearest to `start`, or `start` itself, that holds a value of its own under one of `names`.

    Goes against the flow, input by input; a primitive node that is linked to such an input holds it for the others.
    Returns node id and input name; raises ValueError when there is none.
    """
    waiting, seen = deque([start]), {start}
    while waiting:
        node_id = waiting.popleft()
        for name, value in prompt[node_id]["inputs"].items():
            if name not in names:
                continue
            if not _is_link(value):
                return node_id, name
            if prompt[value[0]]["class_type"].startswith("Primitive"):
                return value[0], "value"
        for value in prompt[node_id]["inputs"].values():
            if _is_link(value) and value[0] not in seen:
                seen.add(value[0])
                waiting.append(value[0])
    raise ValueError(f"No node before {prompt[start]['_meta']['title']!r} holds {' or '.join(names)}.")


def with_values(prompt: Prompt, values: Mapping[str, Any]) -> Prompt:
    """A copy of the prompt with other values for any of `INPUTS`, put where its samplers get them from.

    The text goes to the positive side. Raises ValueError for a name that is not in `INPUTS`, or that nothing holds.
    """
    edited = copy.deepcopy(prompt)
    samplers = [node_id for node_id, node in edited.items() if node["class_type"] in SAMPLERS]
    if not samplers:
        raise ValueError(f"The workflow has no node of type {' or '.join(SAMPLERS)}.")
    for name, value in values.items():
        if name not in INPUTS:
            raise ValueError(f"values has {name!r}; it may have {', '.join(INPUTS)}.")
        for sampler in samplers:
            node_id, key = nearest(edited, _start(edited, sampler, name), INPUTS[name])
            edited[node_id]["inputs"][key] = value
    return edited


def _start(prompt: Prompt, sampler: str, name: str) -> str:
    """Where the search for one of `INPUTS` begins."""
    if name == "text":
        return _source(prompt, sampler, ("positive", "conditioning"))
    if name in ("width", "height", "batch_size"):
        return _source(prompt, sampler, ("latent_image",))
    return only_node(prompt, ("SaveImage",)) if name == "filename_prefix" else sampler


def titled(prompt: Prompt, title: str) -> str | None:
    """The id of the node with this title, or None."""
    return next((node_id for node_id, node in prompt.items() if node["_meta"]["title"] == title), None)


def only_for(prompt: Prompt, output: str) -> Prompt:
    """The part of the prompt that this node needs."""
    waiting, needed = [output], {output}
    while waiting:
        for value in prompt[waiting.pop()]["inputs"].values():
            if _is_link(value) and value[0] not in needed:
                needed.add(value[0])
                waiting.append(value[0])
    return {node_id: node for node_id, node in prompt.items() if node_id in needed}


def with_settings(prompt: Prompt, settings: Mapping[str, Any]) -> Prompt:
    """A copy with settings of single nodes, each written as `NodeType.input`.

    Raises ValueError for a node or an input that is not there, or that is linked.
    """
    edited = copy.deepcopy(prompt)
    for name, value in settings.items():
        kind, _, key = name.partition(".")
        inputs = edited[only_node(edited, (kind,))]["inputs"]
        if key not in inputs or _is_link(inputs[key]):
            own = ", ".join(k for k, v in inputs.items() if not _is_link(v))
            raise ValueError(f"settings has {name!r}; {kind} may be given {own or 'nothing'}.")
        inputs[key] = value
    return edited


def _source(prompt: Prompt, sampler: str, names: Sequence[str]) -> str:
    """The node linked to one of these inputs of the sampler, or of what feeds the sampler (its guider)."""
    waiting, seen = deque([sampler]), {sampler}
    while waiting:
        inputs = prompt[waiting.popleft()]["inputs"]
        for name in names:
            if _is_link(inputs.get(name)):
                return inputs[name][0]
        for value in inputs.values():
            if _is_link(value) and value[0] not in seen:
                seen.add(value[0])
                waiting.append(value[0])
    raise ValueError(f"Nothing before the sampler is linked to {' or '.join(names)}.")


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2
