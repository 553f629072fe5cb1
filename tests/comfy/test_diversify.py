"""Diversify in real sampling runs: what it composes for which run, what it says, and what it leaves alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_flux import FluxGuidance
from comfyui_diversity.core.drivers import diversify as driver
from comfyui_diversity.core.drivers.cno import ContrastiveNoise
from comfyui_diversity.core.drivers.schedule import can_blend, scheduled
from comfyui_diversity.core.drivers.tpso import one_variant, plain_conditioning, recommended, unvaried, vary_prompt
from comfyui_diversity.core.hooks.prompt import text_encoders
from comfyui_diversity.core.hooks.sampling import with_noise_change
from comfyui_diversity.core.hooks.text import PromptEncoder
from comfyui_diversity.core.methods.cno import RECOMMENDED
from comfyui_diversity.core.methods.diversify import VARIANTS_OF_ONE, Situation, plan
from comfyui_diversity.core.methods.schedule import Window
from comfyui_diversity.core.methods.starts import wide
from comfyui_diversity.nodes.diversify import Diversify, DiversifyModel
from small.encoders import small_encoder
from small.models import Counter, small_model, small_sdxl
from small.released import small_released
from torch import Tensor

from .test_without_gradients import rounded  # noqa: F401 - a fixture

stock = importlib.import_module("nodes")  # ComfyUI's, not the pack's

TEXT, NEGATIVE, BATCH, STRENGTH = "a red fish", "blurred", 2, 0.8
FEW = 6  # steps of the optimisation of variants: enough to leave the prompt
# Model and text encoder, shape of a latent, CFG and steps as people use them.
KINDS: dict[str, tuple[Callable[[], tuple[Any, Any]], tuple[int, ...], float, int]] = {
    "sd1": (lambda: (small_model("eps"), small_encoder("sd1")), (4, 8, 8), 6.0, 10),
    "sdxl": (lambda: (small_sdxl(), small_encoder("sdxl")), (4, 8, 8), 5.0, 10),
    "flux": (lambda: (small_model("flux"), small_encoder("flux")), (16, 8, 8), 1.0, 10),
    "language model": (lambda: (small_model("auraflow"), small_encoder("qwen3")), (4, 8, 8), 1.0, 10),
    "Z-Image": (lambda: small_released("Z-Image Turbo")[:2], (16, 8, 8), 1.0, 5),
    "Qwen-Image": (lambda: small_released("Qwen-Image 2512")[:2], (16, 1, 8, 8), 4.0, 10),
}


class Workflow:
    """What the nodes around Diversify hold, and what it has said."""

    def __init__(self, make: Callable[[], tuple[Any, Any]], latent: tuple[int, ...], cfg: float, steps: int) -> None:
        self.model, self.clip = make()
        self.latent, self.cfg, self.steps = latent, cfg, steps
        self.said: list[str] = []

    @torch.inference_mode()
    def plain(self, text: str = TEXT) -> list:
        return plain_conditioning(self.clip, self.clip.tokenize(text))

    @torch.inference_mode()
    def node(self, strength: float = STRENGTH, seed: int = 0, text: str = TEXT, model: Any = None) -> tuple[Any, list]:
        chosen = self.model if model is None else model
        return Diversify.execute(chosen, self.clip, text, seed, strength).args

    def noise(self, batch: int = BATCH, seed: int = 0) -> Tensor:
        return torch.randn(batch, *self.latent, generator=torch.Generator().manual_seed(seed))

    @torch.inference_mode()
    def sample(self, model: Any, positive: list, batch: int = BATCH, **changed: Any) -> Tensor:
        """What KSampler computes."""
        self.said.clear()
        noise = changed.pop("noise", None)
        noise = self.noise(batch) if noise is None else noise
        options: dict[str, Any] = {
            "steps": self.steps,
            "cfg": self.cfg,
            "sampler_name": "euler",
            "scheduler": "simple",
            "negative": self.plain(NEGATIVE),
            "latent_image": torch.zeros_like(noise),
            "disable_pbar": True,
            "seed": 0,
        }
        return comfy.sample.sample(model, noise, positive=positive, **{**options, **changed})

    def stock(self, batch: int = BATCH, **changed: Any) -> Tensor:
        return self.sample(self.model, self.plain(), batch, **changed)

    @property
    def report(self) -> str:
        return self.said[-1] if self.said else ""


@pytest.fixture(scope="module")
def workflows() -> dict[str, Workflow]:
    return {}


@pytest.fixture
def workflow_of(workflows: dict[str, Workflow], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Workflow]:
    def make(kind: str) -> Workflow:
        if kind not in workflows:
            workflows[kind] = Workflow(*KINDS[kind])
        own = workflows[kind]
        own.said.clear()
        monkeypatch.setattr(driver, "show", lambda text, node: own.said.append(text))
        monkeypatch.setattr(driver, "recommended", partial(recommended, steps=FEW))
        return own

    return make


@pytest.fixture
def sd1(workflow_of: Callable[[str], Workflow]) -> Workflow:
    return workflow_of("sd1")


@pytest.fixture
def llm(workflow_of: Callable[[str], Workflow]) -> Workflow:
    return workflow_of("language model")


class _Stopped(Exception):
    """Stops a run before its first step."""


def as_alone(noise: Tensor, strength: float, run: Situation) -> Tensor:
    """What one image starts from in place of this noise."""
    return wide(noise, plan(strength, run).wide)


@pytest.fixture
def uncancelled() -> Iterator[None]:
    yield
    comfy.model_management.interrupt_current_processing(False)


# --- what it does -----------------------------------------------------------------------------------------------------


QUICK = ("sd1", "sdxl", "Z-Image")  # with CFG and without, one encoder and two, a language model


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_it_is_the_methods_one_after_another(kind: str, batch: int, workflow_of: Callable[[str], Workflow]) -> None:
    """Image k of a batch starts from noise k of Diverse Noise, one image from wide noise with a variant of Diverse
    Prompts; guidance is off at the first and the last steps."""
    own = workflow_of(kind)
    run = Situation(own.steps, own.cfg > 1, batch)
    chosen = plan(1.0, run)
    found = own.sample(*own.node(1.0, seed=5), batch, seed=3)
    model = guided_between(own.model, *chosen.unguided) if run.guided else own.model
    with torch.inference_mode():
        positive = plain = own.plain()
        if batch == 1:
            recipe = recommended(chosen.kappa, added_tokens=chosen.added_tokens, steps=FEW)
            rows, _ = vary_prompt(own.clip, TEXT, VARIANTS_OF_ONE, 5, recipe)
            between = None if can_blend(rows, plain) else unvaried(own.clip, TEXT, "auto", chosen.added_tokens)
            positive = scheduled(one_variant(rows, 3), plain, chosen.window, between=between)
    guided_alone = own.sample(model, plain, batch, seed=3)
    contrast = ContrastiveNoise.recommended(strength=chosen.noise_strength, wide=chosen.wide)
    model = with_noise_change(model, "test", contrast)
    by_hand = own.sample(model, positive, batch, seed=3)
    close = {"rtol": 1e-4, "atol": 1e-5}  # guidance of 1 is computed otherwise
    torch.testing.assert_close(found, by_hand, **close)
    assert all((a - b).norm() > 0.01 * b.norm() for a, b in zip(found, guided_alone, strict=True))
    if batch == 1:  # random weights hear little of the prompt
        assert not torch.allclose(found, own.sample(model, plain, batch, seed=3), **close)


def test_strength_0_is_the_stock_result(sd1: Workflow) -> None:
    model, positive = sd1.node(strength=0.0)
    assert model is sd1.model
    (cond, extras), (plain, plain_extras) = positive[0], sd1.plain()[0]
    assert torch.equal(cond, plain)
    assert extras.keys() == plain_extras.keys()
    assert torch.equal(sd1.sample(model, positive), sd1.stock())
    assert DiversifyModel.execute(sd1.model, 0.0).args[0] is sd1.model


def test_the_same_seed_gives_the_same_images(llm: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = llm.node(seed=1)
    first = llm.sample(*nodes, 1)
    assert "made in" in llm.report
    assert "cosine" not in llm.report  # that is for the log
    assert torch.equal(llm.sample(*nodes, 1), first)  # the same objects, as where ComfyUI has kept what the node gave
    assert "kept from an earlier run" in llm.report
    assert torch.equal(llm.sample(*llm.node(seed=1), 1), first)
    assert not torch.equal(llm.sample(*llm.node(seed=2), 1), first)
    monkeypatch.setattr(PromptEncoder, "_chunk_for", lambda *_: 2)
    torch.testing.assert_close(llm.sample(*llm.node(seed=1), 1), first, rtol=1e-3, atol=1e-3)


def test_a_batch_leaves_the_prompt_alone(llm: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images differ by their noise alone: the node's seed changes nothing, and the text encoder is not asked."""
    monkeypatch.setattr(driver, "vary_prompt", None)
    found = llm.sample(*llm.node(1.0, seed=1))
    assert "Prompt: as it is. Variants of it are for single images." in llm.report
    assert torch.equal(llm.sample(*llm.node(1.0, seed=2)), found)
    with torch.inference_mode():
        model = DiversifyModel.execute(llm.model, 1.0).args[0]
    assert torch.equal(llm.sample(model, llm.plain()), found)


