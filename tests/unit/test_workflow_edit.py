"""Editing a prompt by its links: the right node gets the value whatever its number, anything else is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from devtools.graph import nearest, only_for, only_node, with_settings, with_values


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


PLAIN = {
    "9": node("CLIPTextEncode", text="unwanted", clip=["5", 1]),
    "5": node("DiversityLoadDemoWorld"),
    "2": node("CLIPTextEncode", text="a heart", clip=["5", 1]),
    "4": node("EmptySD3LatentImage", width=128, height=128, batch_size=10),
    "1": node(
        "KSampler",
        seed=1,
        steps=20,
        cfg=6.0,
        model=["5", 0],
        positive=["2", 0],
        negative=["9", 0],
        latent_image=["4", 0],
    ),
    "7": node("VAEDecode", samples=["1", 0], vae=["8", 0]),
    "8": node("VAELoader", vae_name="x"),
    "6": node("SaveImage", images=["7", 0], filename_prefix="a"),
}
CUSTOM = {
    "1": node(
        "SamplerCustomAdvanced",
        noise=["2", 0], guider=["3", 0], sampler=["4", 0], sigmas=["5", 0], latent_image=["6", 0],
    ),
    "2": node("RandomNoise", noise_seed=1),
    "3": node("CFGGuider", model=["7", 0], positive=["8", 0], negative=["9", 0], cfg=6.0),
    "4": node("KSamplerSelect", sampler_name="euler"),
    "5": node("BasicScheduler", model=["7", 0], scheduler="simple", steps=20, denoise=1.0),
    "6": node("EmptySD3LatentImage", width=128, height=128, batch_size=10),
    "7": node("UNETLoader", unet_name="x", weight_dtype="default"),
    "8": node("ConditioningCombine", conditioning_1=["10", 0], conditioning_2=["9", 0]),
    "9": node("CLIPTextEncode", text="unwanted"),
    "10": node("CLIPTextEncode", text="a heart"),
    "11": node("SaveImage", images=["1", 0], filename_prefix="a"),
}  # fmt: skip
VALUES = {"text": "a star", "seed": 5, "cfg": 3.0, "steps": 4, "batch_size": 2, "filename_prefix": "b"}


def test_plain_sampler() -> None:
    edited = with_values(PLAIN, VALUES)
    assert edited["2"]["inputs"]["text"] == "a star"
    assert edited["9"]["inputs"]["text"] == "unwanted"
    assert [edited["1"]["inputs"][name] for name in ("seed", "cfg", "steps")] == [5, 3.0, 4]
    assert edited["4"]["inputs"]["batch_size"] == 2
    assert edited["6"]["inputs"]["filename_prefix"] == "b"


def test_custom_sampler() -> None:
    edited = with_values(CUSTOM, VALUES)
    assert edited["10"]["inputs"]["text"] == "a star"
    assert edited["9"]["inputs"]["text"] == "unwanted"
    assert edited["2"]["inputs"]["noise_seed"] == 5
    assert edited["3"]["inputs"]["cfg"] == 3.0
    assert edited["5"]["inputs"]["steps"] == 4
    assert edited["6"]["inputs"]["batch_size"] == 2


def test_nothing_else_changes() -> None:
    before = copy.deepcopy(PLAIN)
    edited = with_values(PLAIN, {"seed": 5})
    assert before == PLAIN
    edited["1"]["inputs"]["seed"] = 1
    assert edited == PLAIN


def test_settings_of_one_node() -> None:
    edited = with_settings(PLAIN, {"EmptySD3LatentImage.width": 64})
    assert edited["4"]["inputs"]["width"] == 64
    assert PLAIN["4"]["inputs"]["width"] == 128


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"EmptySD3LatentImage.depth": 1}, "may be given width, height, batch_size"),
        ({"KSampler.model": 1}, "may be given seed, steps, cfg"),
        ({"NoSuchNode.width": 1}, "0 nodes of type NoSuchNode"),
        ({"CLIPTextEncode.text": "x"}, "2 nodes of type CLIPTextEncode"),
    ],
)
def test_refuses_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_settings(PLAIN, settings)


def test_refuses_unknown_values() -> None:
    with pytest.raises(ValueError, match="values has 'sigma'; it may have text, seed"):
        with_values(PLAIN, {"sigma": 1})


def test_refuses_what_nothing_holds() -> None:
    broken = copy.deepcopy(PLAIN)
    broken["2"]["inputs"]["text"] = ["5", 1]
    with pytest.raises(ValueError, match="holds text or prompt"):
        with_values(broken, {"text": "a star"})
    del broken["1"]["inputs"]["positive"]
    with pytest.raises(ValueError, match="linked to positive"):
        with_values(broken, {"text": "a star"})


def two_bands() -> dict[str, Any]:
    """One prompt and one seed for two samplers, of which one gets its prompt from a node with a seed of its own."""
    shared = {"10": node("PrimitiveStringMultiline", value="a heart"), "11": node("PrimitiveInt", value=1)}
    own = node("DiversityDiversify", text=["10", 0], seed=0, model=["5", 0], clip=["5", 1], strength=0.5)
    plain = copy.deepcopy(PLAIN)
    plain["2"]["inputs"]["text"] = ["10", 0]
    plain["1"]["inputs"]["seed"] = ["11", 0]
    second = copy.deepcopy(plain["1"])
    second["inputs"] |= {"model": ["12", 0], "positive": ["12", 1]}
    bands = {"12": own, "20": second, "21": node("PreviewImage", images=["20", 0])}
    return {**plain, **shared, **bands}


def test_two_samplers_get_the_same() -> None:
    edited = with_values(two_bands(), VALUES)
    assert edited["10"]["inputs"]["value"] == "a star"
    assert edited["11"]["inputs"]["value"] == 5
    assert edited["12"]["inputs"]["seed"] == 0
    for sampler in ("1", "20"):
        assert [edited[sampler]["inputs"][name] for name in ("cfg", "steps")] == [3.0, 4]


def test_part_of_a_prompt() -> None:
    prompt = two_bands()
    assert only_for(prompt, "6").keys() == prompt.keys() - {"12", "20", "21"}
    assert only_for(prompt, "21").keys() == prompt.keys() - {"1", "2", "6", "7", "8"}


def test_refuses_a_prompt_without_sampler() -> None:
    with pytest.raises(ValueError, match="no node of type KSampler"):
        with_values({"5": PLAIN["5"]}, {"seed": 1})


def test_refuses_two_where_one_is_meant() -> None:
    with pytest.raises(ValueError, match="has 2 nodes"):
        only_node({**PLAIN, "20": PLAIN["1"]}, ("KSampler",))


def test_nearest_goes_round_a_loop_once() -> None:
    loop = {"1": node("A", x=["2", 0]), "2": node("B", x=["1", 0])}
    with pytest.raises(ValueError, match="holds seed"):
        nearest(loop, "1", ("seed",))
