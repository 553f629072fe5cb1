"""Rarest First: which order, what follows it, what it costs, and what it leaves behind."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_diversity.core.drivers.minority import to_learn, with_learning
from comfyui_diversity.core.drivers.minority_learning import Learning
from comfyui_diversity.core.drivers.rarity import rarity_of
from comfyui_diversity.core.hooks.sampling import with_noise_change
from comfyui_diversity.core.methods.minority import Estimates, Settings, minority
from comfyui_diversity.nodes.rarest import RarestFirst
from small.encoders import small_encoder
from small.models import Counter, cancelling, conditioning, random_latent, small_model
from torch import Tensor

COUNT = 4
OPTIONS: dict[str, Any] = {"seed": 0, "top": 0, "renoise": 0.5, "noises": 2, "chunk_size": -1}


@pytest.fixture(scope="module")
def model() -> Any:
    return small_model("eps")


def images(family: str = "eps", count: int = COUNT) -> dict[str, Any]:
    return {"samples": random_latent(family, count, seed=3)}


@torch.inference_mode()
def rarest(model: Any, latent: dict[str, Any], family: str = "eps", **changed: Any) -> tuple[dict[str, Any], str]:
    """The node's outputs."""
    positive = changed.pop("positive", None) or conditioning(family)
    return RarestFirst.execute(model, positive, latent, **{**OPTIONS, **changed}).args


@torch.inference_mode()
def values_of(model: Any, latent: dict[str, Any], family: str = "eps", **changed: Any) -> Tensor:
    return rarity_of(model, conditioning(family), latent, **{"seed": 0, "noises": 2, **changed})


def test_widgets_keep_their_order() -> None:
    inputs = RarestFirst.GET_NODE_INFO_V1()["input"]["required"]
    assert list(inputs) == ["model", "positive", "latent", *OPTIONS]
    assert [name for name, entry in inputs.items() if entry[1].get("advanced")] == ["renoise", "noises", "chunk_size"]
    assert inputs["seed"][1]["control_after_generate"] is False
    assert all(entry[1].get("tooltip") for entry in inputs.values())


# --- the value --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [pytest.param("eps", marks=pytest.mark.fast), "auraflow"])
def test_the_value_is_that_of_the_objective(family: str) -> None:
    """By hand: ComfyUI's own sampling of one step from the image, noised to this level, and its estimate."""
    model, latent = small_model(family), images(family, 2)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(family), conditioning(family, seed=1))
    guider.set_cfg(1.0)
    sampling = model.get_model_object("model_sampling")
    sigmas = torch.tensor([float(sampling.percent_to_sigma(0.5)), 0.0])
    expected = torch.zeros(2)
    for seed in (7, 8):
        noise = torch.randn(latent["samples"].shape[1:], generator=torch.Generator().manual_seed(seed))
        noise = noise.expand_as(latent["samples"]).clone()
        with torch.inference_mode():
            # One step of Euler to zero ends at the estimate.
            sampler = comfy.samplers.sampler_object("euler")
            renoised = guider.sample(noise, latent["samples"], sampler, sigmas, disable_pbar=True, seed=0)
        clean, renoised = (model.model.process_latent_in(one.clone()) for one in (latent["samples"], renoised))
        expected += (
            minority(Estimates(clean, lambda _, renoised=renoised: (renoised, lambda gradient: gradient))).detach() / 2
        )
    # Both terms of the objective have the same length, and the mean is over two noises.
    found = values_of(model, latent, family, seed=7, renoise=0.5)
    assert torch.allclose(found.float(), expected / 2, rtol=1e-3)


def test_a_image_has_its_value_whatever_the_batch(model: Any) -> None:
    whole, latent = values_of(model, images()), images()["samples"]
    for k in range(COUNT):
        assert values_of(model, {"samples": latent[k : k + 1]}).item() == pytest.approx(whole[k].item(), rel=1e-5)


def test_only_the_masked_part_counts(model: Any) -> None:
    latent = images()
    mask = torch.zeros(1, 1, 16, 16)
    assert values_of(model, {**latent, "noise_mask": mask}).tolist() == [0.0] * COUNT
    mask[..., :8] = 1
    half, whole = values_of(model, {**latent, "noise_mask": mask}), values_of(model, latent)
    assert (half > 0).all()
    assert (half < whole).all()


def test_each_image_is_measured_under_its_own_row_of_the_conditioning(model: Any) -> None:
    latent, [[rows, extras]] = images(), conditioning("eps", COUNT)
    own = [[rows[2:3], extras]]
    with torch.inference_mode():
        whole = rarity_of(model, [[rows, extras]], latent, 0, chunk_size=1)
        alone = rarity_of(model, own, {"samples": latent["samples"][2:3]}, 0)
    assert whole[2].item() == pytest.approx(alone.item(), rel=1e-5)


