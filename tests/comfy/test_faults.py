"""Runs that go wrong, and runs of sizes that nobody thinks of: what comes out, and that nothing is left behind."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import comfy.model_management
import comfy.sample
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_diversity.core.drivers import diversify as driver
from comfyui_diversity.core.drivers.tpso import recommended
from comfyui_diversity.core.methods.minority import NoGradientError
from comfyui_diversity.nodes._inputs import read_options
from comfyui_diversity.nodes.cno import DiverseNoise
from comfyui_diversity.nodes.diversify import Diversify
from comfyui_diversity.nodes.minority import MinorityPrompt
from comfyui_diversity.nodes.minority_options import MinorityPromptOptions
from comfyui_diversity.nodes.tpso import DiversePrompts
from comfyui_diversity.nodes.tpso_options import DiversePromptsOptions
from small.encoders import small_encoder
from small.models import small_model
from torch import Tensor

TEXT, BATCH, STEPS = "a red fish", 2, 3
Made = tuple[Any, list]  # model and positive


class Workflow:
    def __init__(self) -> None:
        self.model, self.clip = small_model("eps"), small_encoder("sd1")
        self.negative = self.encode("")
        self.weights = {name: value.clone() for name, value in self.parameters()}
        self.plain = self.sample(self.model, self.encode(TEXT))

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, network in (("model", self.model.model), ("clip", self.clip.cond_stage_model)):
            yield from ((f"{name}.{own}", value) for own, value in network.named_parameters())

    @torch.inference_mode()
    def encode(self, text: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    @torch.inference_mode()
    def sample(self, model: Any, positive: list, shape: tuple[int, ...] = (BATCH, 4, 8, 8), **changed: Any) -> Tensor:
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        options = {"steps": STEPS, "latent_image": torch.zeros_like(noise), **changed}
        return comfy.sample.sample(
            model, noise, cfg=3.0, sampler_name="euler", scheduler="simple", positive=positive,
            negative=self.negative, disable_pbar=True, seed=0, **options,
        )  # fmt: skip

    def check_untouched(self) -> None:
        assert all(torch.equal(value, self.weights[name]) for name, value in self.parameters())
        assert torch.equal(self.sample(self.model, self.encode(TEXT)), self.plain)


@pytest.fixture(scope="module")
def workflow() -> Iterator[Workflow]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "recommended", partial(recommended, steps=4))
        yield Workflow()


def diversify(own: Workflow, model: Any, text: str, batch: int) -> Made:
    return Diversify.execute(model, own.clip, text, 0, 0.5).args


def noise(own: Workflow, model: Any, text: str, batch: int) -> Made:
    return DiverseNoise.execute(model, 0.5, 2, "recommended").args[0], own.encode(text)


def prompts(own: Workflow, model: Any, text: str, batch: int) -> Made:
    options = DiversePromptsOptions.execute(**{**read_options(DiversePromptsOptions, None), "steps": 2}).args[0]
    found = DiversePrompts.execute(own.clip, text, "", batch, 0.8, 0.4, 0, "recommended", options)
    return model, found.args[0]


def minority(own: Workflow, model: Any, text: str, batch: int) -> Made:
    options = MinorityPromptOptions.execute(**{**read_options(MinorityPromptOptions, None), "iterations": 1}).args[0]
    given = (model, own.clip, text, "base model", 1.0, "cool", "minority", "recommended")
    return MinorityPrompt.execute(*given, options=options).args


Make = Callable[[Workflow, Any, str, int], Made]
every_method = pytest.mark.parametrize("make", [diversify, noise, prompts, minority])


def made(make: Make, own: Workflow, model: Any = None, text: str = TEXT, batch: int = BATCH) -> Made:
    with torch.inference_mode():
        return make(own, own.model if model is None else model, text, batch)


@every_method
def test_no_steps_and_denoise_0_give_the_latent_back(make: Make, workflow: Workflow) -> None:
    latent = torch.randn(BATCH, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    ways: tuple[dict[str, Any], ...] = ({"denoise": 0.0}, {"sigmas": torch.FloatTensor([])})
    for changed in ways:
        found = workflow.sample(*made(make, workflow), latent_image=latent.clone(), **changed)
        stock = workflow.sample(workflow.model, workflow.encode(TEXT), latent_image=latent.clone(), **changed)
        assert torch.equal(found, stock)
    workflow.check_untouched()


@every_method
def test_one_step_and_odd_sizes(make: Make, workflow: Workflow) -> None:
    for side in ((5, 3), (9, 7), (1, 2)):
        found = workflow.sample(*made(make, workflow), (BATCH, 4, *side), steps=1)
        assert found.shape == (BATCH, 4, *side)
        assert torch.isfinite(found).all()


@every_method
def test_a_single_value_a_channel(make: Make, workflow: Workflow) -> None:
    """This model's group norms are then over one value, which makes it 0 whatever it was. Whether anything of the token
    is left is a matter of rounding, which differs between processors: Minority Prompt learns, or says that it cannot.
    """
    shape = (BATCH, 4, 1, 1)
    try:
        found = workflow.sample(*made(make, workflow), shape, steps=1)
    except NoGradientError:
        assert make is minority
    else:
        assert found.shape == shape
        assert torch.isfinite(found).all()
    workflow.check_untouched()


@every_method
@pytest.mark.parametrize("call", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_exception_in_the_model_passes_through_and_leaves_nothing(make: Make, call: int, workflow: Workflow) -> None:
    """Wherever in the run it comes."""
    calls = []

    def broken(executor: Any, *rest: Any, **named: Any) -> Tensor:
        calls.append(1)
        if len(calls) > call:
            raise OSError("from another node")
        return executor(*rest, **named)

    model = workflow.model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "broken", broken)
    with pytest.raises(OSError, match="from another node"):
        workflow.sample(*made(make, workflow, model))
    workflow.check_untouched()
    assert torch.isfinite(workflow.sample(*made(make, workflow))).all()


@every_method
def test_cancel_at_every_stage(make: Make, workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the pack or ComfyUI asks whether Cancel was pressed: first, last, and between."""
    asked, at = [], -1

    def ask() -> None:
        asked.append(1)
        if len(asked) - 1 == at:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", ask)
    done = workflow.sample(*made(make, workflow))
    count = len(asked)
    for at in sorted({0, count // 3, 2 * count // 3, count - 1}):  # noqa: B007 - read above
        asked.clear()
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            workflow.sample(*made(make, workflow))
    at = -1
    workflow.check_untouched()
    assert torch.equal(workflow.sample(*made(make, workflow)), done)


@every_method
def test_not_a_number_from_the_model_is_named_or_is_what_stock_gives(make: Make, workflow: Workflow) -> None:
    def broken(executor: Any, *rest: Any, **named: Any) -> Tensor:
        return executor(*rest, **named) * torch.nan

    model = workflow.model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "broken", broken)
    try:
        found = workflow.sample(*made(make, workflow, model))
    except ValueError as error:
        assert make in (noise, minority)
        assert "not finite" in str(error) or "NaN" in str(error)  # noqa: PT017 - both ends are allowed
    else:
        assert make in (diversify, prompts)
        assert torch.isnan(found).all()
    workflow.check_untouched()


@every_method
def test_an_empty_prompt(make: Make, workflow: Workflow) -> None:
    """There are no words to vary, but images still differ: by their noises, or by tokens added to nothing."""
    empty = workflow.sample(workflow.model, workflow.encode(""))
    for text in ("", "   "):
        found = workflow.sample(*made(make, workflow, text=text))
        assert float((found - empty).abs().amax(dim=(1, 2, 3)).min()) > 1e-3
    workflow.check_untouched()


@every_method
def test_a_prompt_of_thousands_of_tokens(make: Make, workflow: Workflow) -> None:
    long = "fish and a boat, " * 500
    found = workflow.sample(*made(make, workflow, text=long), steps=1)
    assert torch.isfinite(found).all()
    assert float((found - workflow.sample(workflow.model, workflow.encode(long), steps=1)).abs().max()) > 1e-5


@pytest.mark.parametrize("make", [noise, pytest.param(prompts, marks=pytest.mark.slow)])
def test_257_images(make: Make, workflow: Workflow) -> None:
    count = 257
    found = workflow.sample(*made(make, workflow, batch=count), (count, 4, 2, 2), steps=1)
    stock = workflow.sample(workflow.model, workflow.encode(TEXT), (count, 4, 2, 2), steps=1)
    assert torch.isfinite(found).all()
    assert float((found - stock).abs().amax(dim=(1, 2, 3)).min()) > 1e-5, "an image is the plain one"


def test_two_branches_of_one_model_do_not_see_each_other(workflow: Workflow) -> None:
    alone = {make: workflow.sample(*made(make, workflow)) for make in (noise, minority, diversify)}
    branches = {make: made(make, workflow) for make in alone}
    for make in (*alone, *alone):
        assert torch.equal(workflow.sample(*branches[make]), alone[make])
    workflow.check_untouched()


def growth(workflow: Workflow, branch: Callable[[], Made]) -> tuple[int, int]:
    """How many tensors, and objects of any kind, are there more after 100 runs than after 20."""
    kept, counts = branch(), []
    for k in range(100):
        own = branch() if k % 10 == 0 else kept
        workflow.sample(*own, (BATCH, 4, 2, 2), steps=1)
        del own
        if k in (19, 99):
            gc.collect()
            found = gc.get_objects()
            counts.append((sum(issubclass(type(one), torch.Tensor) for one in found), len(found)))
    (tensors, objects), (more, most) = counts
    return more - tensors, most - objects


@pytest.fixture(scope="module")
def stock_growth(workflow: Workflow) -> int:
    """In objects: ComfyUI's own record of each run."""
    plain = workflow.encode(TEXT)
    return growth(workflow, lambda: (workflow.model.clone(), plain))[1]


@pytest.mark.parametrize(
    "make", [noise, prompts, *(pytest.param(one, marks=pytest.mark.slow) for one in (diversify, minority))]
)
def test_nothing_piles_up_over_100_runs(
    make: Make, workflow: Workflow, stock_growth: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one graph, and of graphs made again: no tensor, and no other object but ComfyUI's own record of each run."""
    caplog.set_level(logging.CRITICAL)  # what is logged is kept
    tensors, objects = growth(workflow, lambda: made(make, workflow))
    assert tensors <= 0
    assert objects < stock_growth + 40