def test_one_image_gets_a_variant_by_the_samplers_seed(llm: Workflow) -> None:
    nodes, noise = llm.node(), llm.noise(1)
    images = [llm.sample(*nodes, noise=noise, seed=seed) for seed in (7, 8, 7 + VARIANTS_OF_ONE)]
    assert "one image" in llm.report
    assert f"variant 8 of {VARIANTS_OF_ONE}, by the sampler's seed" in llm.report
    assert "Noise: its coarsest structure 1.8 times as large." in llm.report
    assert not torch.allclose(images[0], images[1], atol=1e-3)
    assert torch.equal(images[0], images[2])


@pytest.mark.parametrize("batch", [1, BATCH])
def test_guidance_is_off_at_the_first_and_the_last_steps(batch: int, sd1: Workflow) -> None:
    counter, noise = Counter(), sd1.noise(batch)
    run = Situation(sd1.steps, True, batch)
    first, last = plan(1.0, run).unguided
    assert (first, last) == (1, 2)
    with torch.inference_mode():
        model = DiversifyModel.execute(counter.on(sd1.model), 1.0).args[0]
    sd1.sample(model, sd1.plain(), noise=noise)
    passes = [size // batch for size in counter.sizes]
    estimates = RECOMMENDED.iterations if batch > 1 else 0
    assert passes == [1] * (estimates + first) + [2] * (sd1.steps - first - last) + [1] * last
    assert "CFG: off at the first step and the last 2 steps." in sd1.report
    assert sum(passes) == round(2 * sd1.steps * (1 + plan(1.0, run).extra_passes(run)))


@pytest.mark.parametrize(("sampler", "calls"), [("euler", 10), ("heun", 20)])  # heun asks at the last level, too
def test_a_sampler_that_stops_before_the_end_is_guided_to_its_last_step(
    sampler: str, calls: int, sd1: Workflow
) -> None:
    """The steps after it are another sampler's, which is left alone."""
    counter, noise = Counter(), sd1.noise(1)
    with torch.inference_mode():
        model = DiversifyModel.execute(counter.on(sd1.model), 1.0).args[0]
    sd1.sample(model, sd1.plain(), noise=noise, steps=20, last_step=10, sampler_name=sampler)
    assert counter.sizes == [1] + [2] * (calls - 1)
    assert "CFG: off at the first step." in sd1.report


@pytest.mark.parametrize(("sampler", "calls"), [("euler", 1), ("heun", 2), ("dpm_2", 2), ("dpmpp_2m", 1)])
def test_guidance_in_an_interval_with_other_samplers(sampler: str, calls: int, sd1: Workflow) -> None:
    """They ask between two noise levels, too, or twice at one."""
    noise = sd1.noise(1)
    first, last = plan(1.0, Situation(20, True, 1)).unguided
    counter = Counter()
    with torch.inference_mode():
        model = DiversifyModel.execute(counter.on(sd1.model), 1.0).args[0]
    found = sd1.sample(model, sd1.plain(), noise=noise, steps=20, sampler_name=sampler)
    by_hand = guided_between(sd1.model, first, last)
    start = as_alone(noise, 1.0, Situation(20, True, 1))
    other = sd1.sample(by_hand, sd1.plain(), noise=start, steps=20, sampler_name=sampler)
    torch.testing.assert_close(found, other, rtol=1e-3, atol=1e-3)
    assert counter.sizes[0] == counter.sizes[-1] == 1
    assert (len(counter.sizes) + 1) // calls == (20 if calls == 2 else 21)
    assert set(counter.sizes[calls * first : -calls * last]) == {2}


def test_a_run_that_begins_in_the_middle_is_guided_from_its_first_step(sd1: Workflow) -> None:
    """A second pass at a lower denoise: what is where is decided already."""
    counter = Counter()
    with torch.inference_mode():
        model = DiversifyModel.execute(counter.on(sd1.model), 1.0).args[0]
    sd1.sample(model, sd1.plain(), noise=sd1.noise(1), steps=10, denoise=0.5)
    assert counter.sizes == [2] * 8 + [1] * 2
    assert "CFG: off at the last 2 steps." in sd1.report
    assert "Noise: as it is, the image is begun already." in sd1.report


def test_noise_without_an_image_grid_is_as_it_is(llm: Workflow) -> None:
    """Of sound, and of what reaches a sampler packed."""
    with torch.inference_mode():
        change = DiversifyModel.execute(llm.model, 1.0).args[0]
    noise = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    started: list[Tensor] = []

    def watched(executor: Any, *given: Any, **named: Any) -> Any:
        started.append(given[4])  # what the sampler itself is given
        raise _Stopped

    change.add_wrapper(WrappersMP.SAMPLER_SAMPLE, watched)
    with pytest.raises(_Stopped):
        llm.sample(change, llm.plain(), noise=noise)
    assert torch.equal(started[0], noise)
    assert "Noise: as it is. The latent is [1, 4, 64]" in llm.report


def rescaled(model: Any) -> Any:
    from comfy_extras.nodes_model_advanced import RescaleCFG

    return RescaleCFG().patch(model, 0.7)[0]


def saturated(model: Any) -> Any:
    from comfy_extras.nodes_apg import APG

    return APG.execute(model, 1.0, 5.0, 0.0).args[0]


def self_attended(model: Any) -> Any:
    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"], disable_cfg1_optimization=True)
    return patched


def cached(model: Any) -> Any:
    from comfy_extras.nodes_easycache import EasyCacheNode

    return EasyCacheNode.execute(model, 0.0, 0.0, 1.0, False).args[0]


@pytest.mark.parametrize(
    ("change", "sampler", "why"),
    [
        (rescaled, "euler", "a node on the model (RescaleCFG, for instance) changes the guidance itself"),
        (saturated, "euler", "a node on the model (RescaleCFG, for instance) changes the guidance itself"),
        (self_attended, "euler", "a node on the model reads the negative prompt at every step"),
        (cached, "euler", "there is a step cache on the model"),
        (lambda model: model, "euler_cfg_pp", "the sampler euler_cfg_pp has a guidance of its own"),
    ],
    ids=["RescaleCFG", "APG", "negative at every step", "EasyCache", "CFG++"],
)
def test_guidance_that_a_scale_of_1_does_not_switch_off_is_left_alone(
    change: Callable[[Any], Any], sampler: str, why: str, sd1: Workflow
) -> None:
    noise, counter = sd1.noise(1), Counter()
    changed = change(sd1.model)
    with torch.inference_mode():
        model = DiversifyModel.execute(counter.on(changed), 1.0).args[0]
    found = sd1.sample(model, sd1.plain(), noise=noise, sampler_name=sampler)
    assert f"CFG: as it is, since {why}." in sd1.report
    assert "Sampling takes" not in sd1.report
    assert set(counter.sizes) == {2}
    start = as_alone(noise, 1.0, Situation(sd1.steps, True, 1))
    assert torch.equal(found, sd1.sample(changed, sd1.plain(), noise=start, sampler_name=sampler))


def test_below_1_guidance_is_not_raised(sd1: Workflow) -> None:
    noise = sd1.noise(1)
    with torch.inference_mode():
        model = DiversifyModel.execute(sd1.model, 1.0).args[0]
    found = sd1.sample(model, sd1.plain(), noise=noise, cfg=0.5)
    start = as_alone(noise, 1.0, Situation(sd1.steps, True, 1))
    assert torch.equal(found, sd1.sample(sd1.model, sd1.plain(), noise=start, cfg=0.5))


def test_an_error_leaves_the_guidance_scale(sd1: Workflow) -> None:
    """At a step without guidance."""

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("broken")

    model = sd1.model.clone()
    model.set_model_unet_function_wrapper(broken)
    with torch.inference_mode():
        guider = comfy.samplers.CFGGuider(DiversifyModel.execute(model, 1.0).args[0])
        guider.set_conds(sd1.plain(), sd1.plain(NEGATIVE))
        guider.set_cfg(6.0)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 12)
        noise = sd1.noise(1)
        with pytest.raises(RuntimeError, match="broken"):
            guider.sample(noise, noise * 0, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)
    assert guider.cfg == 6.0


