"""Subgraph blueprints: nodes in one, which the front end lists under "Subgraph Blueprints".

A blueprint is a workflow of one node, whose type is the subgraph that the file defines.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from ..frontend import Frontend, Node
from ..released import MODELS, Released
from .baseline import RED
from .before_after import TEAL
from .shelf import loaders

_INPUT_NODE, _OUTPUT_NODE = -10, -20  # the ids that the format gives a subgraph's own two ends
_SPACE = uuid.NAMESPACE_URL


@dataclass(frozen=True)
class Blueprint:
    """What is inside, and which of its inputs and outputs are the blueprint's own, by the name that they have outside:
    an input feeds one `(node, input)` or several, an output is a `(node, output)`."""

    description: str
    nodes: dict[str, Node]
    inputs: dict[str, tuple[tuple[str, str], ...]]
    outputs: dict[str, tuple[str, int]]


def build(name: str, blueprint: Blueprint, frontend: Frontend) -> dict[str, Any]:
    """The file of a blueprint, made of what the front end makes of its nodes."""
    ids = frontend.build(blueprint.nodes)
    frontend.load(frontend.saved())
    inner = frontend.saved()
    nodes = {node["id"]: node for node in inner["nodes"]}
    for own_id, all_inputs in frontend.inputs().items():
        linked = {one["name"]: one["link"] for one in nodes[own_id].get("inputs", [])}
        nodes[own_id]["inputs"] = [{**one, "link": linked.get(one["name"])} for one in all_inputs]
    links: list[dict[str, Any]] = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
        for link in inner["links"]
    ]
    last = max([link["id"] for link in links], default=0)
    inputs, outputs = [], []
    for slot, (outside, fed) in enumerate(blueprint.inputs.items()):
        first, kind = last + 1, ""
        for key, wanted in fed:
            own = nodes[ids[key]]["inputs"]
            number = next(k for k, one in enumerate(own) if one["name"] == wanted)
            last, kind = last + 1, own[number]["type"]
            own[number]["link"] = last
            link = {"origin_id": _INPUT_NODE, "origin_slot": slot, "target_id": ids[key], "target_slot": number}
            links.append({"id": last, **link, "type": kind})
        inputs.append(_end(name, outside, kind, list(range(first, last + 1)), (-300, 20 * slot)))
    for slot, (outside, (key, number)) in enumerate(blueprint.outputs.items()):
        own = nodes[ids[key]]["outputs"][number]
        last += 1
        own["links"] = [*(own["links"] or []), last]
        link = {"origin_id": ids[key], "origin_slot": number, "target_id": _OUTPUT_NODE, "target_slot": slot}
        links.append({"id": last, **link, "type": own["type"]})
        outputs.append(_end(name, outside, own["type"], [last], (1320, 20 * slot)))
    subgraph = {
        "id": str(uuid.uuid5(_SPACE, f"ComfyUI-Diversity/subgraphs/{name}")),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": max(nodes), "lastLinkId": last, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": _INPUT_NODE, "bounding": [-420, 0, 120, 40 + 20 * len(inputs)]},
        "outputNode": {"id": _OUTPUT_NODE, "bounding": [1300, 0, 120, 40 + 20 * len(outputs)]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": inner["nodes"],
        "groups": [],
        "links": links,
        "extra": {},
        "description": blueprint.description,
    }
    return _workflow(name, subgraph, blueprint, ids)


def _end(name: str, outside: str, kind: str, links: list[int], pos: tuple[int, int]) -> dict[str, Any]:
    own = str(uuid.uuid5(_SPACE, f"ComfyUI-Diversity/subgraphs/{name}/{outside}"))
    return {"id": own, "name": outside, "type": kind, "linkIds": links, "pos": list(pos)}


def _workflow(name: str, subgraph: dict[str, Any], blueprint: Blueprint, ids: dict[str, int]) -> dict[str, Any]:
    """The one node, with the widgets of the inputs that have some."""
    by_id = {node["id"]: node for node in subgraph["nodes"]}
    inputs = []
    for end, ((key, wanted), *_) in zip(subgraph["inputs"], blueprint.inputs.values(), strict=True):
        slot: dict[str, Any] = {"name": end["name"], "type": end["type"], "link": None}
        inner = next(one for one in by_id[ids[key]]["inputs"] if one["name"] == wanted)
        if "widget" in inner:
            slot["widget"] = {"name": end["name"]}
        inputs.append(slot)
    node = {
        "id": max(by_id) + 1,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": [400, 120 + 40 * len(inputs)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": [{"name": end["name"], "type": end["type"], "links": []} for end in subgraph["outputs"]],
        "properties": {},  # no proxyWidgets: the front end would show text boxes twice
        "widgets_values": [],
        "title": name,
    }
    return {
        "revision": 0,
        "last_node_id": node["id"],
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {},
    }


def _text_to_image(model: Released, description: str) -> Blueprint:
    """From the model's files and a prompt to images."""
    source = loaders(model)
    names = {"load": "ckpt_name"} if model.checkpoint else {"unet": "unet_name", "clip": "clip_name", "vae": "vae_name"}
    nodes = {
        **source.nodes,
        "negative": Node(
            "CLIPTextEncode", (400, 320), (340, 120), inputs={"clip": source.clip}, color=("#322", "#533")
        ),
        "latent": Node(
            model.latent, (400, 500), (340, 106), values={"width": model.size, "height": model.size, "batch_size": 4}
        ),
        "diversify": _diversify(source.model, source.clip),
        "sampler": Node(
            "KSampler",
            (800, 0),
            (300, 262),
            values={
                "seed": 1,
                "control_after_generate": "fixed",
                "steps": model.steps,
                "cfg": model.cfg,
                "sampler_name": model.sampler,
                "scheduler": model.scheduler,
                "denoise": 1.0,
            },
            inputs={
                "model": ("diversify", 0),
                "positive": ("diversify", 1),
                "negative": ("negative", 0),
                "latent_image": ("latent", 0),
            },
        ),
        "decode": Node("VAEDecode", (800, 320), (300, 46), inputs={"samples": ("sampler", 0), "vae": source.vae}),
    }
    own = {"prompt": ("diversify", "text")}
    if model.cfg != 1:
        own |= {"negative prompt": ("negative", "text"), "cfg": ("sampler", "cfg")}
    own |= {
        "strength": ("diversify", "strength"),
        "seed": ("sampler", "seed"),
        "steps": ("sampler", "steps"),
        "width": ("latent", "width"),
        "height": ("latent", "height"),
        "batch_size": ("latent", "batch_size"),
    }
    own |= {name: (key, name) for key, name in names.items()}
    inputs: dict[str, tuple[tuple[str, str], ...]] = {name: (one,) for name, one in own.items()}
    return Blueprint(description, nodes, inputs, {"IMAGE": ("decode", 0)})


