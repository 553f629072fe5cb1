"""The templates of released models, run as they are by a real server whose loaders give small models instead."""

from __future__ import annotations

import json
from typing import Any

import pytest

from devtools.graph import only_node, shipped_prompt, titled, with_settings, with_values
from devtools.images import decode
from devtools.places import HERE
from devtools.released import MODELS, Released
from devtools.server import Client

BATCH, SIDE = 2, 64
SMALL = {"steps": 2, "batch_size": BATCH, "width": SIDE, "height": SIDE, "seed": 11}


@pytest.fixture(scope="module")
def version(client: Client) -> str:
    return client.json("/system_stats")["system"]["comfyui_version"]


QUICK = ("SD1.5", "Z-Image Turbo")  # one of each kind
RELEASED = [pytest.param(one, marks=() if one.title in QUICK else pytest.mark.slow, id=one.title) for one in MODELS]


@pytest.fixture(params=RELEASED)
def model(request: pytest.FixtureRequest, version: str) -> Released:
    released: Released = request.param
    if version in released.missing_in:
        pytest.skip(f"ComfyUI {version} does not know {released.title}")
    return released


def small(model: Released, **values: Any) -> dict[str, Any]:
    """The template's prompt, made quick."""
    return with_values(shipped_prompt(model.template), {**SMALL, **values})


def images(client: Client, prompt: dict[str, Any]) -> tuple[list[bytes], list[bytes]]:
    """Pixels of the images without Diversify and with it."""
    result = client.run(prompt)
    without = titled(prompt, "Without Diversify")
    assert without is not None
    pairs = []
    for node in (without, only_node(prompt, ("SaveImage",))):
        arrays = [decode(file) for file in client.images(result, node)]
        assert len(arrays) == prompt_batch(prompt)
        assert all(array.std() > 1 for array in arrays), "an image of one flat colour"
        pairs.append([array.tobytes() for array in arrays])
    return pairs[0], pairs[1]


def prompt_batch(prompt: dict[str, Any]) -> int:
    return next(node["inputs"]["batch_size"] for node in prompt.values() if "batch_size" in node["inputs"])


def test_runs_differs_and_repeats(client: Client, model: Released) -> None:
    plain, diverse = images(client, small(model))
    assert len(set(plain + diverse)) == 2 * BATCH, "some images are the same"
    other, _ = images(client, small(model, seed=12))
    assert not set(other) & set(plain)
    assert images(client, small(model)) == (plain, diverse)


def test_strength_0_is_the_model_as_it_is(client: Client, model: Released) -> None:
    plain, off = images(client, with_settings(small(model), {"DiversityDiversify.strength": 0.0}))
    assert off == plain


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.title)
def test_loaders_say_where_their_files_come_from(model: Released) -> None:
    workflow = json.loads((HERE.workflows / f"{model.template}.json").read_text(encoding="utf-8"))
    said = {}
    for node in workflow["nodes"]:
        for file in node["properties"].get("models", []):
            assert file["name"] in node["widgets_values"], "a file that the node does not load"
            said[file["name"]] = file
    assert said == {file.name: file.metadata for file in model.files}