def guided_between(model: Any, first: int, last: int) -> Any:
    """By another way than the pack's: the result of guidance is replaced."""
    patched = model.clone()

    def guided(args: dict[str, Any]) -> Tensor:
        levels = args["model_options"]["transformer_options"]["sample_sigmas"].tolist()
        sigma = float(args["timestep"].flatten()[0])
        early = first > 0 and sigma > levels[first] * 1.001
        late = last > 0 and sigma < levels[len(levels) - 1 - last] * 1.001
        scale = 1.0 if early or late else args["cond_scale"]
        return args["uncond"] + (args["cond"] - args["uncond"]) * scale

    patched.set_model_sampler_cfg_function(guided)
    return patched


def test_a_guider_with_a_guidance_of_its_own_keeps_it(sd1: Workflow) -> None:
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    model, positive = sd1.node(strength=1.0)
    counter = Counter()
    guider = Guider_DualCFG(counter.on(model))
    guider.set_conds(positive, sd1.plain("other"), sd1.plain(NEGATIVE))
    guider.set_cfg(5.0, 2.0)
    noise = sd1.noise(1)
    with torch.inference_mode():
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 12)
        guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)
    assert counter.sizes == [3] * 12
    assert "CFG: as it is, since Guider_DualCFG has a guidance of its own." in sd1.report
    assert "variant 1 of" in sd1.report


