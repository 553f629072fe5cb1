"""The nodes of diverse noise: every way to the sampler gives the same pictures, and one picture can be made again."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import DisableNoise, RandomNoise, SamplerCustom, SamplerCustomAdvanced
from comfyui_diversity.core.methods.cno import Settings
from comfyui_diversity.nodes import NODES
from comfyui_diversity.nodes.cno import (
    DiverseNoise,
    DiverseNoiseLatent,
    DiverseNoiseModel,
)
from comfyui_diversity.nodes.kept_noise import NoiseFromLatent, UseNoise
from small.models import FAMILIES, conditioning, small_model
from torch import Tensor

OPTIONS: dict[str, Any] = {
    "strength": 0.5,
    "iterations": 3,
    "gradient": "stop",
    "denominator": "all",
    "temperature": 0.1,
    "window": 16,
    "gamma": 0.0,
    "projection": "norm",
    "chunk": 0,
}
SEED, BATCH, STEPS, CFG = 7, 4, 3, 3.0
both_kinds = pytest.mark.parametrize("family", ["eps", "sd3"])


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

    def optimised(self, latent: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
        latent = self.empty() if latent is None else latent
        options = {**OPTIONS, **changed}
        with torch.inference_mode():
            return DiverseNoiseLatent.execute(self.noise, self.guider, self.sigmas, latent, **options).args[0]

    def as_noise(self, batch_size: int = 0, **changed: Any) -> Any:
        options = {**OPTIONS, **changed}
        return DiverseNoise.execute(self.noise, self.guider, self.sigmas, batch_size=batch_size, **options).args[0]

    def on_model(self, **changed: Any) -> Any:
        return DiverseNoiseModel.execute(self.model, **{**OPTIONS, **changed}).args[0]


def cut(latent: dict[str, Any], picture: int, length: int = 1) -> dict[str, Any]:
    """Latent From Batch."""
    chosen = slice(picture, picture + length)
    return {
        "samples": latent["samples"][chosen].clone(),
        "batch_index": list(latent.get("batch_index", range(len(latent["samples"]))))[chosen],
    }


# --- every way gives the same pictures -------------------------------------------------------------------------------


@both_kinds
def test_five_ways_one_result(family: str) -> None:
    graph = Graph(family)
    expected = graph.simple(graph.on_model())
    assert not torch.equal(expected, graph.simple(graph.model))
    kept = graph.optimised()
    assert torch.equal(graph.advanced(graph.as_noise()), expected)
    assert torch.equal(graph.advanced(NoiseFromLatent.execute(kept, SEED).args[0]), expected)
    assert torch.equal(graph.simple(UseNoise.execute(graph.model, kept).args[0], seed=99), expected)
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


@both_kinds
def test_the_same_with_a_picture_and_a_mask(family: str) -> None:
    graph = Graph(family)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :9] = 1
    picture = {"samples": torch.randn(BATCH, *FAMILIES[family].latent, generator=torch.Generator().manual_seed(1))}
    latent = {**picture, "noise_mask": mask}
    expected = graph.simple(graph.on_model(), latent)
    assert torch.equal(graph.advanced(graph.as_noise(), latent), expected)
    assert torch.equal(graph.simple(UseNoise.execute(graph.model, graph.optimised(latent)).args[0], latent), expected)


def test_a_guider_of_the_patched_model_changes_the_noise_once() -> None:
    """Its own patch stands back while the noise node optimises."""
    graph = Graph("eps")
    once = graph.optimised()["samples"]
    graph.guider.model_patcher = graph.on_model(strength=1.5)
    graph.guider.model_options = graph.guider.model_patcher.model_options
    assert torch.equal(graph.optimised()["samples"], once)


def test_switched_off_is_the_noise_itself() -> None:
    graph = Graph("eps")
    assert torch.equal(graph.advanced(graph.as_noise(iterations=0)), graph.advanced(graph.noise))


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


# --- one picture again -----------------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("picture", [0, 2])
def test_a_picture_alone_is_the_one_of_its_batch(family: str, picture: int) -> None:
    """Up to rounding: a matrix product of one row rounds otherwise than one of four."""
    graph = Graph(family)
    expected = graph.simple(graph.on_model())[picture : picture + 1]
    latent, kept = cut(graph.empty(), picture), graph.optimised()
    ways = {
        "noise": graph.advanced(graph.as_noise(batch_size=BATCH), latent),
        "kept noise": graph.advanced(NoiseFromLatent.execute(kept, SEED).args[0], latent),
        "kept noise, cut": graph.advanced(NoiseFromLatent.execute(cut(kept, picture), SEED).args[0], latent),
        "model": graph.simple(UseNoise.execute(graph.model, cut(kept, picture)).args[0], latent),
    }
    for way, found in ways.items():
        assert torch.allclose(found, expected, atol=1e-3), way
    assert not torch.allclose(graph.simple(graph.model, latent), expected, atol=1e-2)


def test_noise_of_a_picture_is_bitwise_its_noise_in_the_batch() -> None:
    graph = Graph("eps")
    whole = graph.as_noise().generate_noise(graph.empty())
    alone = graph.as_noise(batch_size=BATCH).generate_noise(cut(graph.empty(), 2))
    assert torch.equal(alone, whole[2:3])


def test_a_part_of_a_batch_starts_from_its_own_seeds() -> None:
    """Without batch_size the pictures that the latent holds are optimised together, from the noise of their places."""
    graph = Graph("eps")
    part = cut(graph.empty(), 1, 2)
    weak = graph.as_noise(strength=1e-6).generate_noise(part)
    assert torch.allclose(weak, graph.noise.generate_noise(graph.empty())[1:3], atol=1e-4)


def test_latent_carries_its_places() -> None:
    graph = Graph("eps")
    assert graph.optimised()["batch_index"] == [0, 1, 2, 3]
    assert graph.optimised(cut(graph.empty(), 1, 2))["batch_index"] == [1, 2]


def test_a_picture_without_kept_noise_is_named() -> None:
    graph = Graph("eps")
    kept = NoiseFromLatent.execute(cut(graph.optimised(), 1, 2), SEED).args[0]
    with pytest.raises(ValueError, match=r"holds image 3 \(counted from 0\); noise was kept for \[1, 2\]"):
        kept.generate_noise(cut(graph.empty(), 3))
    with pytest.raises(ValueError, match="batch_size is 2, but the latent holds image 3"):
        graph.as_noise(batch_size=2).generate_noise(cut(graph.empty(), 3))


def test_kept_noise_of_another_shape_is_refused() -> None:
    graph, other = Graph("eps"), Graph("sd3")
    model = UseNoise.execute(graph.model, other.optimised()).args[0]
    with pytest.raises(ValueError, match=r"shape \[4, 16, 16, 16\], but the sampler needs \[4, 4, 16, 16\]"):
        graph.simple(model)
    with pytest.raises(ValueError, match=r"shape \[3, 4, 16, 16\], but the sampler needs \[4, 4, 16, 16\]"):
        graph.advanced(NoiseFromLatent.execute(cut(graph.optimised(), 0, 3), SEED).args[0])


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


# --- schema ----------------------------------------------------------------------------------------------------------


def widgets(node: Any) -> dict[str, dict[str, Any]]:
    given = node.GET_NODE_INFO_V1()["input"]
    return {name: entry[1] for name, entry in {**given["required"], **given.get("optional", {})}.items()}


@pytest.mark.parametrize("node", [DiverseNoiseModel, DiverseNoise, DiverseNoiseLatent])
def test_one_knob_in_plain_sight_and_the_defaults_are_the_methods(node: Any) -> None:
    given = widgets(node)
    own = {name: options for name, options in given.items() if "default" in options}
    assert list(own)[: len(OPTIONS)] == list(OPTIONS)  # saved workflows keep widgets by position
    assert [name for name, options in own.items() if not options.get("advanced")] == ["strength", "iterations"]
    defaults = Settings()
    for name in ("strength", "iterations", "denominator", "temperature", "window", "projection"):
        assert own[name]["default"] == getattr(defaults, name)
    assert (own["gamma"]["default"], own["gradient"]["default"], own["chunk"]["default"]) == (0.0, "stop", 0)


def test_all_are_registered() -> None:
    ids = {node.GET_SCHEMA().node_id for node in NODES}
    assert ids >= {
        "DiversityCNOModel",
        "DiversityCNONoise",
        "DiversityCNOLatent",
        "DiversityNoiseFromLatent",
        "DiversityUseNoise",
    }
