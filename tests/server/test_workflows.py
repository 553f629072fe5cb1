"""Every template of the demo world, run by a real server: to the end, and from the cache where it may; one of each
method and model reproducibly, too, and with all that a user may change."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from devtools.graph import SAMPLERS, only_node, shipped_prompt, with_values
from devtools.images import decode
from devtools.places import HERE
from devtools.released import MODELS
from devtools.server import Client, Server

TEMPLATES = sorted({path.stem for path in HERE.workflows.glob("*.json")} - {model.template for model in MODELS})
# Each method and each model once.
SAMPLE = ["tpso_turbo", "diversify_unet", "cno_mmdit", "minority_distilled", "ovi", "keep_distilled"]
BATCH = 2
SCRATCH = "tests"
# What takes long and is tested where the methods are. At most so much; -1 is the method's own choice.
QUICK = {
    "DiversityTPSO": {"variants": 3},
    "DiversityTPSOOptions": {"steps": 5},
    "DiversityOVI": {"variants": 3},
    "DiversityOVIOptions": {"steps": 20},
    "DiversityDemoImages": {"count": 60},
    "DiversityKeepBest": {"keep": BATCH},
}


@pytest.fixture(scope="module", autouse=True)
def clean_output(server: Server) -> Iterator[None]:
    """The images of these tests do not pile up in the development ComfyUI's output."""
    yield
    shutil.rmtree(server.base / "output" / SCRATCH, ignore_errors=True)


@pytest.fixture(scope="module", params=TEMPLATES)
def prompt(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A template as a small, quick prompt."""
    whole = shipped_prompt(request.param)
    # Of more images than are kept, one goes.
    batch = BATCH + any(node["class_type"] == "DiversityKeepBest" for node in whole.values())
    values = {"steps": 2, "batch_size": batch, "seed": 11, "filename_prefix": f"{SCRATCH}/{request.param}"}
    quick = with_values(whole, values)
    for node in quick.values():
        for name, most in QUICK.get(node["class_type"], {}).items():
            if not 0 <= node["inputs"][name] <= most:
                node["inputs"][name] = most
    return quick


def run(client: Client, prompt: dict[str, Any]) -> tuple[list[bytes], list[str]]:
    """Image files, and the types of the nodes that the server took from its cache."""
    result = client.run(prompt)
    cached = [prompt[node]["class_type"] for node in result.cached]
    return client.images(result, only_node(prompt, ("SaveImage",))), cached


def pixels(files: list[bytes]) -> list[bytes]:
    """What is seen of the images: a file also holds its prompt, by which alone two files would differ."""
    return [decode(file).tobytes() for file in files]


def sampled(cached: list[str]) -> bool:
    return not set(cached) & set(SAMPLERS)


def test_runs_to_the_end(client: Client, prompt: dict[str, Any]) -> None:
    files, _ = run(client, prompt)
    assert len(files) == BATCH
    images = [decode(file) for file in files]
    assert all(image.shape == (128, 128, 3) for image in images)
    assert (images[0] != images[1]).any(), "the images of one batch must differ"
    assert all(image.std() > 1 for image in images), "an image of one flat colour"


def test_what_a_user_may_change_is_in_the_graph(prompt: dict[str, Any]) -> None:
    """That a text then changes the images is tested below, of a sample: what comes after is ComfyUI's own."""
    changed = with_values(prompt, {"text": "a small green fish", "cfg": 2.5})
    assert sum(changed[node] != prompt[node] for node in prompt) >= 2


@pytest.mark.parametrize("prompt", SAMPLE, indirect=True)
def test_the_seed_alone_decides_also_with_models_loaded_anew(client: Client, prompt: dict[str, Any]) -> None:
    first, _ = run(client, prompt)
    other, cached = run(client, with_values(prompt, {"seed": 12}))
    assert sampled(cached)
    assert not set(pixels(first)) & set(pixels(other))
    # The other run has pushed the first one's images out of the cache: these are made anew, by the same models.
    again, cached = run(client, prompt)
    assert sampled(cached)
    assert again == first
    # The server forgets its models and results before or after the next prompt, as it happens.
    client.request("/free", {"unload_models": True, "free_memory": True})
    anew, cached = run(client, prompt)
    if cached:
        anew, cached = run(client, prompt)
    assert cached == []
    assert anew == first


def test_nothing_new_is_not_run(client: Client, prompt: dict[str, Any]) -> None:
    first, _ = run(client, prompt)
    again, cached = run(client, prompt)
    assert sorted(cached) == sorted(node["class_type"] for node in prompt.values())
    assert again == first


@pytest.mark.parametrize("prompt", SAMPLE, indirect=True)
def test_text_and_batch_reach_the_model(client: Client, prompt: dict[str, Any]) -> None:
    """Steps and CFG are the stock sampler's own inputs."""
    first, _ = run(client, prompt)
    more = BATCH + 1
    changed = with_values(prompt, {"text": "a small green fish", "batch_size": more})
    for node in changed.values():
        if "keep" in node["inputs"]:
            node["inputs"]["keep"] = more
    other, _ = run(client, changed)
    assert len(other) == more
    assert not set(pixels(other)) & set(pixels(first))
