"""Where a model gives no gradient: found by a check, searched instead, said in the report, refused where asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_diversity.core.drivers import tpso as driver
from comfyui_diversity.core.drivers import tpso_search
from comfyui_diversity.core.hooks.gradient_check import missing_gradient
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.text import PromptEncoder, prompt_encoders
from comfyui_diversity.core.methods.minority import PRESETS, Steps
from comfyui_diversity.core.methods.tpso import initial_offsets
from comfyui_diversity.nodes._inputs import PUBLISHED, read_options
from comfyui_diversity.nodes.cno import DiverseNoise
from comfyui_diversity.nodes.cno_options import DiverseNoiseOptions
from comfyui_diversity.nodes.minority import MinorityPrompt
from comfyui_diversity.nodes.minority_options import MinorityPromptOptions
from small.encoders import small_encoder
from torch import Tensor

from .test_minority_sampling import Graph
from .test_tpso_nodes import VARIANTS, run, stock_encode

TEXT = "a red fish in deep water"


@pytest.fixture(scope="module", params=[pytest.param("sd1", marks=pytest.mark.fast), "flux", "qwen3"])
def encoder(request: pytest.FixtureRequest) -> PromptEncoder:
    clip = small_encoder(request.param)
    with torch.inference_mode():
        return prompt_encoders(clip, clip.tokenize(TEXT), "all")[-1]


def at(encoder: PromptEncoder) -> Tensor:
    deviation = driver.RECOMMENDED_START * encoder.deviation
    return initial_offsets(1, encoder.positions, encoder.width, 0, deviation)


@torch.inference_mode()
def test_a_right_gradient_passes_the_check(encoder: PromptEncoder) -> None:
    assert missing_gradient(encoder, at(encoder)) is None
    with gradients():
        rows = at(encoder).repeat(3, 1, 1) * torch.tensor([1.0, 2.0, 5.0])[:, None, None]
        assert torch.allclose(encoder.forward_only(rows), encoder.vectors(rows), atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("fault", ["zero", "wrong", "refused"])
def test_a_gradient_of_no_use_does_not(encoder: PromptEncoder, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = encoder._vectors

    def vectors(rows: Tensor) -> Tensor:
        if fault == "wrong":  # as rounded activations: parts of the way pass nothing on
            return 0.1 * real(rows) + 0.9 * real(rows).detach()
        return real(rows.detach()) + (0 * rows.sum() if fault == "zero" else 0)

    monkeypatch.setattr(encoder, "_vectors", vectors)
    found = missing_gradient(encoder, at(encoder))
    assert found is not None
    assert {"zero": "is zero", "wrong": "finite differences", "refused": "does not require grad"}[fault] in found


@pytest.fixture(scope="module")
def rounded() -> Iterator[Any]:
    """A CLIP whose layers round what they are fed, as fp8 and int8 matrix products do."""
    clip = small_encoder("sd1")

    def rounding(_layer: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = arguments[0].detach()
        scale = x.abs().amax() / 127
        return ((x / scale).round() * scale,)

    layers = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers
    hooks = [
        module.register_forward_pre_hook(rounding) for module in layers.modules() if type(module).__name__ == "Linear"
    ]
    yield clip
    for hook in hooks:
        hook.remove()


def few_candidates(count: int) -> int:
    """For what does not depend on how far the variants spread."""
    return count + 9


def test_prompts_are_searched_where_activations_are_rounded(rounded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpso_search, "candidates_for", few_candidates)
    before = {name: value.clone() for name, value in rounded.cond_stage_model.state_dict().items()}
    plain = stock_encode(rounded, TEXT)
    found = run(rounded, TEXT, steps=8)
    positive, report = found[0], found[-1]
    assert "found by search without gradients (its gradient is zero)" in report
    assert "NOT reached" not in report
    assert len(positive[0][0]) == VARIANTS
    assert float((positive[0][0][0] - positive[0][0][1]).abs().max()) > 1e-2
    assert torch.equal(run(rounded, TEXT, steps=8)[0][0][0], positive[0][0])
    assert torch.equal(stock_encode(rounded, TEXT)[0][0], plain[0][0])
    assert all(torch.equal(value, before[name]) for name, value in rounded.cond_stage_model.state_dict().items())


def test_a_search_with_added_tokens_reaches_the_aim() -> None:
    report = run(small_encoder("sd1"), TEXT, steps=6, added_tokens=4, optimiser="search")[-1]
    assert "found by search without gradients (as chosen)" in report
    assert "NOT reached" not in report


def test_prompts_that_need_gradients_are_refused_there(rounded: Any) -> None:
    with pytest.raises(ValueError, match=r"clip_l passes no gradient on .*set optimiser"):
        run(rounded, TEXT, optimiser="gradient")
    with pytest.raises(ValueError, match="mode published"):
        run(rounded, TEXT, optimiser="search", mode=PUBLISHED)
    with pytest.raises(ValueError, match="optimiser is 'other'"):
        run(rounded, TEXT, optimiser="other")


@torch.inference_mode()
def test_a_search_in_chunks_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a model that reacts: to a hundredth of how far the variants moved."""
    monkeypatch.setattr(tpso_search, "candidates_for", few_candidates)
    clip, recipe = small_encoder("flux"), driver.Recipe(driver.Settings(steps=3), optimiser="search")
    whole = driver.vary_prompt(clip, TEXT, VARIANTS, 0, recipe)[0][0][0]
    monkeypatch.setattr(PromptEncoder, "_chunk_for", lambda self, count: min(count, 7))
    parts = driver.vary_prompt(clip, TEXT, VARIANTS, 0, recipe)[0][0][0]
    moved = (whole - stock_encode(clip, TEXT)[0][0]).abs().max()
    assert float((whole - parts).abs().max()) < 0.01 * float(moved)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph()


