"""The converter against the front end's own conversion, on graphs with everything that makes converting hard.

    RECORD_WORKFLOWS=1 pytest tests/browser/test_conversion.py

writes what the front end made of them to tests/unit/recorded_workflows.json, for tests without a browser.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from devtools.places import HERE
from devtools.widgets import FOREIGN_NODES, ordered_inputs, widget_type
from devtools.workflow import to_prompt

if TYPE_CHECKING:
    from devtools.frontend import Frontend
    from devtools.server import Client

RECORDED = HERE.root / "tests" / "unit" / "recorded_workflows.json"
MUTED, BYPASSED = 2, 4
# What the front end calls a node where its own translation differs from the server's name.
TRANSLATED_TITLES = {"EmptyHunyuanLatentVideo"}

# Each case: nodes by key as (type, mode, widget values, inputs), then what a person would do next, as JavaScript with
# `n(key)` for a node, `at(node, input)` for the position of an input, `add(type)` for one more node.
Spec = tuple[str, int, dict[str, Any], dict[str, tuple[str, int]]]
CHAIN: dict[str, Spec] = {
    "empty": ("EmptyImage", 0, {"width": 32}, {}),
    "invert": ("ImageInvert", 0, {}, {"image": ("empty", 0)}),
    "scale": ("ImageScaleBy", 0, {"scale_by": 2.0}, {"image": ("invert", 0)}),
    "show": ("PreviewImage", 0, {}, {"images": ("scale", 0)}),
}
INTO_SUBGRAPH = """
    const {subgraph, node} = app.graph.convertToSubgraph(new Set([n('invert'), n('scale')]))
    const inner = subgraph.nodes.find(x => x.type === 'ImageScaleBy')
    const promote = (graph, name, target, input) => {
        graph.addInput(name, 'FLOAT')
        graph.inputNode.slots.at(-1).connect(target.inputs[at(target, input)], target)
    }
    const set = (node, name, value) => { node.widgets.find(w => w.name === name).value = value }
