"""A user's workflow with this pack's nodes put in, for `benchmarks.released`: where its sampler, model and prompt are,
and what goes between."""

from __future__ import annotations

import copy
import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from devtools.graph import SAMPLERS, Prompt, with_values


def read_workflow(path: Path) -> Prompt:
    """A workflow in API format with one sampler and an output. Raises ValueError for anything else, in words."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--workflow is {path}, which cannot be read: {error}.") from error
    if isinstance(found, dict) and "nodes" in found and "links" in found:
        raise ValueError(
            f"--workflow is {path}, a workflow as the browser saves it. Save it by Workflow > Export (API), which "
            "also takes it out of its subgraphs."
        )
    if not isinstance(found, dict) or not all(isinstance(one, dict) and "class_type" in one for one in found.values()):
        raise ValueError(f"--workflow is {path}, which is no workflow in API format (Workflow > Export (API)).")
    for node in found.values():
        node.setdefault("_meta", {"title": node["class_type"]})  # older versions of ComfyUI leave it out
    sampler_of(found)
    return found


def sampler_of(prompt: Prompt) -> str:
    """The id of its one sampler. Raises ValueError for none, and for several, by their names."""
    found = [node_id for node_id, node in prompt.items() if node["class_type"] in SAMPLERS]
    if not found:
        kinds = sorted({node["class_type"] for node in prompt.values()})
        raise ValueError(
            f"The workflow has no sampler ({', '.join(SAMPLERS)}); its nodes are {', '.join(kinds)}. Other packs' "
            "samplers are not known here."
        )
    if len(found) > 1:
        names = ", ".join(f"{_title(prompt, one)} (node {one})" for one in found)
        raise ValueError(f"The workflow has {len(found)} samplers: {names}. It must have one; remove the others.")
    return found[0]


def _title(prompt: Prompt, node_id: str) -> str:
    node = prompt[node_id]
    return node.get("_meta", {}).get("title") or node["class_type"]


def upstream(prompt: Prompt, start: str, names: Sequence[str]) -> tuple[str, str]:
    """The node nearest to the sampler, or what feeds it, that has a link under one of these names, and the name.

    Raises ValueError where there is none."""
    waiting, seen = deque([start]), {start}
    while waiting:
        node_id = waiting.popleft()
        inputs = prompt[node_id]["inputs"]
        for name in names:
            if isinstance(inputs.get(name), list):
                return node_id, name
        for value in inputs.values():
            if isinstance(value, list) and value[0] not in seen:
                seen.add(value[0])
                waiting.append(value[0])
    raise ValueError(f"Nothing before {_title(prompt, start)} has a link to {' or '.join(names)}.")


def encoder_of(prompt: Prompt) -> str:
    """The node that encodes the positive prompt: the nearest one on that side that has a CLIP and a text."""
    node_id, name = upstream(prompt, sampler_of(prompt), ("positive", "conditioning"))
    waiting, seen = deque([prompt[node_id]["inputs"][name][0]]), set()
    while waiting:
        here = waiting.popleft()
        seen.add(here)
        inputs = prompt[here]["inputs"]
        if isinstance(inputs.get("clip"), list) and {"text", "prompt"} & inputs.keys():
            return here
        waiting += [value[0] for value in inputs.values() if isinstance(value, list) and value[0] not in seen]
    raise ValueError("No node on the positive side of the sampler has a CLIP and a text; the prompt cannot be varied.")


Schemas = Mapping[str, Mapping[str, Any]]  # by node type, as /object_info gives them


def defaults_of(schemas: Schemas, kind: str) -> dict[str, Any]:
    """A node's widgets at their defaults. Raises ValueError for a node that the server does not have."""
    if kind not in schemas:
        raise ValueError(f"This ComfyUI has no {kind}: install this pack there, and start it again.")
    found = {}
    for name, declared in schemas[kind]["input"].get("required", {}).items():
        options = declared[1] if len(declared) > 1 else {}
        if "default" in options:
            found[name] = options["default"]
        elif isinstance(declared[0], list) and declared[0]:
            found[name] = declared[0][0]
        elif options.get("options"):
            found[name] = options["options"][0]
    return found


def with_noise(prompt: Prompt, schemas: Schemas) -> Prompt:
    """Diverse Noise between the model and what samples it."""
    edited = copy.deepcopy(prompt)
    _on_model(edited, schemas, "DiversityCNO")
    return edited


def with_start(prompt: Prompt, schemas: Schemas, start: Mapping[str, float]) -> Prompt:
    """Other noise to start from alone: Diverse Noise that moves nothing."""
    edited = copy.deepcopy(prompt)
    options = {**defaults_of(schemas, "DiversityCNOOptions"), **start}
    _on_model(edited, schemas, "DiversityCNO", strength=0.0, options=[_new(edited, "DiversityCNOOptions", options), 0])
    return edited


