"""Diverse Conditioning: what another encode node made, varied where its text is, and refused where it is not."""

from __future__ import annotations

from typing import Any

import comfy.sample
import pytest
import torch
from comfyui_diversity.core.drivers.tpso import recommended, vary_prompt
from comfyui_diversity.core.hooks.carried import payloads
from comfyui_diversity.nodes.diverse_conditioning import DiverseConditioning
from small.encoders import small_encoder
from small.models import random_latent, small_model

from .test_tpso_nodes import options, stock_encode

TEXT = "a red fish in deep water"
STEPS, VARIANTS = 6, 3


def run(given: list, clip: Any, text: str = TEXT, similarity: float = 0.8, **changed: Any) -> tuple[list, str]:
    more = options(**{"steps": STEPS, "schedule": "off", **changed})
    with torch.inference_mode():
        found = DiverseConditioning.execute(given, clip, text, VARIANTS, similarity, 0.4, 0, more)
    return found.args


@pytest.fixture(scope="module")
def qwen() -> Any:
    """Whose tokens keep what they are through the layers, as trained encoders' do; with random weights they do not."""
    clip = small_encoder("qwen3")
    with torch.inference_mode():
        for layer in clip.cond_stage_model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(0.3)
    return clip


@pytest.fixture(scope="module")
def flux() -> Any:
    return small_encoder("flux")


def test_of_the_text_alone_it_gives_the_variants_of_diverse_prompts(flux: Any) -> None:
    """Also of the pooled vector, and with what is attached; what was given is not changed."""
    [[cond, extras]] = given = stock_encode(flux, TEXT)
    before, extras["guidance"] = cond.clone(), 3.5
    [[found, more]], report = run(given, flux)
    with torch.inference_mode():
        [[expected, expected_extras]], _ = vary_prompt(
            flux, TEXT, VARIANTS, 0, recommended(steps=STEPS, added_tokens=0)
        )
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(more["pooled_output"], expected_extras["pooled_output"], atol=1e-5)
    assert more["guidance"] == 3.5
    assert torch.equal(cond, before)
    assert "resemblance 1.00" in report


def test_behind_a_system_prompt_the_texts_tokens_alone_are_varied(qwen: Any) -> None:
    """As CLIPTextEncodeLumina2 writes one: the tokens before the text stay bitwise, those of the text change as much as
    without it."""
    system = "You are an assistant designed to generate images <Prompt Start> "
    [[cond, _]] = given = stock_encode(qwen, system + TEXT)
    alone = stock_encode(qwen, TEXT)[0][0]
    [[found, _]], report = run(given, qwen)
    first = cond.shape[1] - alone.shape[1]
    changed = (found - cond).abs().amax(dim=(0, 2)) > 0
    with torch.inference_mode():
        [[varied, _]], _ = vary_prompt(qwen, TEXT, VARIANTS, 0, recommended(steps=STEPS, added_tokens=0))
    words = (varied - alone).abs().amax(dim=(0, 2)) > 0
    assert first > 0
    assert torch.equal(changed.nonzero()[:, 0], words.nonzero()[:, 0] + first)
    assert torch.allclose(found[:, first:] - cond[:, first:], varied - alone, atol=1e-4)
    assert f"of the conditioning's {cond.shape[1]}" in report


def test_it_samples_and_fades_into_what_was_given(flux: Any) -> None:
    model, given, negative = small_model("flux"), stock_encode(flux, TEXT), stock_encode(flux, "")
    latent = torch.zeros(VARIANTS, 16, 16, 16)
    noise = random_latent("flux", 1).repeat(VARIANTS, 1, 1, 1)

    def sampled(positive: list) -> torch.Tensor:
        with torch.inference_mode():
            return comfy.sample.sample(
                model, noise, 4, 1.0, "euler", "simple", positive, negative, latent, seed=0
            ).clone()

    plain = sampled(given)
    found = sampled(run(given, flux, schedule="linear")[0])
    assert torch.isfinite(found).all()
    assert all(float((found[k] - plain[k]).abs().max()) > 1e-4 for k in range(VARIANTS))
    assert float((found[0] - found[1]).abs().max()) > 1e-4
    assert torch.allclose(sampled(run(given, flux, similarity=1.0, schedule="linear")[0]), plain, atol=1e-5)


def test_what_is_refused(qwen: Any, flux: Any) -> None:
    given = stock_encode(qwen, TEXT)
    for message, arguments in (
        ("fewer than", (stock_encode(qwen, "fish"), qwen)),
        ("not found", ([[torch.randn(1, 90, 64, generator=torch.Generator().manual_seed(0)), {}]], qwen)),
        ("number of rows of conditioning is 2", ([[given[0][0].repeat(2, 1, 1), {}]], qwen)),
        ("wide", ([[torch.zeros(1, 90, 32), {}]], qwen)),
        ("is empty", ([], qwen)),
        ("carries", (run(stock_encode(flux, TEXT), flux, schedule="linear")[0], flux)),
    ):
        with pytest.raises(ValueError, match=message):
            run(*arguments)
    wrong: dict[str, Any] = {
        "added_tokens": 2,
        "vary_negative": True,
        "variant": 4,
        "preset": "sd35",
        "negative_bank": "on",
        "published_diversity": 2.0,
    }
    for name in wrong:
        with pytest.raises(ValueError, match=name):
            run(given, qwen, **{name: wrong[name]})


def test_one_variant_alone_is_its_row(flux: Any) -> None:
    given = stock_encode(flux, TEXT)
    every, own = run(given, flux)[0], run(given, flux, variant=2)[0]
    assert torch.allclose(own[0][0], every[0][0][1:2])
    assert payloads(own[0][1]) == {}


def test_a_model_that_reads_one_text_for_all_images_is_named(flux: Any) -> None:
    [[cond, extras]] = stock_encode(flux, TEXT)
    given = [[cond, {**extras, "t5xxl_ids": torch.arange(5)}]]  # as Anima's encoder gives
    with pytest.raises(ValueError, match="t5xxl_ids besides its embeddings"):
        run(given, flux)
    assert len(run(given, flux, variant=2)[0][0][0]) == 1
