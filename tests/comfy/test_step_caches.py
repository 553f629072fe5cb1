"""Beside step caches of ComfyUI: what our nodes ask the model neither comes from a cache nor goes into it."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import comfy.sample
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfyui_diversity.core.drivers.cno import ContrastiveNoise
from comfyui_diversity.core.drivers.minority import to_learn, with_learning
from comfyui_diversity.core.drivers.minority_learning import Learning
from comfyui_diversity.core.drivers.rarity import rarity_of
from comfyui_diversity.core.hooks.caches import without_caches
from comfyui_diversity.core.hooks.sampling import SamplerRun, with_noise_change
from comfyui_diversity.core.methods.minority import Settings, Steps
from small.encoders import small_encoder
from small.models import Counter, conditioning, random_latent, small_model
from torch import Tensor

caches = pytest.mark.parametrize("cache", [EasyCacheNode, LazyCacheNode])
STEPS = 6


def cached(model: Any, cache: Any) -> Any:
    # A threshold that skips each step that it may skip.
    return cache.execute(model, reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False).args[0]


def sample(model: Any, positive: list, image: Tensor | None = None, denoise: float = 1.0) -> Tensor:
    noise = random_latent("eps", 2, 5)
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, STEPS, 6.0, "euler", "simple", positive, conditioning("eps", seed=1),
            torch.zeros_like(noise) if image is None else image, denoise=denoise, disable_pbar=True, seed=5,
        )  # fmt: skip


@caches
@pytest.mark.parametrize("gradient", ["stop", "full"])
def test_noise_is_optimised_past_the_cache(cache: Any, gradient: str) -> None:
    """From a masked-in image, at a noise level at which the cache is on."""
    found, counter, image = [], Counter(), random_latent("eps", 2, 7)

    def change(run: SamplerRun) -> Tensor:
        found.append(ContrastiveNoise.recommended(gradient, iterations=3)(run))
        return found[-1]

    sample(with_noise_change(small_model("eps"), "cno", change), conditioning("eps"), image, 0.6)
    with_cache = sample(
        counter.on(with_noise_change(cached(small_model("eps"), cache), "cno", change)), conditioning("eps"), image, 0.6
    )
    assert torch.equal(found[0], found[1])
    kept = with_noise_change(cached(small_model("eps"), cache), "kept", lambda run: found[0])
    alone = Counter()
    assert torch.equal(sample(alone.on(kept), conditioning("eps"), image, 0.6), with_cache)
    assert len(counter.sizes) > len(alone.sizes)


@caches
def test_a_token_is_learned_past_the_cache(cache: Any) -> None:
    clip, plain = small_encoder("sd1"), small_model("eps")
    with torch.inference_mode():
        marked = to_learn(Learning(clip, "a fish", Settings(2, 0.5), Steps(0.0, 0.9), keep_until=1.0))
    first = sample(with_learning(cached(plain, cache)), marked)
    assert torch.isfinite(first).all()
    assert torch.equal(sample(with_learning(cached(plain, cache)), marked), first)
    assert not torch.equal(first, sample(cached(plain, cache), conditioning("eps")))


@caches
def test_rarity_is_measured_past_the_cache(cache: Any) -> None:
    latent, model = {"samples": random_latent("eps", 4)}, small_model("eps")
    with torch.inference_mode():
        plain = rarity_of(model, conditioning("eps"), latent, 0, chunk_size=3)
        assert torch.equal(rarity_of(cached(model, cache), conditioning("eps"), latent, 0, chunk_size=3), plain)


@pytest.mark.fast
def test_caches_are_known_by_key_function_and_pack() -> None:
    def plain() -> None: ...

    def by_module(name: str) -> FunctionType:
        made = FunctionType(plain.__code__, {}, "wrapper")
        made.__module__, made.__qualname__ = name, "wrapper"
        return made

    mine = by_module("/home/me/.cache/ComfyUI/custom_nodes/other.nodes")
    options = {
        "model_function_wrapper": by_module("/ComfyUI/custom_nodes/ComfyUI-TeaCache.nodes"),
        "transformer_options": {"wrappers": {WrappersMP.DIFFUSION_MODEL: {"MagCache": [plain], "other": [mine]}}},
    }
    left = without_caches(options)
    assert "model_function_wrapper" not in left
    assert left["transformer_options"]["wrappers"] == {WrappersMP.DIFFUSION_MODEL: {"MagCache": [], "other": [mine]}}
    assert "model_function_wrapper" in options
    assert without_caches({"model_function_wrapper": mine}) == {"model_function_wrapper": mine}