# --- what other nodes make of it --------------------------------------------------------------------------------------


def test_guidance_for_flux_reaches_the_variant(workflow_of: Callable[[str], Workflow]) -> None:
    flux = workflow_of("flux")
    model, positive = flux.node()
    strong, weak = (FluxGuidance.append(positive, guidance).args[0] for guidance in (1.0, 30.0))
    images = [flux.sample(model, one, 1) for one in (strong, weak)]
    assert "Prompt: variant" in flux.report
    assert not torch.allclose(images[0], images[1], atol=1e-4)


@pytest.mark.parametrize("batch", [1, BATCH])
def test_zeroed_out_it_is_the_stock_negative(batch: int, sd1: Workflow) -> None:
    """The official templates of models at CFG 1 make their negative of the positive."""
    model, positive = sd1.node()
    with torch.inference_mode():
        zero, plain_zero = (stock.ConditioningZeroOut().zero_out(one)[0] for one in (positive, sd1.plain()))
    images = [sd1.sample(model, positive, batch, negative=one) for one in (zero, plain_zero)]
    assert torch.equal(*images)


def test_changed_embeddings_are_refused_where_a_variant_would_undo_them(sd1: Workflow) -> None:
    model, positive = sd1.node()
    with torch.inference_mode():
        joined, plain = (
            stock.ConditioningConcat().concat(one, sd1.plain("at night"))[0] for one in (positive, sd1.plain())
        )
    with pytest.raises(ValueError, match="Diversify's conditioning were changed"):
        sd1.sample(model, joined, 1)
    assert torch.equal(sd1.sample(model, joined), sd1.sample(model, plain))  # a batch has no variants


