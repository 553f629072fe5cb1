"""The nodes of diverse noise: every way to the sampler gives the same images, and one image can be made again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.sample
import comfy.samplers
import comfy_extras.nodes_post_processing  # noqa: F401 - nodes_latent needs it to be imported first (0.33)
import pytest
import torch
from comfy_api.internal import lock_class
from comfy_extras.nodes_custom_sampler import DisableNoise, RandomNoise, SamplerCustom, SamplerCustomAdvanced
from comfy_extras.nodes_latent import LatentBatchSeedBehavior
from comfyui_diversity.core.drivers.cno import ContrastiveNoise
from comfyui_diversity.core.hooks.sampling import with_noise_change
from comfyui_diversity.core.methods.cno import RECOMMENDED, Settings, published
from comfyui_diversity.nodes.cno import DiverseNoise, DiverseNoiseForCustomSampler, DiverseNoiseToLatent
from comfyui_diversity.nodes.cno_options import DiverseNoiseOptions
from comfyui_diversity.nodes.kept_noise import KeptNoiseForCustomSampler, UseKeptNoise
from small.models import FAMILIES, Counter, conditioning, small_model
from torch import Tensor

SETTINGS: dict[str, Any] = {"strength": 0.5, "iterations": 3, "mode": "recommended"}
SEED, BATCH, STEPS, CFG = 7, 4, 3, 3.0
both_kinds = pytest.mark.parametrize("family", [pytest.param("eps", marks=pytest.mark.fast), "sd3"])


class Graph:
    """What the stock nodes around ours hold."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.model = small_model(family)
        self.positive, self.negative = conditioning(family), conditioning(family, seed=1)
        self.guider = comfy.samplers.CFGGuider(self.model)
        self.guider.set_conds(self.positive, self.negative)
        self.guider.set_cfg(CFG)
        self.sampler = comfy.samplers.sampler_object("euler")
        self.sigmas = comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "simple", STEPS)
        self.noise = RandomNoise.execute(SEED).args[0]

    def empty(self, batch: int = BATCH) -> dict[str, Any]:
        return {"samples": torch.zeros(batch, *FAMILIES[self.family].latent)}

    def advanced(self, noise: Any, latent: dict[str, Any] | None = None) -> Tensor:
        """SamplerCustomAdvanced."""
        latent = self.empty() if latent is None else latent
        with torch.inference_mode():
            out = SamplerCustomAdvanced.execute(noise, self.guider, self.sampler, self.sigmas, latent)
        return out.args[0]["samples"]

    def simple(self, model: Any, latent: dict[str, Any] | None = None, seed: int = SEED) -> Tensor:
        """KSampler."""
        latent = self.empty() if latent is None else latent
        with torch.inference_mode():
            noise = comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))
            return comfy.sample.sample(
                model,
                noise,
                STEPS,
                CFG,
                "euler",
                "simple",
                self.positive,
                self.negative,
                latent["samples"],
                noise_mask=latent.get("noise_mask"),
                disable_pbar=True,
                seed=seed,
            )

    def optimised(self, latent: dict[str, Any] | None = None) -> dict[str, Any]:
        latent = self.empty() if latent is None else latent
        with torch.inference_mode():
            return DiverseNoiseToLatent.execute(self.noise, self.guider, self.sigmas, latent, **SETTINGS).args[0]

    def as_noise(self, batch_size: int = -1, **changed: Any) -> Any:
        settings = {**SETTINGS, **changed}
        node = DiverseNoiseForCustomSampler
        return node.execute(self.noise, self.guider, self.sigmas, batch_size=batch_size, **settings).args[0]

    def on_model(self, **changed: Any) -> Any:
        return DiverseNoise.execute(self.model, **{**SETTINGS, **changed}).args[0]


def cut(latent: dict[str, Any], image: int, length: int = 1) -> dict[str, Any]:
    """Latent From Batch."""
    chosen = slice(image, image + length)
    return {
        "samples": latent["samples"][chosen].clone(),
        "batch_index": list(latent.get("batch_index", range(len(latent["samples"]))))[chosen],
    }


# --- every way gives the same images -------------------------------------------------------------------------------


