"""One noise for a whole batch, and fresh noise after every step, in real sampling runs."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_custom_sampler import RandomNoise, SamplerCustomAdvanced
from comfyui_diversity.core.drivers.shared_noise import _SEED_OFFSET
from comfyui_diversity.nodes.shared_noise import SharedNoiseForCustomSampler, UseSharedNoise
from small.models import FAMILIES, conditioning, small_model
from torch import Tensor

BATCH, CFG, SEED = 3, 3.0, 5
both_kinds = pytest.mark.parametrize("family", [pytest.param("eps", marks=pytest.mark.fast), "sd3"])


def empty(family: str, batch: int = BATCH) -> dict[str, Any]:
    return {"samples": torch.zeros(batch, *FAMILIES[family].latent)}


def sample(model: Any, family: str, sampler: str = "euler", steps: int = 3, batch: int = BATCH, **more: Any) -> Tensor:
    """What KSampler gives."""
    latent = more.pop("latent", empty(family, batch))
    noise = more.pop("noise", None)
    if noise is None:
        noise = comfy.sample.prepare_noise(latent["samples"], SEED, latent.get("batch_index"))
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, CFG, sampler, "simple", conditioning(family), conditioning(family, seed=1),
            latent["samples"], disable_pbar=True, seed=SEED, **more,
        )  # fmt: skip


def shared(model: Any, noise_per_step: float = 0.0) -> Any:
    return UseSharedNoise.execute(model, noise_per_step).args[0]


@both_kinds
def test_all_images_start_from_the_first_ones_noise(family: str) -> None:
    model = small_model(family)
    apart, together = sample(model, family), sample(shared(model), family)
    assert torch.equal(together[0], apart[0])
    for k in range(1, BATCH):
        # Several threads share the rows of a batch out unevenly, so the last digits differ.
        assert torch.allclose(together[k], together[0], atol=1e-4)
        assert not torch.allclose(apart[k], apart[0], atol=1e-2)
    assert torch.equal(sample(model, family), apart)


@both_kinds
def test_both_nodes_give_the_same_images(family: str) -> None:
    model = small_model(family)
    noise = SharedNoiseForCustomSampler.execute(RandomNoise.execute(SEED).args[0]).args[0]
    assert noise.seed == SEED
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(family), conditioning(family, seed=1))
    guider.set_cfg(CFG)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
    sampler = comfy.samplers.sampler_object("euler")

    def advanced(latent: dict[str, Any]) -> Tensor:
        with torch.inference_mode():
            return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args[0]["samples"]

    whole = advanced(empty(family))
    assert torch.equal(whole, sample(shared(model), family))
    # One image by itself, as Latent From Batch cuts it.
    cut = {**empty(family, 1), "batch_index": [2]}
    assert torch.equal(noise.generate_noise(cut), noise.generate_noise(empty(family))[:1])
    assert torch.allclose(advanced(cut), whole[2:], atol=1e-3)


def test_noise_of_images_and_sound() -> None:
    noise = SharedNoiseForCustomSampler.execute(RandomNoise.execute(SEED).args[0]).args[0]
    latent = {"samples": NestedTensor([torch.zeros(BATCH, 4, 8, 8), torch.zeros(BATCH, 2, 16)])}
    for part in noise.generate_noise(latent).unbind():
        assert len(part) == BATCH
        assert torch.equal(part, part[:1].expand_as(part))
        assert part.std() > 0.5


def test_noise_after_every_step_but_the_last() -> None:
    """Against Euler's steps written out."""
    model = small_model("sd3")
    amount, steps = 0.05, 3
    together = sample(shared(model, amount), "sd3", steps=steps)
    assert not torch.equal(together[0], together[1])

    generator = torch.Generator().manual_seed((SEED + _SEED_OFFSET) % 2**64)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    noise = comfy.sample.prepare_noise(empty("sd3")["samples"], SEED)[:1].repeat(BATCH, 1, 1, 1)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning("sd3"), conditioning("sd3", seed=1))
    guider.set_cfg(CFG)

    class Steps(comfy.samplers.Sampler):
        def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor, *rest: Any):
            x = sigmas[0] * noise
            for k in range(steps):
                sigma = sigmas[k].expand(BATCH)
                clean = model_wrap(x, sigma, **{k: v for k, v in extra_args.items() if k != "denoise_mask"})
                x = x + (x - clean) / sigmas[k] * (sigmas[k + 1] - sigmas[k])
                if k < steps - 1:
                    x = x + amount * torch.randn(x.shape, generator=generator)
            return x

    with torch.inference_mode():
        expected = guider.sample(noise, torch.zeros_like(noise), Steps(), sigmas, disable_pbar=True, seed=SEED)
    assert torch.allclose(together, expected, atol=1e-4)
    assert torch.equal(sample(shared(model, amount), "sd3", steps=steps), together)


def test_noise_per_step_is_never_lost_in_silence() -> None:
    """In every sampler of ComfyUI it changes the image, or is refused."""
    model, lost, refused = small_model("auraflow"), [], []
    latent = {"samples": torch.zeros(1, *FAMILIES["auraflow"].latent[:-2], 8, 8)}
    for sampler in comfy.samplers.SAMPLER_NAMES:
        try:
            after = sample(shared(model, 0.1), "auraflow", sampler, latent=latent)
        except ValueError as error:
            assert "Choose another sampler" in str(error)  # noqa: PT017
            refused.append(sampler)
            continue
        if torch.equal(sample(shared(model), "auraflow", sampler, latent=latent), after):
            lost.append(sampler)
    assert not lost
    assert len(refused) == 4


def test_a_callback_is_still_called_and_a_mask_respected() -> None:
    model, seen = small_model("sd3"), []
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    latent = {"samples": torch.randn(BATCH, 16, 16, 16, generator=torch.Generator().manual_seed(1))}
    images = sample(
        shared(model, 0.1), "sd3", latent=latent, noise_mask=mask,
        callback=lambda step, denoised, x, total: seen.append((step, total)),
    )  # fmt: skip
    assert seen == [(0, 3), (1, 3), (2, 3)]
    assert torch.allclose(images[..., 8:], latent["samples"][..., 8:], atol=1e-4)


def test_what_cannot_be_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"noise_per_step is 0\.03, but this is not a flow-matching model"):
        shared(small_model("eps"), 0.03)
    with pytest.raises(ValueError, match="it must be a number from 0"):
        shared(small_model("sd3"), -1.0)
    with pytest.raises(ValueError, match="the sampler lcm would lose it"):
        sample(shared(small_model("sd3"), 0.03), "sd3", "lcm")
    with caplog.at_level("WARNING", logger="ComfyUI-Diversity"):
        sample(shared(small_model("eps")), "eps", disable_noise=True, noise=torch.zeros(BATCH, 4, 16, 16))
    assert "adds no noise" in caplog.text


def test_the_model_itself_is_left_alone() -> None:
    model = small_model("eps")
    twice = shared(shared(model))
    assert not model.wrappers.get("sampler_sample")
    assert sum(len(found) for found in twice.wrappers["sampler_sample"].values()) == 1