def test_a_schedule_of_its_own_is_refused_for_one_image(sd1: Workflow) -> None:
    model, positive = sd1.node()
    with torch.inference_mode():
        morph, plain = (scheduled(one, sd1.plain("at night"), Window(0.5)) for one in (positive, sd1.plain()))
    with pytest.raises(ValueError, match="was given to Schedule Conditioning"):
        sd1.sample(model, morph, 1)
    assert torch.equal(sd1.sample(model, morph), sd1.sample(model, plain))  # a batch has no variants


def test_a_second_sampler_goes_on_with_the_first_ones_images(sd1: Workflow) -> None:
    nodes = sd1.node()
    begun = sd1.noise(seed=3)
    given = {"latent_image": begun, "noise": torch.zeros_like(begun), "start_step": 5}
    found = sd1.sample(*nodes, **given)
    assert torch.equal(found, sd1.stock(**given))
    assert sd1.said == []


# --- what it says where it can do less --------------------------------------------------------------------------------


def test_no_clip(sd1: Workflow) -> None:
    with pytest.raises(ValueError, match=r"clip is empty.*Load CLIP.*Diversify \(Model Only\)"):
        Diversify.execute(sd1.model, None, TEXT, 0, STRENGTH)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_another_strength(strength: float, sd1: Workflow) -> None:
    for nodes in (sd1.node, lambda strength: DiversifyModel.execute(sd1.model, strength)):
        with pytest.raises(ValueError, match=r"strength is .*; it must be a number from 0 to 1"):
            nodes(strength=strength)


