"""Diverse Prompts: its outputs beside the stock nodes', its rows in real sampling runs, and what it says of itself."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import folder_paths
import pytest
import torch
from comfyui_diversity.core.drivers import tpso as driver
from comfyui_diversity.core.drivers.schedule import PAYLOAD
from comfyui_diversity.core.hooks.carried import payloads
from comfyui_diversity.core.hooks.prompt import text_encoders
from comfyui_diversity.core.hooks.text import PromptEncoder
from comfyui_diversity.core.methods.schedule import Window
from comfyui_diversity.core.methods.tpso import Settings, least_mean_pairwise
from comfyui_diversity.demo import loader
from comfyui_diversity.nodes._inputs import Options, read_options
from comfyui_diversity.nodes.schedule import ScheduleConditioning
from comfyui_diversity.nodes.tpso import DiversePrompts
from comfyui_diversity.nodes.tpso_options import DiversePromptsOptions
from safetensors.torch import load_file, save_file
from small.encoders import small_encoder
from small.models import random_latent, small_model
from torch import Tensor

stock = importlib.import_module("nodes")  # ComfyUI's, not the pack's

VARIANTS = 3
MAIN: dict[str, Any] = {
    "negative_text": "",
    "variants": VARIANTS,
    "similarity": 0.8,
    "ratio": 0.4,
    "seed": 0,
    "mode": "recommended",
}
STEPS = 12
fast = pytest.mark.fast
PROMPTS = {
    "short": "a red fish",
    "weights": "a (red:1.4) fish in (water:0.6)",
    "long": "a red fish in deep blue water, " * 9,
    "BREAK": "a red fish BREAK deep water",
}


def options(**changed: Any) -> Options:
    """What Diverse Prompts Options gives."""
    return DiversePromptsOptions.execute(**{**read_options(DiversePromptsOptions, None), **changed}).args[0]


def run(clip: Any, text: str = "a red fish", **changed: Any) -> tuple[list, list, list, Tensor, str]:
    """positive, negative, plain, plot, report; few steps on the prompt's own words where nothing else is said."""
    own = {name: changed.pop(name, value) for name, value in MAIN.items()}
    more = options(**{"steps": STEPS, "added_tokens": 0, **changed})
    with torch.inference_mode():
        return DiversePrompts.execute(clip, text, **own, options=more).args


def stock_encode(clip: Any, text: str = "a red fish") -> list:
    with torch.inference_mode():
        return stock.CLIPTextEncode().encode(clip, text)[0]


def assert_same(a: list, b: list) -> None:
    """Bitwise the same CONDITIONING."""
    assert len(a) == len(b)
    for (cond, extras), (other, other_extras) in zip(a, b, strict=True):
        assert torch.equal(cond, other)
        assert set(extras) == set(other_extras)
        for name, value in extras.items():
            if isinstance(value, Tensor):
                assert torch.equal(value, other_extras[name]), name
            else:
                assert value is other_extras[name] or value == other_extras[name], name


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Path]:
    """A user folder that is thrown away."""
    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_user_directory(before)


# --- the prompt itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "prompt", "added"),
    [
        pytest.param("sd1", "weights", 0, marks=fast),
        ("sd2", "short", 4),
        pytest.param("sdxl", "BREAK", 4, marks=fast),
        ("flux", "weights", 4),
        ("t5", "long", 0),
        ("qwen3", "BREAK", 4),
    ],
)
def test_plain_and_negative_are_the_stock_nodes_bitwise(kind: str, prompt: str, added: int) -> None:
    clip = small_encoder(kind)
    before = stock_encode(clip, PROMPTS[prompt])
    changed = {"negative_text": "a blue (tree:1.2)", "encoders": "all", "steps": 3, "added_tokens": added}
    positive, negative, plain, plot, _ = run(clip, PROMPTS[prompt], **changed)
    assert_same(plain, before)
    assert_same(negative, stock_encode(clip, "a blue (tree:1.2)"))
    assert_same(stock_encode(clip, PROMPTS[prompt]), before)  # and the encoder is as it was
    assert positive[0][0].shape[::2] == (VARIANTS, plain[0][0].shape[2])
    assert torch.isfinite(positive[0][0]).all()
    assert (positive[0][0][0] - positive[0][0][1]).abs().max() > 1e-3
    if plain[0][1].get("pooled_output") is not None:
        assert len(positive[0][1]["pooled_output"]) == VARIANTS
    assert plot.ndim == 4
    assert plot.shape[-1] == 3
    assert 0 <= float(plot.min()) <= float(plot.max()) <= 1