@both_kinds
def test_five_ways_one_result(family: str) -> None:
    graph = Graph(family)
    expected = graph.simple(graph.on_model())
    assert not torch.equal(expected, graph.simple(graph.model))
    kept = graph.optimised()
    assert torch.equal(graph.advanced(graph.as_noise()), expected)
    assert torch.equal(graph.advanced(KeptNoiseForCustomSampler.execute(kept, SEED).args[0]), expected)
    assert torch.equal(graph.simple(UseKeptNoise.execute(graph.model, kept).args[0], seed=99), expected)
    with torch.inference_mode():
        custom = SamplerCustom.execute(
            graph.on_model(),
            True,
            SEED,
            CFG,
            graph.positive,
            graph.negative,
            graph.sampler,
            graph.sigmas,
            graph.empty(),
        )
    assert torch.equal(custom.args[0]["samples"], expected)


def test_the_same_with_an_image_and_a_mask() -> None:
    graph = Graph("sd3")
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :9] = 1
    image = {"samples": torch.randn(BATCH, *FAMILIES["sd3"].latent, generator=torch.Generator().manual_seed(1))}
    latent = {**image, "noise_mask": mask}
    expected = graph.simple(graph.on_model(), latent)
    assert torch.equal(graph.advanced(graph.as_noise(), latent), expected)
    assert torch.equal(
        graph.simple(UseKeptNoise.execute(graph.model, graph.optimised(latent)).args[0], latent), expected
    )


def test_a_guider_of_the_patched_model_changes_the_noise_once() -> None:
    """Its own patch stands back while the noise node optimises."""
    graph = Graph("eps")
    once = graph.optimised()["samples"]
    graph.guider.model_patcher = graph.on_model(strength=1.5)
    graph.guider.model_options = graph.guider.model_patcher.model_options
    assert torch.equal(graph.optimised()["samples"], once)


def test_the_noise_object_and_the_guider_keep_nothing() -> None:
    """The executor hands the same objects to every run."""
    graph = Graph("eps")
    noise = graph.as_noise()
    before = {name: id(value) for name, value in vars(graph.guider).items()}
    first, second = (noise.generate_noise(graph.empty()) for _ in range(2))
    assert torch.equal(first, second)
    assert {name: id(value) for name, value in vars(graph.guider).items()} == before
    assert noise.seed == SEED
    assert first.device.type == "cpu"


def test_a_batch_of_equal_noises_is_refused() -> None:
    graph = Graph("eps")
    fixed = LatentBatchSeedBehavior.execute(graph.empty(), "fixed").args[0]
    with pytest.raises(ValueError, match=r"Images 0 and 1 .* start from the same noise"):
        graph.advanced(graph.as_noise(), fixed)


# --- one image again -----------------------------------------------------------------------------------------------


@both_kinds
def test_an_image_alone_is_the_one_of_its_batch(family: str) -> None:
    """Up to rounding: a matrix product of one row rounds otherwise than one of four."""
    graph, image = Graph(family), 2
    expected = graph.simple(graph.on_model())[image : image + 1]
    latent, kept = cut(graph.empty(), image), graph.optimised()
    ways = {
        "noise": graph.advanced(graph.as_noise(batch_size=BATCH), latent),
        "kept noise": graph.advanced(KeptNoiseForCustomSampler.execute(kept, SEED).args[0], latent),
        "kept noise, cut": graph.advanced(KeptNoiseForCustomSampler.execute(cut(kept, image), SEED).args[0], latent),
        "model": graph.simple(UseKeptNoise.execute(graph.model, cut(kept, image)).args[0], latent),
    }
    for way, found in ways.items():
        assert torch.allclose(found, expected, atol=1e-3), way
    assert not torch.allclose(graph.simple(graph.model, latent), expected, atol=1e-2)


def test_noise_of_an_image_is_bitwise_its_noise_in_the_batch() -> None:
    graph = Graph("eps")
    whole = graph.as_noise().generate_noise(graph.empty())
    alone = graph.as_noise(batch_size=BATCH).generate_noise(cut(graph.empty(), 2))
    assert torch.equal(alone, whole[2:3])