def test_an_empty_prompt(llm: Workflow) -> None:
    model, positive = llm.node(text="  ")
    start = as_alone(llm.noise(1), STRENGTH, Situation(llm.steps, False, 1))
    assert torch.equal(llm.sample(model, positive, 1), llm.sample(llm.model, llm.plain("  "), noise=start))
    llm.sample(model, positive, 1)
    assert "Prompt: no variants, it is empty" in llm.report
    found = llm.sample(model, positive)
    assert "moved apart by" in llm.report
    assert not torch.allclose(found, llm.sample(llm.model, llm.plain("  ")), atol=1e-3)


def test_a_prompt_that_fills_its_encoder_varies_in_its_own_words(llm: Workflow) -> None:
    """As with PixelDiT and LongCat, whose tokenizers cut."""
    own, text, clip = llm, " ".join(["fish"] * 600), small_encoder("t5")
    cut = ShortTokens(clip, len(clip.tokenize(text)["t5xxl"][0]))
    with torch.inference_mode():
        model, positive = Diversify.execute(own.model, cut, text, 0, STRENGTH).args
    images = own.sample(model, positive, 1)
    assert f"of {VARIANTS_OF_ONE}, by the sampler's seed" in own.report
    assert "The prompt fills its encoder, so its own words vary." in own.report
    with torch.inference_mode():
        plain = plain_conditioning(clip, clip.tokenize(text))
    assert not torch.allclose(images, own.sample(own.model, plain, 1), atol=1e-4)


class ShortTokens:
    """A CLIP whose tokenizer reads so many tokens, the last of them the mark of the end, and drops the rest."""

    def __init__(self, clip: Any, length: int) -> None:
        self._clip, self._length = clip, length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clip, name)

    def tokenize(self, text: str, **options: Any) -> dict[str, list]:
        found = self._clip.tokenize(text, **options)
        return {key: [[*row[: self._length - 1], row[-1]] for row in rows] for key, rows in found.items()}


