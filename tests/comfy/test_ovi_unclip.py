"""unCLIP per Image: each image of a batch is the one that its embedding makes alone, in real sampling runs."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from typing import Any

import comfy.clip_vision
import comfy.sample
import pytest
import torch
from comfyui_diversity.core.drivers.minority import to_learn, with_learning
from comfyui_diversity.core.drivers.minority_learning import Learning
from comfyui_diversity.core.drivers.schedule import scheduled
from comfyui_diversity.core.hooks.sampling import with_noise_change
from comfyui_diversity.core.methods.schedule import Window
from comfyui_diversity.nodes.unclip import UnclipPerImage
from small.encoders import small_encoder
from small.models import WIDTH, conditioning, random_latent, small_model
from small.vision import small_cascade, small_unclip
from torch import Tensor

stock = importlib.import_module("nodes")  # ComfyUI's, not the pack's


def output(rows: int = 1, seed: int = 0, width: int = WIDTH) -> comfy.clip_vision.Output:
    made = comfy.clip_vision.Output()
    made["image_embeds"] = 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return made


def attach(text: list, outputs: list, strength: float = 1.0, noise: float = 0.0) -> list:
    return UnclipPerImage.execute([text], outputs, [strength], [noise]).args[0]


def stock_attach(text: list, one: Any, strength: float = 1.0, noise: float = 0.0) -> list:
    return stock.unCLIPConditioning().apply_adm(text, one, strength, noise)[0]


def sample(model: Any, noise: Tensor, positive: list, negative: list, sampler: str = "euler", seed: int = 3) -> Tensor:
    return comfy.sample.sample(
        model, noise, 3, 3.0, sampler, "simple", positive, negative, torch.zeros_like(noise), seed=seed,
        disable_pbar=True,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def as_nodes_run() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(
    ("strength", "augmentation", "sampler"),
    [pytest.param(1.0, 0.0, "euler", marks=pytest.mark.fast), (0.7, 0.4, "dpmpp_2m")],
)
def test_each_image_is_that_of_its_embedding_alone(strength: float, augmentation: float, sampler: str) -> None:
    model, noise, negative = small_unclip(), random_latent("eps", 3), conditioning("eps", seed=1)
    outputs = [output(seed=k) for k in range(3)]
    text = conditioning("eps")
    whole = sample(model, noise, attach(text, outputs, strength, augmentation), negative, sampler)
    for k in range(3):
        own = stock_attach(text, outputs[k], strength, augmentation)
        alone = sample(model, noise[k : k + 1], own, negative, sampler)
        assert torch.allclose(whole[k : k + 1], alone, atol=1e-4)
    other = sample(model, noise, stock_attach(text, outputs[0], strength, augmentation), negative, sampler)
    assert torch.allclose(whole[:1], other[:1], atol=1e-4)
    assert (whole[1] - other[1]).abs().max() > 1e-3


def test_the_given_conditioning_and_the_model_are_as_before() -> None:
    model, noise, text, negative = small_unclip(), random_latent("eps", 2), conditioning("eps"), conditioning("eps", 1)
    before = sample(model, noise, text, negative)
    keys = set(text[0][1])
    sample(model, noise, attach(text, [output(2)]), negative)
    assert set(text[0][1]) == keys
    assert torch.equal(sample(model, noise, text, negative), before)
    assert attach(text, [output()], strength=0.0) is text  # as the stock node


def test_a_batch_of_embeddings_and_batches_of_other_size(caplog: pytest.LogCaptureFixture) -> None:
    model, text, negative = small_unclip(), conditioning("eps"), conditioning("eps", seed=1)
    two = output(2)
    noise = random_latent("eps", 1).repeat(3, 1, 1, 1)
    with caplog.at_level(logging.WARNING):
        again = sample(model, noise, attach(text, [two]), negative)
    assert "2 image embeddings and the batch has 3 images: they are used again from the first" in caplog.text
    assert torch.allclose(again[0], again[2], atol=1e-5)
    assert (again[0] - again[1]).abs().max() > 1e-3
    fewer = sample(model, noise[:1], attach(text, [two]), negative)
    assert torch.allclose(fewer, again[:1], atol=1e-4)
    assert "only the first are used" in caplog.text


def test_beside_stock_and_stacked() -> None:
    """With another embedding on the same conditioning each image has the two together, as the stock node sums."""
    model, noise, text, negative = small_unclip(), random_latent("eps", 2), conditioning("eps"), conditioning("eps", 1)
    common, own = output(seed=8), [output(seed=k) for k in range(2)]
    one = sample(model, noise, attach(stock_attach(text, common), own), negative)
    two = sample(model, noise, attach(attach(text, [common]), own), negative)
    for k in range(2):
        both = stock_attach(stock_attach(text, common), own[k])
        # The noise that the model's own code adds to a sum of embeddings is unseeded: near, not the same.
        alone = sample(model, noise[k : k + 1], both, negative)
        assert (one[k] - alone[0]).abs().max() < (one[0] - one[1]).abs().max()
        assert (two[k] - alone[0]).abs().max() < (two[0] - two[1]).abs().max()


def test_a_schedule_does_not_fade_the_embeddings() -> None:
    """Attached before or behind a schedule, as the stock node behind one."""
    model, noise, negative = small_unclip(), random_latent("eps", 2), conditioning("eps", seed=1)
    first, second = conditioning("eps", rows=2), conditioning("eps", seed=4)
    outputs = [output(seed=k) for k in range(2)]
    window = Window(0.7)
    behind = sample(model, noise, attach(scheduled(first, second, window), outputs), negative)
    for k in range(2):
        rows = [[first[0][0][k : k + 1], {}]]
        own = stock_attach(scheduled(rows, second, window), outputs[k])
        alone = sample(model, noise[k : k + 1], own, negative)
        assert torch.allclose(behind[k : k + 1], alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))
    assert (behind[0] - behind[1]).abs().max() > 1e-2 * behind.abs().max()


def test_whoever_asks_the_model_before_the_run_finds_the_embeddings() -> None:
    """Noise optimisation runs in a wrapper of the same kind."""
    seen = []

    def change(run: Any) -> Tensor:
        seen.append(run.guider.conds["positive"][0]["model_conds"]["y"].cond)
        return run.noise

    model = with_noise_change(small_unclip(), "test", change)
    sample(model, random_latent("eps", 2), attach(conditioning("eps"), [output(2)]), conditioning("eps", seed=1))
    assert seen[0].shape == (2, 2 * WIDTH)
    assert not torch.equal(seen[0][0], seen[0][1])


def test_stable_cascade() -> None:
    model, generator = small_cascade(), torch.Generator().manual_seed(0)
    noise = torch.randn(2, 16, 8, 8, generator=generator)
    text, negative = conditioning("eps"), conditioning("eps", seed=1)
    for one in (text, negative):
        one[0][1]["pooled_output"] = torch.randn(1, WIDTH, generator=generator)
    outputs = [output(seed=k) for k in range(2)]
    negative = stock_attach(negative, output(seed=5))
    whole = sample(model, noise, attach(text, outputs), negative)
    for k in range(2):
        alone = sample(model, noise[k : k + 1], stock_attach(text, outputs[k]), negative)
        assert torch.allclose(whole[k : k + 1], alone, atol=1e-4)
    assert (whole[0] - whole[1]).abs().max() > 1e-4


def test_a_model_that_reads_no_embeddings_says_so() -> None:
    text, negative = conditioning("eps"), conditioning("eps", seed=1)
    with pytest.raises(ValueError, match="This model reads no image embeddings"):
        sample(small_model("eps"), random_latent("eps", 1), attach(text, [output()]), negative)


def test_minority_prompt_is_refused() -> None:
    clip = small_encoder("sd1")
    text = attach(to_learn(Learning(clip, "a fish")), [output()])
    with pytest.raises(ValueError, match="does not know of an embedding for each image"):
        sample(with_learning(small_unclip()), random_latent("eps", 1), text, conditioning("eps", seed=1))


def test_what_is_refused() -> None:
    text = conditioning("eps")
    with pytest.raises(ValueError, match="clip_vision_output is empty"):
        attach(text, [])
    with pytest.raises(ValueError, match="32 and 64 wide"):
        attach(text, [output(), output(width=32)])
    with pytest.raises(ValueError, match="noise_augmentation is 2"):
        attach(text, [output()], noise=2.0)
    broken = output()
    broken["image_embeds"] = torch.full((1, WIDTH), float("inf"))
    with pytest.raises(ValueError, match="embeddings that are not finite"):
        attach(text, [output(), broken])
    siglip = output()
    siglip["image_embeds"] = torch.zeros(1, 9, WIDTH)
    with pytest.raises(ValueError, match=r"shape \[1, 9, 64\]"):
        attach(text, [siglip])
    with pytest.raises(ValueError, match="list of 2"):
        UnclipPerImage.execute([text, text], [output()], [1.0], [0.0])
