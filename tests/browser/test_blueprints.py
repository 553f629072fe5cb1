"""Every subgraph blueprint opens in the real front end and, wired as a user would wire it, runs on small models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from devtools.graph import with_values
from devtools.images import decode
from devtools.places import HERE

if TYPE_CHECKING:
    from devtools.frontend import Frontend
    from devtools.server import Client

BLUEPRINTS = sorted(HERE.blueprints.glob("*.json"))
SCREENSHOTS = HERE.root / "demo" / "output" / "screenshots" / "blueprints"
SMALL = {"steps": 2, "batch_size": 2, "width": 64, "height": 64}
# What stands around a blueprint without loaders: a node's type, and its inputs as (node, output); "" is the blueprint.
AROUND = {
    "world": ("DiversityLoadDemoWorld", {}),
    "unet": ("UNETLoader", {}),
    "vae": ("VAELoader", {}),
    "latent": ("EmptySD3LatentImage", {}),
    "sampler": (
        "KSampler",
        {
            "model": ("", "model"),
            "positive": ("", "positive"),
            "negative": ("", "negative"),
            "latent_image": ("latent", "LATENT"),
        },
    ),
    "decode": ("VAEDecode", {"samples": ("sampler", "LATENT"), "vae": ("vae", "VAE")}),
    "": ("", {"model": ("unet", "MODEL"), "clip": ("world", "CLIP")}),
}
DEMO = {
    "UNETLoader": {"unet_name": "diversity_demo_distilled.safetensors"},
    "VAELoader": {"vae_name": "diversity_demo_vae.safetensors"},
}

# Adds nodes to the open graph and links them; an input or output is found by its name.
_WIRE = """around => {
    const made = {'': app.graph.nodes[0]}
    for (const [key, [type]] of Object.entries(around)) {
        if (!type) continue
        made[key] = LiteGraph.createNode(type)
        made[key].pos = [600 * (Object.keys(made).length - 1), 700]
        app.graph.add(made[key])
    }
    for (const [key, [_, inputs]] of Object.entries(around)) {
        for (const [name, [source, output]] of Object.entries(inputs)) {
            const from = made[source].outputs.findIndex(one => one.name === output)
            const to = made[key].inputs.findIndex(one => one.name === name)
            if (from < 0 || to < 0 || !made[source].connect(from, made[key], to)) throw new Error(`${key}.${name}`)
        }
    }
}"""


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_it_opens_and_runs(path: Path, frontend: Frontend, client: Client) -> None:
    frontend.errors.clear()
    workflow = json.loads(path.read_text(encoding="utf-8"))
    frontend.load(workflow)
    assert frontend.unknown_nodes() == []
    whole = [one["name"] for one in workflow["nodes"][0]["outputs"]] == ["IMAGE"]
    around: dict[str, Any] = {} if whole else dict(AROUND)
    around["save"] = ("SaveImage", {"images": ("", "IMAGE") if whole else ("decode", "IMAGE")})
    frontend.page.evaluate(_WIRE, around)
    frontend.screenshot(SCREENSHOTS / f"{path.stem}.png")

    # Each of its inputs has one widget, under the name that the blueprint gives it.
    box = workflow["nodes"][0]
    shown = frontend.page.evaluate("() => app.graph.nodes[0].widgets.map(one => one.name)")
    assert shown == [one["name"] for one in box["inputs"] if "widget" in one]

    prompt = frontend.prompt()
    (diversify,) = (node for node in prompt.values() if node["class_type"] == "DiversityDiversify")
    diversify["inputs"].update(text="a heart", strength=1.0)
    plain = json.loads(json.dumps(prompt))
    diversified = [decode(image) for image in client.images(client.run(quick(prompt, whole)))]
    assert len(diversified) == 2
    assert (diversified[0] != diversified[1]).any()
    next(node for node in plain.values() if node["class_type"] == "DiversityDiversify")["inputs"]["strength"] = 0.0
    stock = [decode(image) for image in client.images(client.run(quick(plain, whole)))]
    assert any((a != b).any() for a, b in zip(diversified, stock, strict=True))
    assert frontend.errors == []


def quick(prompt: dict[str, Any], whole: bool) -> dict[str, Any]:
    """Few and small images in few steps; of the demo's few-step model where the blueprint has no loaders."""
    small = with_values(prompt, {**SMALL, "seed": 1, **({} if whole else {"cfg": 1.0})})
    for node in () if whole else small.values():
        node["inputs"].update(DEMO.get(node["class_type"], {}))
    return small