def test_an_output_that_is_not_connected_is_named(llm: Workflow) -> None:
    model, positive = llm.node()
    llm.sample(llm.model, positive, 1)
    assert "Prompt: variant 1 of" in llm.report
    assert "the model output of Diversify does not reach this sampler" in llm.report
    llm.sample(model, llm.plain())
    assert "the positive output of Diversify does not reach this sampler" in llm.report
    assert "moved apart by" in llm.report


def test_an_encoder_without_gradients_is_searched(sd1: Workflow, rounded: Any) -> None:  # noqa: F811
    with torch.inference_mode():
        model, positive = Diversify.execute(sd1.model, rounded, TEXT, 0, STRENGTH).args
    images = sd1.sample(model, positive, 1)
    assert "found by search without gradients" in sd1.report
    assert torch.equal(images, sd1.sample(model, positive, 1))


def test_a_model_that_reads_tokens_besides_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anima: a batch has noise, one image has its variant."""
    pytest.importorskip("comfy.ldm.anima", reason="this ComfyUI has no Anima")
    anima = Workflow(lambda: small_released("Anima")[:2], (16, 1, 8, 8), 4.0, 5)
    monkeypatch.setattr(driver, "show", lambda text, node: anima.said.append(text))
    monkeypatch.setattr(driver, "recommended", partial(recommended, steps=FEW))
    nodes = anima.node()
    anima.sample(*nodes)
    assert "Noise: its coarse structure moved apart by 0.30" in anima.report
    anima.sample(*nodes, 1)
    assert f"of {VARIANTS_OF_ONE}, by the sampler's seed" in anima.report


def test_images_that_start_alike(llm: Workflow) -> None:
    with torch.inference_mode():
        model = DiversifyModel.execute(llm.model, STRENGTH).args[0]
    noise = llm.noise(1).expand(BATCH, -1, -1, -1).clone()
    found = llm.sample(model, llm.plain(), noise=noise)
    assert "Noise: as it is. Images 0 and 1 of the batch" in llm.report
    assert torch.equal(found, llm.stock(noise=noise))


# --- what it leaves behind --------------------------------------------------------------------------------------------


def test_cancel(llm: Workflow, monkeypatch: pytest.MonkeyPatch, uncancelled: None) -> None:
    """While variants are made, and while noise is optimised; afterwards all is as if it had not been."""
    nodes = llm.node(seed=3)
    weights = [one.clone() for one in llm.model.model.diffusion_model.parameters()]
    cancel = comfy.model_management.interrupt_current_processing

    def cancelled(*_: Any, **__: Any) -> None:
        cancel()
        comfy.model_management.throw_exception_if_processing_interrupted()

    for target, name, batch in ((driver.Progress, "step", 1), (ContrastiveNoise, "__call__", BATCH)):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, cancelled)
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                llm.sample(*nodes, batch)
        assert llm.said == []
    now = list(llm.model.model.diffusion_model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, now, strict=True))
    for batch in (1, BATCH):
        assert torch.equal(llm.sample(*nodes, batch), llm.sample(*llm.node(seed=3), batch))


def test_the_models_are_as_they_were(sd1: Workflow) -> None:
    before = sd1.stock()
    options = sd1.model.model_options
    model, positive = sd1.node()
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, sd1.plain(NEGATIVE))
    guider.set_cfg(6.0)
    noise = sd1.noise()
    with torch.inference_mode():
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 6)
        for _ in range(2):
            guider.sample(noise, noise * 0, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)
    assert guider.cfg == 6.0
    assert WrappersMP.PREDICT_NOISE not in guider.model_options["transformer_options"].get("wrappers", {})
    assert sd1.model.model_options is options
    assert WrappersMP.SAMPLER_SAMPLE not in options["transformer_options"].get("wrappers", {})
    assert all("encode" not in vars(module) for module in text_encoders(sd1.clip).values())
    assert torch.equal(sd1.stock(), before)