def without_gradient(graph: Graph) -> Any:
    def cut(executor: Any, *rest: Any, **named: Any) -> Tensor:
        return executor(*rest, **named).detach()

    model = graph.model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "cut", cut)
    return model


@pytest.fixture(scope="module")
def reacting() -> Graph:
    """A model whose estimates a token changes by more than rounding."""
    return Graph("flux")


@pytest.mark.parametrize("choice", ["auto", "search"])
def test_a_token_is_searched(reacting: Graph, choice: str, caplog: pytest.LogCaptureFixture) -> None:
    model = without_gradient(reacting) if choice == "auto" else reacting.model
    plain = reacting.sample(reacting.plain())
    with caplog.at_level("INFO"):
        found = reacting.learned(model, optimiser=choice, steps=Steps(0.0, 0.1))
    assert "Searched without gradients" in caplog.text
    assert all(float((found[k] - plain[k]).abs().max()) > 1e-3 for k in range(len(found)))
    assert torch.equal(found, reacting.learned(model, optimiser=choice, steps=Steps(0.0, 0.1)))
    chunked = reacting.learned(model, optimiser=choice, steps=Steps(0.0, 0.1), chunk_size=1)
    assert float((chunked - found).abs().max()) < 0.01 * float((found - plain).abs().max())
    assert torch.equal(reacting.sample(reacting.plain()), plain)


def test_the_papers_rule_takes_no_search(graph: Graph) -> None:
    options = MinorityPromptOptions.execute(
        **{**read_options(MinorityPromptOptions, None), "optimiser": "search"}
    ).args[0]
    preset = next(iter(PRESETS[PUBLISHED]))
    with pytest.raises(ValueError, match="optimiser is 'search'"):
        MinorityPrompt.execute(
            graph.model, graph.clip, TEXT, preset, 1.0, "cool", "minority", PUBLISHED, options=options
        )


def test_layers_that_fail_in_their_backward_pass(reacting: Graph) -> None:
    """Whatever they say: a full gradient of noise is refused with the way out, and a token is searched."""

    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(_context: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
            raise RuntimeError("GEMM expects RHS W.T")

    def refusing(executor: Any, *rest: Any, **named: Any) -> Tensor:
        return Refusing.apply(executor(*rest, **named))

    other = reacting.model.clone()
    other.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "refusing", refusing)
    options = DiverseNoiseOptions.execute(**{**read_options(DiverseNoiseOptions, None), "gradient": "full"}).args[0]
    noise = DiverseNoise.execute(other, 0.5, 2, "recommended", options).args[0]
    with pytest.raises(ValueError, match=r"passes no gradient on.*Set gradient to"):
        reacting.sample(reacting.plain(), noise)
    found = reacting.learned(other, steps=Steps(0.0, 0.1))
    assert torch.isfinite(found).all()