def with_diversify(prompt: Prompt, schemas: Schemas, strength: float) -> Prompt:
    """Diversify in place of CLIP Text Encode, and between the model and what samples it. Where another node encodes the
    prompt, which may do more than that, Diversify (Model Only): to a batch it does the same."""
    edited = copy.deepcopy(prompt)
    try:
        encoder = encoder_of(edited)
    except ValueError:
        encoder = None
    if encoder is None or edited[encoder]["class_type"] != "CLIPTextEncode":
        _on_model(edited, schemas, "DiversityDiversifyModel", strength=strength)
    else:
        own = {name: edited[encoder]["inputs"][name] for name in ("clip", "text")}
        _relink(edited, encoder, _on_model(edited, schemas, "DiversityDiversify", strength=strength, **own), 1)
    return edited


def with_prompts(prompt: Prompt, schemas: Schemas, variants: int, seed: int) -> Prompt:
    """Diverse Prompts in place of the node that encodes the prompt."""
    edited = copy.deepcopy(prompt)
    encoder = encoder_of(edited)
    inputs = edited[encoder]["inputs"]
    own = {"clip": inputs["clip"], "text": inputs.get("text", inputs.get("prompt")), "variants": variants, "seed": seed}
    new = _new(edited, "DiversityTPSO", {**defaults_of(schemas, "DiversityTPSO"), "negative_text": "", **own})
    _relink(edited, encoder, new, 0)
    return edited


def with_best_kept(prompt: Prompt, schemas: Schemas, images: int) -> Prompt:
    """Half as many images again, of which Keep the Best keeps so many, behind the sampler. It is to come before other
    nodes of the pack, so that the model is the plain one."""
    edited = with_values(prompt, {"batch_size": images + images // 2})
    sampler = sampler_of(edited)
    own: dict[str, Any] = {"keep": images}
    for name, names in (("model", ("model",)), ("positive", ("positive", "conditioning"))):
        node_id, key = upstream(edited, sampler, names)
        own[name] = edited[node_id]["inputs"][key]
    readers = [
        (node, key, value)
        for node in edited.values()
        for key, value in node["inputs"].items()
        if isinstance(value, list) and value[0] == sampler
    ]
    if len({value[1] for *_, value in readers}) != 1:
        raise ValueError(f"{_title(edited, sampler)} must have one output that is read; the best cannot be kept of it.")
    own = {**defaults_of(schemas, "DiversityKeepBest"), **own, "latent": readers[0][2]}
    new = _new(edited, "DiversityKeepBest", own)
    for node, key, _ in readers:
        node["inputs"][key] = [new, 0]
    return edited


def with_minority(prompt: Prompt, schemas: Schemas, steps: int) -> Prompt:
    """Minority Prompt in place of that node, and between the model and what samples it."""
    edited = copy.deepcopy(prompt)
    encoder = encoder_of(edited)
    inputs = edited[encoder]["inputs"]
    own = {"clip": inputs["clip"], "text": inputs.get("text", inputs.get("prompt"))}
    own["preset"] = "few-step model" if steps <= 8 else "base model"
    _relink(edited, encoder, _on_model(edited, schemas, "DiversityMinorityPrompt", **own), 1)
    return edited


def _on_model(prompt: Prompt, schemas: Schemas, kind: str, **own: Any) -> str:
    """Puts a node between the model and what samples it; returns its id."""
    node_id, name = upstream(prompt, sampler_of(prompt), ("model",))
    inputs = {**defaults_of(schemas, kind), **own, "model": prompt[node_id]["inputs"][name]}
    new = _new(prompt, kind, inputs)
    prompt[node_id]["inputs"][name] = [new, 0]
    return new


def _new(prompt: Prompt, kind: str, inputs: dict[str, Any]) -> str:
    node_id = f"diversity_{kind}"
    prompt[node_id] = {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}
    return node_id


def _relink(prompt: Prompt, old: str, new: str, output: int) -> None:
    """What reads the first output of one node reads an output of another; the prompt may serve as the negative, too."""
    positive, name = upstream(prompt, sampler_of(prompt), ("positive", "conditioning"))
    if prompt[positive]["inputs"][name] == [old, 0]:
        prompt[positive]["inputs"][name] = [new, output]
        return
    waiting, seen = deque([prompt[positive]["inputs"][name][0]]), set()
    while waiting:
        here = waiting.popleft()
        seen.add(here)
        for key, value in prompt[here]["inputs"].items():
            if value == [old, 0]:
                prompt[here]["inputs"][key] = [new, output]
            elif isinstance(value, list) and value[0] not in seen and value[0] != new:
                waiting.append(value[0])