def _diversify(*sources: tuple[str, int]) -> Node:
    values = {"seed": 0, "control_after_generate": "fixed", "strength": 0.5}  # the node's own
    inputs: dict[str, tuple[str, int]] = dict(zip(("model", "clip"), sources, strict=False))
    return Node("DiversityDiversify", (400, 0), (340, 220), values=values, inputs=inputs, color=TEAL)


def _around() -> Blueprint:
    """Between a model and a sampler that are there already."""
    negative = Node("CLIPTextEncode", (400, 320), (340, 120), "Negative prompt", color=RED)
    return Blueprint(
        "Between the loaders and the sampler of any workflow: makes the images of its batch differ.",
        {"diversify": _diversify(), "negative": negative},
        {
            "model": (("diversify", "model"),),
            "clip": (("diversify", "clip"), ("negative", "clip")),
            "prompt": (("diversify", "text"),),
            "negative prompt": (("negative", "text"),),
            "strength": (("diversify", "strength"),),
        },
        {"model": ("diversify", 0), "positive": ("diversify", 1), "negative": ("negative", 0)},
    )


def _named(title: str) -> Released:
    return next(model for model in MODELS if model.title == title)


BLUEPRINTS: dict[str, Blueprint] = {
    "Text to Image, diverse (CFG)": _text_to_image(
        _named("SDXL"), "Images of one prompt that differ, from a checkpoint that is sampled with CFG."
    ),
    "Text to Image, diverse (CFG 1)": _text_to_image(
        _named("Z-Image Turbo"), "Images of one prompt that differ, from a model that is sampled at CFG 1."
    ),
    "Diversify a model and its prompt": _around(),
}