def test_embeddings_by_name(tmp_path: Path) -> None:
    clip = small_encoder("sd1")
    vectors = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    save_file({"emb_params": vectors}, tmp_path / "mine.safetensors")
    clip.tokenizer.clip_l.embedding_directory = str(tmp_path)
    clip.tokenizer.clip_l.embedding_size = 64
    text = "a embedding:mine fish"
    assert not torch.equal(stock_encode(clip, text)[0][0], stock_encode(clip, "a fish")[0][0])
    positive, _, plain, _, report = run(clip, text)
    assert_same(plain, stock_encode(clip, text))
    assert positive[0][0].shape == (VARIANTS, 77, 64)
    assert "NOT" not in report


def test_clip_skip() -> None:
    clip = small_encoder("sd1").clone()
    last = run(clip, schedule="off")
    clip.clip_layer(-2)
    skipped = run(clip, schedule="off")
    assert_same(skipped[2], stock_encode(clip))
    assert not torch.equal(skipped[2][0][0], last[2][0][0])
    assert not torch.equal(skipped[0][0][0], last[0][0][0])
    # The pooled vector is the last layer's whatever the skip, and so are the offsets found with it.
    assert torch.equal(skipped[0][0][1]["pooled_output"], last[0][0][1]["pooled_output"])


def test_lora_patched_encoders() -> None:
    """The variants are those of the patched encoder; the shared one is as before."""
    clip = small_encoder("qwen3")
    before, unpatched = stock_encode(clip), run(clip)
    weights = clip.cond_stage_model.state_dict()
    name = next(key for key in weights if key.endswith("layers.0.mlp.up_proj.weight"))
    change = 0.1 * torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(2))
    patched = clip.clone()
    patched.add_patches({name: ("diff", (change,))}, 1.0)
    positive, _, plain, _, report = run(patched)
    assert_same(plain, stock_encode(patched))
    assert not torch.equal(plain[0][0], before[0][0])
    assert not torch.equal(positive[0][0], unpatched[0][0][0])
    assert "NOT" not in report
    assert_same(stock_encode(clip), before)


# --- variants --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "added"),
    [
        pytest.param("sd1", 0, marks=fast),
        ("sdxl", 4),
        ("t5", 0),
        ("qwen3", 4),
    ],
)
def test_every_encoder_reaches_the_similarity(kind: str, added: int) -> None:
    *_, report = run(small_encoder(kind), encoders="all", steps=100, added_tokens=added)
    assert "NOT" not in report, report
    assert ("4 added tokens" in report) == (added > 0)


@pytest.mark.parametrize("added", [0, pytest.param(4, marks=fast)])
def test_the_demo_clip_comes_near_the_bound(added: int) -> None:
    recipe = driver.recommended(0.8, added_tokens=added)
    with torch.inference_mode():
        _, [outcome] = driver.vary_prompt(loader.load_clip(), "a heart on the right", 10, 0, recipe)
    assert outcome.vector == "projected pooled"
    assert (outcome.variants.cosines[-1] - 0.8).abs().max() <= 0.01
    assert float(outcome.variants.spreads[-1]) <= least_mean_pairwise(0.8, 10) * 1.03


def test_the_same_each_time_and_another_by_another_seed() -> None:
    clip = small_encoder("sd1")
    first = run(clip)
    assert torch.equal(run(clip)[0][0][0], first[0][0][0])
    assert not torch.allclose(run(clip, seed=1)[0][0][0], first[0][0][0], atol=1e-3)
    assert torch.isfinite(run(clip, seed=2**64 - 1)[0][0][0]).all()