def test_an_image_alone_of_a_batch_that_starts_from_images_and_masks() -> None:
    graph = Graph("eps")
    generator = torch.Generator().manual_seed(1)
    whole = {
        "samples": torch.randn(BATCH, *FAMILIES["eps"].latent, generator=generator),
        "noise_mask": (torch.rand(BATCH, 1, 16, 16, generator=generator) > 0.5).float(),
    }
    expected = graph.as_noise().generate_noise(whole)
    alone = {**cut(whole, 2), "noise_mask": whole["noise_mask"][2:3]}
    assert torch.equal(graph.as_noise(whole_batch=whole).generate_noise(alone), expected[2:3])
    assert torch.equal(graph.as_noise(batch_size=BATCH).generate_noise(whole), expected)
    order = [2, 0, 3, 1]
    mixed = {**{name: value[order] for name, value in whole.items()}, "batch_index": order}
    assert torch.equal(graph.as_noise(batch_size=BATCH).generate_noise(mixed), expected[order])
    with pytest.raises(ValueError, match="connect the latent of the whole batch to whole_batch"):
        graph.as_noise(batch_size=BATCH).generate_noise(alone)
    with pytest.raises(ValueError, match="connect the latent of the whole batch to whole_batch"):
        graph.as_noise(batch_size=BATCH).generate_noise({**cut(graph.empty(), 2), "noise_mask": alone["noise_mask"]})
    with pytest.raises(ValueError, match=r"holds image 2 \(counted from 0\); whole_batch holds \[0, 1\]"):
        graph.as_noise(whole_batch=cut(whole, 0, 2)).generate_noise(alone)
    with pytest.raises(ValueError, match="batch_size is 3; it must be -1"):
        graph.as_noise(batch_size=3, whole_batch=whole)


def test_a_part_of_a_batch_starts_from_its_own_seeds() -> None:
    """Without batch_size the images that the latent holds are optimised together, from the noise of their places."""
    graph = Graph("eps")
    part = cut(graph.empty(), 1, 2)
    weak = graph.as_noise(strength=1e-6).generate_noise(part)
    assert torch.allclose(weak, graph.noise.generate_noise(graph.empty())[1:3], atol=1e-4)


def test_latent_carries_its_places() -> None:
    graph = Graph("eps")
    assert graph.optimised()["batch_index"] == [0, 1, 2, 3]
    assert graph.optimised(cut(graph.empty(), 1, 2))["batch_index"] == [1, 2]


def test_an_image_without_kept_noise_is_named() -> None:
    graph = Graph("eps")
    kept = KeptNoiseForCustomSampler.execute(cut(graph.optimised(), 1, 2), SEED).args[0]
    with pytest.raises(ValueError, match=r"holds image 3 \(counted from 0\); noise was kept for \[1, 2\]"):
        kept.generate_noise(cut(graph.empty(), 3))
    with pytest.raises(ValueError, match="batch_size is 2, but the latent holds image 3"):
        graph.as_noise(batch_size=2).generate_noise(cut(graph.empty(), 3))
    with pytest.raises(ValueError, match="batch_size is 0; it must be 1 or more"):
        graph.as_noise(batch_size=0)


def test_kept_noise_of_another_shape_is_refused() -> None:
    graph, other = Graph("eps"), Graph("sd3")
    model = UseKeptNoise.execute(graph.model, other.optimised()).args[0]
    with pytest.raises(ValueError, match=r"shape \[4, 16, 16, 16\], but the sampler needs \[4, 4, 16, 16\]"):
        graph.simple(model)
    with pytest.raises(ValueError, match=r"shape \[3, 4, 16, 16\], but the sampler needs \[4, 4, 16, 16\]"):
        graph.advanced(KeptNoiseForCustomSampler.execute(cut(graph.optimised(), 0, 3), SEED).args[0])


def test_kept_noise_that_is_not_finite_is_refused() -> None:
    graph = Graph("eps")
    kept = graph.optimised()
    kept["samples"][1, 0, 0, 0] = float("nan")
    for sample in (
        lambda: graph.simple(UseKeptNoise.execute(graph.model, kept).args[0]),
        lambda: graph.advanced(KeptNoiseForCustomSampler.execute(kept, SEED).args[0]),
    ):
        with pytest.raises(ValueError, match="The kept noise has values that are not finite"):
            sample()