# --- the order --------------------------------------------------------------------------------------------------------


def test_images_places_and_masks_follow_the_values(model: Any) -> None:
    latent: dict[str, Any] = {
        **images(),
        "batch_index": [5, 6, 7, 8],
        "noise_mask": torch.rand(COUNT, 1, 16, 16),
        "kept": "as it is",
    }
    order = values_of(model, latent).argsort(descending=True).tolist()
    assert order != sorted(order)
    found, report = rarest(model, latent)
    assert torch.equal(found["samples"], latent["samples"][order])
    assert torch.equal(found["noise_mask"], latent["noise_mask"][order])
    assert found["batch_index"] == [5 + k for k in order]
    assert found["kept"] == "as it is"
    lines = report.splitlines()
    assert lines[0] == "Rarest first: 4 of 4 images (counted from 0)"
    assert [int(line.split("image ")[1].split(":")[0]) for line in lines[1:]] == order


def test_a_mask_for_all_stays_and_a_latent_without_places_gets_them(model: Any) -> None:
    mask = torch.ones(1, 1, 16, 16)
    found, _ = rarest(model, {**images(), "noise_mask": mask})
    assert found["noise_mask"] is mask
    assert sorted(found["batch_index"]) == list(range(COUNT))


def test_top_keeps_the_first(model: Any) -> None:
    whole, _ = rarest(model, images())
    found, report = rarest(model, images(), top=2)
    assert torch.equal(found["samples"], whole["samples"][:2])
    assert found["batch_index"] == whole["batch_index"][:2]
    assert report.startswith("Rarest first: 2 of 4 images")


@pytest.mark.parametrize("chunk_size", [-1, 3])
def test_equal_images_stay_in_their_order_and_chunks_change_nothing(model: Any, chunk_size: int) -> None:
    # A model with random weights tells images apart by little.
    samples = 10 * images()["samples"][[0, 1, 0, 1, 0]]
    places = rarest(model, {"samples": samples}, chunk_size=chunk_size)[0]["batch_index"]
    assert places in ([0, 2, 4, 1, 3], [1, 3, 0, 2, 4])
    assert rarest(model, {"samples": samples}, chunk_size=chunk_size)[1] == rarest(model, {"samples": samples})[1]


def test_one_image_says_so(model: Any) -> None:
    latent = images(count=1)
    found, report = rarest(model, latent)
    assert torch.equal(found["samples"], latent["samples"])
    assert "there is nothing to sort" in report


# --- cost, and what must not change -----------------------------------------------------------------------------------


def test_one_forward_pass_a_noise(model: Any) -> None:
    counter = Counter()
    rarest(counter.on(model), images(), noises=3)
    assert counter.sizes == [COUNT] * 3


def test_same_seed_same_report_and_nothing_given_is_changed(model: Any) -> None:
    latent = images()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = rarest(model, latent)[1]
    assert torch.equal(torch.rand(1), expected)
    assert first == rarest(model, latent)[1]
    assert first != rarest(model, latent, seed=9)[1]
    assert torch.equal(latent["samples"], images()["samples"])
    assert list(latent) == ["samples"]


def test_models_of_the_packs_other_nodes_are_measured_as_they_are(model: Any) -> None:
    """Neither is noise optimised nor a token learned, and a conditioning that carries one is the plain prompt."""
    latent, clip = images(), small_encoder("sd1")
    with torch.inference_mode():
        plain = clip.encode_from_tokens_scheduled(clip.tokenize("a red fish"))
        learning = to_learn(Learning(clip, "a red fish", Settings(1, 0.5)))
    noise = with_noise_change(model, "noise", lambda run: run.noise + 1)
    expected = rarest(model, latent, positive=plain)[1]
    assert rarest(noise, latent, positive=plain)[1] == expected
    assert rarest(with_learning(model), latent, positive=learning)[1] == expected


def test_fewer_images_at_once_when_memory_runs_out(model: Any) -> None:
    sizes = []

    def small_memory(executor: Any, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        sizes.append(len(x))
        if len(x) > 2:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return executor(x, *rest, **named)

    small = model.clone()
    small.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "small memory", small_memory)
    assert rarest(small, images())[1] == rarest(model, images())[1]
    assert sizes == [4, 2, 2, 4, 2, 2]


def test_cancel_ends_it(model: Any) -> None:
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        rarest(cancelling(model), images())
    assert rarest(model, images())[1] == rarest(model, images())[1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"top": 5}, "top is 5; it must be from 0"),
        ({"renoise": 0.0}, "renoise is 0"),
        ({"noises": 0}, "noises is 0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_what_is_not_allowed_is_said(model: Any, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rarest(model, images(), **changed)


def test_a_latent_without_images_is_said(model: Any) -> None:
    with pytest.raises(ValueError, match="latent is empty"):
        rarest(model, {"samples": torch.zeros(2, 4, 16, 16)})
