"""Keep the Best: what is kept and why, what follows it, what it costs, and what it leaves behind."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import pytest
import torch
from comfyui_diversity.core.drivers.rarity import rarity_of
from comfyui_diversity.core.drivers.selection import select
from comfyui_diversity.core.hooks.sampling import with_noise_change
from comfyui_diversity.core.methods.selection import keepers
from comfyui_diversity.nodes.keep import KeepBest
from comfyui_diversity.nodes.rarest import RarestFirst
from small.models import Counter, cancelling, conditioning, random_latent, small_model

COUNT = 5
SHOWN: dict[str, Any] = {"keep": 3, "drop": 0.2}
ADVANCED: dict[str, Any] = {"seed": 0, "renoise": 0.5, "noises": 2, "chunk_size": -1}


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model("eps")


def images(family: str = "eps", count: int = COUNT) -> dict[str, Any]:
    samples = random_latent(family, count, seed=3)
    # A model with random weights tells images of one size apart by little.
    sizes = torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0])[:count]
    return {"samples": samples * sizes.reshape(-1, *[1] * (samples.ndim - 1))}


@torch.inference_mode()
def kept(model: Any, latent: dict[str, Any], family: str = "eps", **changed: Any) -> tuple[dict[str, Any], str]:
    """The node's outputs."""
    return KeepBest.execute(model, conditioning(family), latent, **{**SHOWN, **ADVANCED, **changed}).args


def test_widgets_keep_their_order() -> None:
    inputs = KeepBest.GET_NODE_INFO_V1()["input"]["required"]
    assert list(inputs) == ["model", "positive", "latent", *SHOWN, *ADVANCED]
    assert [name for name, entry in inputs.items() if entry[1].get("advanced")] == list(ADVANCED)
    assert inputs["seed"][1]["control_after_generate"] is False
    assert all(entry[1].get("tooltip") for entry in inputs.values())


@pytest.mark.parametrize("family", [pytest.param("eps", marks=pytest.mark.fast), "auraflow", "wan"])
def test_the_worst_go_and_of_the_rest_those_that_are_alike(family: str) -> None:
    model, latent = small_model(family), images(family)
    with torch.inference_mode():
        values = rarity_of(model, conditioning(family), latent, 0, renoise=0.5, noises=2)
    found, report = kept(model, latent, family)
    worst = int(values.argmax())
    places = found["batch_index"]
    assert worst not in places
    # Latents of this size are compared as they are.
    expected = keepers(values.tolist(), latent["samples"].flatten(1), 3, 0.2)
    assert places == expected
    assert torch.equal(found["samples"], latent["samples"][expected])
    [alike] = set(range(COUNT)) - {worst, *places}
    assert report.splitlines() == [
        f"Kept 3 of 5 images (counted from 0): {', '.join(map(str, places))}",
        f"Dropped as badly made: {worst}",
        f"Dropped as too like others: {alike}",
    ]


def test_without_a_drop_the_one_that_is_twice_there_goes(model: Any) -> None:
    samples = images()["samples"][[0, 1, 2, 1]]
    found, report = kept(model, {"samples": samples}, drop=0.0)
    assert found["batch_index"] in ([0, 1, 2], [0, 2, 3])
    assert "badly made" not in report


def test_it_keeps_the_other_end_of_rarest_first(model: Any) -> None:
    latent = images()
    with torch.inference_mode():
        options = {"seed": 4, "renoise": 0.5, "noises": 2, "chunk_size": -1}
        order = RarestFirst.execute(model, conditioning("eps"), latent, top=0, **options).args[0]["batch_index"]
    for keep in (1, 2, 3, 4):
        found = kept(model, latent, keep=keep, drop=0.9, seed=4)[0]["batch_index"]
        assert found == sorted(order[-keep:])


def test_masks_and_places_follow(model: Any) -> None:
    mask = torch.rand(COUNT, 1, 16, 16)
    latent: dict[str, Any] = {**images(), "batch_index": [5, 6, 7, 8, 9], "noise_mask": mask, "kept": "as it is"}
    found, _ = kept(model, latent)
    order = [place - 5 for place in found["batch_index"]]
    assert torch.equal(found["samples"], latent["samples"][order])
    assert torch.equal(found["noise_mask"], mask[order])
    assert found["kept"] == "as it is"


def test_all_are_kept_without_a_look_and_it_is_said(model: Any) -> None:
    counter, latent = Counter(), images()
    found, report = kept(counter.on(model), latent, keep=COUNT)
    assert counter.sizes == []
    assert torch.equal(found["samples"], latent["samples"])
    assert report == "All 5 images are kept, so nothing was measured: make more than keep."


def test_one_forward_pass_a_noise(model: Any) -> None:
    counter = Counter()
    kept(counter.on(model), images(), noises=3)
    assert counter.sizes == [COUNT] * 3


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_chunks_change_nothing(model: Any, chunk_size: int) -> None:
    assert kept(model, images(), chunk_size=chunk_size)[1] == kept(model, images())[1]


def test_same_seed_same_choice_and_nothing_given_is_changed(model: Any) -> None:
    latent = images()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = kept(model, latent)[1]
    assert torch.equal(torch.rand(1), expected)
    assert first == kept(model, latent)[1]
    assert torch.equal(latent["samples"], images()["samples"])
    assert list(latent) == ["samples"]


def test_the_seed_is_that_of_the_measure(model: Any) -> None:
    with torch.inference_mode():
        one, two = (select(model, conditioning("eps"), images(), 3, seed=seed).rarity for seed in (0, 9))
    assert one != two


def test_a_model_whose_noise_another_node_moves_is_measured_as_it_is(model: Any) -> None:
    moved = with_noise_change(model, "noise", lambda run: run.noise + 1)
    assert kept(moved, images())[1] == kept(model, images())[1]


def test_cancel_ends_it(model: Any) -> None:
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        kept(cancelling(model), images())
    assert kept(model, images())[1] == kept(model, images())[1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"keep": 6}, "keep is 6; it must be from 1 to the 5 images of this latent"),
        ({"keep": 0}, "keep is 0"),
        ({"drop": 1.0}, "drop is 1"),
        ({"renoise": 0.0}, "renoise is 0"),
        ({"noises": 0}, "noises is 0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_what_is_not_allowed_is_said(model: Any, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kept(model, images(), **changed)


def test_a_latent_without_images_is_said(model: Any) -> None:
    with pytest.raises(ValueError, match="latent is empty"):
        kept(model, {"samples": torch.zeros(4, 4, 16, 16)})