def test_an_empty_latent_gets_the_models_channels() -> None:
    """The stock empty latent has four channels, whatever the model."""
    graph = Graph("sd3")
    assert graph.optimised({"samples": torch.zeros(BATCH, 4, 16, 16)})["samples"].shape == (BATCH, 16, 16, 16)


def test_noise_and_sigmas_that_hold_nothing_are_refused() -> None:
    graph = Graph("eps")
    graph.noise = DisableNoise.execute().args[0]
    with pytest.raises(ValueError, match="noise is zero everywhere"):
        graph.optimised()
    graph = Graph("eps")
    graph.sigmas = graph.sigmas[:0]
    with pytest.raises(ValueError, match="sigmas is empty"):
        graph.optimised()


# --- settings --------------------------------------------------------------------------------------------------------


def options(**changed: Any) -> Any:
    return DiverseNoiseOptions.execute(**changed).args[0]


CHANGED: dict[str, Any] = {
    "pink": 0.5,
    "candidates": 4,
    "wide": 2.0,
    "gradient": "full",
    "denominator": "others",
    "temperature": 0.3,
    "window": 4,
    "gamma": 0.8,
    "projection": "off",
    "cells": 0,
}


@pytest.mark.parametrize(
    ("mode", "given", "settings"),
    [
        ("recommended", None, RECOMMENDED),
        ("published", None, published()),
        ("published", {"temperature": 0.3, "window": 4}, published(temperature=0.3, window=4)),
        (
            "recommended",
            {"denominator": "others", "gamma": 0.8},
            replace(RECOMMENDED, gamma=0.8, denominator="others"),
        ),
    ],
)
@pytest.mark.fast
def test_mode_and_options_are_the_methods_settings(mode: str, given: dict[str, Any] | None, settings: Settings) -> None:
    graph = Graph("eps")
    ours = graph.simple(graph.on_model(mode=mode, options=None if given is None else options(**given)))
    plain = with_noise_change(graph.model, "test", ContrastiveNoise(settings))
    assert torch.equal(ours, graph.simple(plain))


@pytest.mark.fast
def test_every_option_counts() -> None:
    """One of them at a time."""
    graph = Graph("eps")
    usual = graph.as_noise().generate_noise(graph.empty())
    for name, value in CHANGED.items():
        other = graph.as_noise(options=options(**{name: value})).generate_noise(graph.empty())
        assert not torch.allclose(other, usual, atol=1e-3), name
    counter = Counter()
    graph.simple(counter.on(graph.on_model(options=options(chunk_size=2))))
    assert counter.sizes == 2 * 3 * [2 * 2] + STEPS * [2 * BATCH]
    assert {*CHANGED, "chunk_size", "form", "terms"} == {
        widget.id for widget in DiverseNoiseOptions.GET_SCHEMA().inputs
    }


@pytest.mark.parametrize(
    ("mode", "given", "said"),
    [
        ("published", {"gradient": "full"}, "gradient is 'full'; it must be stop in published mode"),
        ("published", {"denominator": "others"}, "denominator is 'others'; it must be all or auto"),
        ("published", {"projection": "norm"}, "projection is 'norm'; it must be off or auto"),
        ("published", {"gamma": 1.0}, "gamma is 1.0; it must be auto"),
        ("published", {"cells": 4}, "cells is 4; it must be 0 or auto"),
        ("recommended", {"gamma": 0.0}, "gamma is 0.0; it must be above 0, or auto"),
    ],
)
def test_an_option_that_the_mode_does_not_have_is_refused(mode: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DiverseNoise.execute(None, 0.5, 3, mode, options(**given))


def test_options_of_another_method_are_refused_in_words() -> None:
    node = lock_class(DiverseNoise)  # as ComfyUI calls it
    assert node.validate_inputs({"model": "MODEL", "options": "DIVERSITY_CNO_OPTIONS"}) is True
    said = node.validate_inputs({"model": "MODEL", "options": "DIVERSITY_TPSO_OPTIONS"})
    assert isinstance(said, str)
    assert "another method's options node" in said
    said = node.validate_inputs({"model": "CLIP"})
    assert isinstance(said, str)
    assert "must be MODEL" in said