@pytest.mark.parametrize(("kind", "added"), [("sd1", 4), ("t5", 0)])
def test_chunks_do_not_matter(kind: str, added: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to rounding: a matrix product of one row rounds otherwise than one of five."""
    found = []
    for chunk in (5, 2):
        monkeypatch.setattr(PromptEncoder, "_chunk_for", lambda self, count, chunk=chunk: min(count, chunk))
        found.append(run(small_encoder(kind), variants=5, schedule="off", added_tokens=added, keep_words=True)[0][0])
    for cond, extras in found[1:]:
        assert torch.allclose(cond, found[0][0], atol=2e-4)
        assert (cond - found[0][0]).abs().max() < (cond[0] - cond[1]).abs().max() / 5000
        if extras.get("pooled_output") is not None:
            assert torch.allclose(extras["pooled_output"], found[0][1]["pooled_output"], atol=2e-4)


def test_one_variant_alone() -> None:
    clip = small_encoder("sdxl")
    whole, alone = run(clip)[0], run(clip, variant=2)
    assert torch.equal(alone[0][0][0], whole[0][0][1:2])
    assert torch.equal(alone[0][0][1]["pooled_output"], whole[0][1]["pooled_output"][1:2])
    assert f"Variant 2 of {VARIANTS} alone" in alone[4]
    with pytest.raises(ValueError, match="variant is 4; it must be 0"):
        run(clip, variant=4)


def test_which_encoders() -> None:
    clip = small_encoder("flux")
    alone, auto = run(clip, encoders="clip"), run(clip)
    assert torch.equal(alone[0][0][0][0], alone[0][0][0][1])  # T5 makes this output, and it is as it is
    assert not torch.equal(auto[0][0][0][0], auto[0][0][0][1])
    assert "t5xxl: as it is (encoders = all varies it too)" in alone[4]
    assert "as it is" not in auto[4]
    assert (len(alone[3]), len(auto[3])) == (1, 2)


# --- the negative ----------------------------------------------------------------------------------------------------


def test_the_negatives_variants_are_kept_on_disk(user: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Any) -> None:
    """Whatever prompt and seed; another similarity makes others."""
    clip = small_encoder("sd1")
    positive, negative, _, plot, report = run(clip, vary_negative=True)
    assert negative[0][0].shape == (VARIANTS, 77, 64)
    assert not torch.equal(negative[0][0][0], negative[0][0][1])
    assert PAYLOAD in payloads(negative[0][1])
    assert len(plot) == 2
    assert "negative, clip_l" in report
    assert "loaded" not in report
    [file] = (user / "__diversity" / "variants").iterdir()

    real, optimised = driver.optimise_variants, []

    def count(start: Tensor, reference: Tensor, encode: Any, settings: Settings, *rest: Any) -> Any:
        optimised.append(settings.steps)
        return real(start, reference, encode, settings, *rest)

    monkeypatch.setattr(driver, "optimise_variants", count)
    again = run(clip, "two blue trees", vary_negative=True, seed=5)
    assert optimised == [STEPS]
    assert "loaded from an earlier run" in again[4]
    assert torch.equal(again[1][0][0], negative[0][0])
    assert list(file.parent.iterdir()) == [file]
    run(clip, vary_negative=True, similarity=0.7)
    assert len(list(file.parent.iterdir())) == 2

    save_file({name: value * float("nan") for name, value in load_file(file).items()}, file)
    assert torch.equal(run(clip, vary_negative=True)[1][0][0], negative[0][0])
    assert bool(load_file(file)["offsets"].isfinite().all())
    file.write_bytes(b"broken")
    with full_disk():
        assert torch.equal(run(clip, vary_negative=True)[1][0][0], negative[0][0])
    assert file.read_bytes() == b"broken"
    assert len(list(file.parent.iterdir())) == 2
    assert torch.equal(run(clip, vary_negative=True)[1][0][0], negative[0][0])
    assert torch.equal(run(clip, vary_negative=True)[0][0][0], positive[0][0])


def test_a_negative_that_cannot_be_varied_says_so(user: Path) -> None:
    with pytest.raises(ValueError, match=r"negative_text cannot be varied: .* switch vary_negative off"):
        run(small_encoder("t5"), vary_negative=True)


# --- in a sampler ----------------------------------------------------------------------------------------------------


def sample(model: Any, noise: Tensor, positive: list, negative: list, steps: int = 4, cfg: float = 3.0) -> Tensor:
    """What KSampler gives."""
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, cfg, "euler", "simple", positive, negative, torch.zeros_like(noise), seed=0,
            disable_pbar=True,
        )  # fmt: skip


@pytest.mark.parametrize(("family", "kind"), [pytest.param("eps", "sd1", marks=fast), ("flux", "flux")])
def test_row_k_reaches_image_k(family: str, kind: str, user: Path) -> None:
    """Each image of the batch is the one that its variant makes alone from the same noise."""
    clip, model = small_encoder(kind), small_model(family)
    changed = {"vary_negative": kind == "sd1", "ratio": 0.7}
    noise = random_latent(family, VARIANTS)
    positive, negative, plain, *_ = run(clip, **changed)
    whole = sample(model, noise, positive, negative)
    without = sample(model, noise, plain, stock_encode(clip, ""))
    for k in (0, VARIANTS - 1):
        own_positive, own_negative, *_ = run(clip, **changed, variant=k + 1)
        alone = sample(model, noise[k : k + 1], own_positive, own_negative)
        assert torch.allclose(whole[k : k + 1], alone, atol=1e-3)
        assert (whole[k] - without[k]).abs().max() > 1e-2
    equal_noise = noise[:1].repeat(VARIANTS, *[1] * (noise.ndim - 1))
    alike = sample(model, equal_noise, positive, negative)
    assert (alike[0] - alike[1]).abs().max() > 1e-2


def test_the_built_in_schedule_is_schedule_conditionings() -> None:
    clip, model, noise = small_encoder("sd1"), small_model("eps"), random_latent("eps", VARIANTS)
    positive, negative, plain, *_ = run(clip, ratio=0.6, schedule="smooth")
    bare = run(clip, schedule="off")[0]
    assert PAYLOAD not in payloads(bare[0][1])
    own = ScheduleConditioning.execute(bare, plain, 0.6, 0.0, "smooth", 0, "steps").args[0]
    images = sample(model, noise, positive, negative)
    assert torch.equal(images, sample(model, noise, own, negative))
    assert not torch.equal(images, sample(model, noise, bare, negative))


def test_ratio_0_gives_the_plain_images_bitwise() -> None:
    clip, model, noise = small_encoder("sd1"), small_model("eps"), random_latent("eps", VARIANTS)
    positive, negative, plain, _, report = run(clip, ratio=0.0)
    assert torch.equal(sample(model, noise, positive, negative), sample(model, noise, plain, negative))
    assert "ratio is 0: the variants are never in force" in report


def test_few_steps_without_guidance() -> None:
    clip, model, noise = small_encoder("flux"), small_model("flux"), random_latent("flux", VARIANTS)
    positive, negative, plain, _, report = run(clip, perturbed_steps=1)
    images = sample(model, noise, positive, negative, cfg=1.0)
    assert not torch.equal(images, sample(model, noise, plain, negative, cfg=1.0))
    assert "first 1 step (linear)" in report


# --- what it says ----------------------------------------------------------------------------------------------------


def test_report() -> None:
    clip = small_encoder("sdxl")
    report = run(clip, steps=100)[4]
    assert "clip_l (projected pooled): cosine to the prompt" in report
    assert "clip_g (projected pooled): cosine to the prompt" in report
    assert "lower bound" in report
    assert "In force over the first 40% of the steps (linear)." in report
    assert f"For a batch of {VARIANTS} images." in report
    with torch.inference_mode():
        text_encoders(clip)["clip_l"].transformer.text_projection.weight.zero_()
    assert "clip_l (unprojected pooled)" in run(clip)[4]
    assert "(mean of the output, common mean removed)" in run(small_encoder("t5"))[4]
    assert "(output behind the words, common mean removed)" in run(small_encoder("qwen3"), added_tokens=0)[4]


def test_a_single_variant_says_that_it_has_no_other() -> None:
    positive, *_, report = run(small_encoder("sd1"), variants=1)
    assert len(positive[0][0]) == 1
    assert "a single variant only moves away from the prompt" in report
    assert "batch" not in report


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"similarity": 1.0}, "similarity is 1: all variants are the prompt itself"),
        ({"steps": 0}, "The aim was NOT reached"),
        ({"ratio": -0.3}, "last 30% of the steps"),
        ({"schedule": "off"}, "No schedule: the variants are in force for the whole run"),
    ],
)
def test_what_changes_little_is_said(changed: dict[str, Any], words: str) -> None:
    assert words in run(small_encoder("sd1"), **changed)[4]


@pytest.mark.parametrize(
    "changed",
    [{"similarity": 1.0, "keep_words": True}, {"steps": 0, "keep_words": True}],
)
def test_similarity_1_and_no_steps_are_the_prompt_itself(changed: dict[str, Any]) -> None:
    positive, _, plain, *_ = run(small_encoder("sd1"), **changed, schedule="off")
    assert torch.allclose(positive[0][0], plain[0][0].expand(VARIANTS, -1, -1), atol=1e-6)


def test_progress_shows_cosine_and_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    from comfy_execution.utils import CurrentNodeContext

    said: list[tuple[str, str]] = []
    instance = SimpleNamespace(send_progress_text=lambda text, node: said.append((node, text)))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance)))
    with CurrentNodeContext("prompt", "17"):
        report = run(small_encoder("sd1"), keep_words=True)[4]
    assert said[-1] == ("17", report)
    assert said.pop(0)[1] == "clip_l: the prompt with another word, 21 of 21"
    assert len(said) > 1
    assert said[0][1].startswith("clip_l: cosine to the prompt ")
    assert ", between variants " in said[0][1]


def test_cancel_stops_and_leaves_the_encoder_as_it_was() -> None:
    clip = small_encoder("sd1")
    before = stock_encode(clip)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(clip)
    assert not comfy.model_management.processing_interrupted()
    assert_same(stock_encode(clip), before)
    assert all("encode" not in vars(m) and "process_tokens" not in vars(m) for m in text_encoders(clip).values())


def test_errors_are_in_plain_words() -> None:
    clip = small_encoder("sd1")
    with pytest.raises(ValueError, match="clip is empty"):
        run(None)
    with pytest.raises(ValueError, match="Write a prompt"):
        run(small_encoder("t5"), "")
    scheduled_clip = clip.clone()
    scheduled_clip.patcher.forced_hooks = object()
    scheduled_clip.use_clip_schedule = True
    with pytest.raises(ValueError, match="Switch schedule_clip off"), torch.inference_mode():
        driver.vary_prompt(scheduled_clip, "a", 2, 0, driver.recommended())


# --- the mode and the options ----------------------------------------------------------------------------------------


@fast
def test_without_options_the_recommended_settings_hold() -> None:
    clip = small_encoder("sd1")
    main = {name: MAIN[name] for name in ("negative_text", "variants", "similarity", "ratio", "seed")}
    with torch.inference_mode():
        bare = DiversePrompts.execute(clip, "a red fish", **main).args
    same: dict[str, Any]
    for same in ({"steps": 60, "added_tokens": 4}, {"steps": -1, "added_tokens": -1}):
        assert torch.equal(bare[0][0][0], run(clip, **same)[0][0][0])
    assert "4 added tokens" in bare[4]


@pytest.mark.parametrize(("name", "value"), [("added_tokens", -2), ("steps", -2), ("learning_rate", 0.0)])
def test_a_value_that_is_not_allowed_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be"):
        run(small_encoder("sd1"), **{name: value})


@fast
def test_few_widgets_in_plain_sight_and_the_defaults_are_the_methods() -> None:
    given = DiversePrompts.GET_NODE_INFO_V1()["input"]
    assert list(given["required"]) == ["clip", "text", *MAIN]
    assert list(given["optional"]) == ["options"]
    own = {name: entry[1] for name, entry in given["required"].items()}
    assert own["similarity"]["default"] == Settings().kappa
    assert own["seed"]["control_after_generate"]
    more = read_options(DiversePromptsOptions, None)
    settings, window = Settings(), Window()
    assert [more[name] for name in ("tolerance", "diversity")] == [settings.tolerance, settings.diversity]
    assert (more["schedule"], more["perturbed_steps"]) == (window.easing, window.steps)


@torch.inference_mode()
def test_a_prompt_of_which_the_model_reads_more_than_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Anima, whose model reads the numbers of the prompt's tokens in T5's vocabulary."""
    clip = small_encoder("qwen3")
    real, ids = clip.cond_stage_model.encode_token_weights, torch.tensor([5, 6, 1], dtype=torch.int)

    def encode(pairs: Any) -> tuple[Any, ...]:
        out, pooled, extra = real(pairs)
        return out, pooled, {**extra, "t5xxl_ids": ids}

    monkeypatch.setattr(clip.cond_stage_model, "encode_token_weights", encode)
    with pytest.raises(ValueError, match="reads the prompt's t5xxl_ids besides its embeddings"):
        run(clip)
    [(cond, extras)] = run(clip, variant=2, schedule="off")[0]
    assert len(cond) == 1
    assert torch.equal(extras["t5xxl_ids"], ids)