"""
PROMOTED = INTO_SUBGRAPH + "promote(subgraph, 'factor', inner, 'scale_by'); set(node, 'factor', 5.5);"

CASES: dict[str, tuple[dict[str, Spec], str]] = {
    "widgets and seeds": (
        {
            "empty": ("EmptyImage", 0, {"width": 64, "color": 255}, {}),
            "noise": ("RandomNoise", 0, {"noise_seed": 7}, {}),
            "sampler": ("KSampler", 0, {"seed": 123456789012345, "steps": 3, "cfg": 1.5}, {}),
            "show": ("PreviewImage", 0, {}, {"images": ("empty", 0)}),
            "note": ("Note", 0, {}, {}),
            "text": ("CLIPTextEncode", 0, {"text": "line one\nline (two:1.2)"}, {}),
        },
        "n('text').title = 'My prompt'",
    ),
    "muted and bypassed": (
        {
            "kept": ("EmptyImage", 0, {}, {}),
            "muted": ("EmptyImage", MUTED, {}, {}),
            "invert": ("ImageInvert", BYPASSED, {}, {"image": ("kept", 0)}),
            "scale": ("ImageScaleBy", BYPASSED, {}, {"image": ("invert", 0)}),
            "batch": ("ImageBatch", 0, {}, {"image1": ("scale", 0), "image2": ("muted", 0)}),
            "mask": ("ImageToMask", BYPASSED, {}, {"image": ("batch", 0)}),
            "image": ("MaskToImage", 0, {}, {"mask": ("mask", 0)}),
            "bypassed number": ("PrimitiveInt", BYPASSED, {"value": 99}, {}),
            "own width": ("EmptyImage", 0, {}, {"width": ("bypassed number", 0)}),
            "muted number": ("PrimitiveInt", MUTED, {"value": 99}, {}),
            "no width": ("EmptyImage", 0, {}, {"width": ("muted number", 0)}),
            "second": ("ConditioningCombine", BYPASSED, {}, {}),
            "show": ("PreviewImage", 0, {}, {"images": ("batch", 0)}),
        },
        "const t = add('CLIPTextEncode'); t.connect(0, n('second'), 1)\n"
        "const z = add('ConditioningZeroOut'); n('second').connect(0, z, 0)",
    ),
    "reroutes": (
        {
            "empty": ("EmptyImage", 0, {}, {}),
            "one": ("Reroute", 0, {}, {"": ("empty", 0)}),
            "two": ("Reroute", 0, {}, {"": ("one", 0)}),
            "loose": ("Reroute", 0, {}, {}),
            "show": ("PreviewImage", 0, {}, {"images": ("two", 0)}),
            "nothing": ("PreviewImage", 0, {}, {"images": ("loose", 0)}),
        },
        "",
    ),
    "primitive nodes": (
        {
            "a": ("EmptyImage", 0, {}, {}),
            "b": ("EmptyImage", 0, {}, {}),
            "shared": ("PrimitiveNode", 0, {}, {}),
            "real": ("PrimitiveInt", 0, {"value": 77}, {}),
        },
        "n('shared').connect(0, n('a'), at(n('a'), 'width')); n('shared').connect(0, n('b'), at(n('b'), 'height'))\n"
        "n('shared').widgets[0].value = 48; n('real').connect(0, n('a'), at(n('a'), 'height'))",
    ),
    "subgraph": (CHAIN, INTO_SUBGRAPH),
    "subgraph with a widget": (CHAIN, PROMOTED),
    "subgraph with an inner widget": (
        CHAIN,
        PROMOTED + "node.properties.proxyWidgets = [['-1', 'factor'], [String(inner.id), 'upscale_method']]\n"
        "set(node, 'factor', 5.5); node.widgets[1].value = 'area'",
    ),
    "subgraph twice": (
        CHAIN,
        PROMOTED + "const again = add(subgraph.id); set(again, 'factor', 6.5); n('empty').connect(0, again, 0)\n"
        "again.connect(0, add('PreviewImage'), 0)",
    ),
    "subgraph with its widget linked": (
        CHAIN,
        PROMOTED + "add('PrimitiveFloat').connect(0, node, at(node, 'factor'))",
    ),
    "subgraph with a primitive node": (
        CHAIN,
        PROMOTED + "const p = add('PrimitiveNode'); p.connect(0, node, at(node, 'factor')); p.widgets[0].value = 3.25",
    ),
    "subgraph bypassed": (CHAIN, PROMOTED + "node.mode = 4"),
    "subgraph muted": (CHAIN, PROMOTED + "node.mode = 2"),
    "subgraph bypassed inside": (CHAIN, PROMOTED + "inner.mode = 4"),
    "subgraph muted inside": (CHAIN, PROMOTED + "inner.mode = 2"),
    "subgraph in a subgraph": (
        CHAIN,
        PROMOTED + "const outer = app.graph.convertToSubgraph(new Set([node])); const core = outer.subgraph.nodes[0]\n"
        "promote(outer.subgraph, 'outer', core, 'factor'); set(outer.node, 'outer', 7.5)",
    ),
}


@pytest.fixture(scope="module")
def info(client: Client) -> dict[str, Any]:
    return client.object_info()


@pytest.mark.parametrize("name", CASES)
def test_same_as_the_front_end(name: str, frontend: Frontend, info: dict[str, Any]) -> None:
    from devtools.frontend import Node

    specs, script = CASES[name]
    nodes = {
        key: Node(kind, mode=mode, values=values, inputs=links) for key, (kind, mode, values, links) in specs.items()
    }
    ids = frontend.build(nodes)
    frontend.page.evaluate(
        """([ids, script]) => {
            const n = key => app.graph.getNodeById(ids[key])
            const at = (node, input) => node.inputs.findIndex(i => i.name === input)
            const add = type => { const node = LiteGraph.createNode(type); app.graph.add(node); return node }
            new Function('n', 'at', 'add', script)(n, at, add)
        }""",
        [ids, script],
    )
    workflow = frontend.saved()
    frontend.load(workflow)
    prompt = frontend.prompt()
    assert prompt
    assert to_prompt(workflow, info) == prompt
    if os.environ.get("RECORD_WORKFLOWS"):
        _record(name, workflow, prompt, info)


def test_every_node_at_its_defaults(frontend: Frontend, info: dict[str, Any]) -> None:
    from devtools.frontend import Node

    readable = [kind for kind in info if kind not in FOREIGN_NODES and _readable(info[kind])]
    assert len(readable) > 0.95 * len(info)
    frontend.build({kind: Node(kind) for kind in readable})
    workflow = frontend.saved()
    frontend.load(workflow)
    theirs, ours = frontend.prompt(), to_prompt(workflow, info)
    assert ours.keys() == theirs.keys()
    for node_id, entry in theirs.items():
        if entry["class_type"] in TRANSLATED_TITLES:
            entry["_meta"] = ours[node_id]["_meta"]
        assert ours[node_id] == entry


def _readable(definition: dict[str, Any]) -> bool:
    try:
        return all(widget_type(name, spec) != "" for name, spec in ordered_inputs(definition))
    except ValueError:
        return False


def _record(name: str, workflow: dict[str, Any], prompt: dict[str, Any], info: dict[str, Any]) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {"cases": {}, "info": {}}
    recorded["cases"][name] = {"workflow": workflow, "prompt": prompt}
    used = {node["type"] for node in workflow["nodes"]} | {entry["class_type"] for entry in prompt.values()}
    for graph in workflow.get("definitions", {}).get("subgraphs", []):
        used |= {node["type"] for node in graph["nodes"]}
    recorded["info"] |= {kind: info[kind] for kind in sorted(used) if kind in info}
    RECORDED.write_text(json.dumps(recorded, separators=(",", ":")) + "\n", encoding="utf-8")
