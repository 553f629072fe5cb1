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
from comfyui_diversity.core.drivers import tpso as variants_hook
from comfyui_diversity.core.drivers.schedule import PAYLOAD
from comfyui_diversity.core.hooks.prompt import text_encoders
from comfyui_diversity.core.hooks.text import PromptEncoder
from comfyui_diversity.core.methods.schedule import Window
from comfyui_diversity.core.methods.tpso import Settings, least_mean_pairwise
from comfyui_diversity.demo import loader
from comfyui_diversity.nodes.schedule import ScheduleConditioning
from comfyui_diversity.nodes.tpso import DiversePrompts
from safetensors.torch import save_file
from small.encoders import ENCODERS, small_encoder
from small.models import random_latent, small_model
from torch import Tensor

stock = importlib.import_module("nodes")  # ComfyUI's, not the pack's

VARIANTS = 3
OPTIONS: dict[str, Any] = {
    "negative_text": "",
    "variants": VARIANTS,
    "similarity": 0.8,
    "ratio": 0.4,
    "seed": 0,
    "tolerance": 0.01,
    "diversity": 1.0,
    "steps": 12,
    "learning_rate": 0.0,
    "spread": True,
    "encoders": "auto",
    "schedule": "linear",
    "perturbed_steps": 0,
    "vary_negative": False,
    "pick": 0,
    "added_tokens": 0,
    "keep_words": False,
}
PROMPTS = {
    "short": "a red fish",
    "weights": "a (red:1.4) fish in (water:0.6)",
    "long": "a red fish in deep blue water, " * 9,
    "BREAK": "a red fish BREAK deep water",
}


def run(clip: Any, text: str = "a red fish", **changed: Any) -> tuple[list, list, list, Tensor, str]:
    """positive, negative, plain, plot, report."""
    with torch.inference_mode():
        return DiversePrompts.execute(clip, text, **{**OPTIONS, **changed}).args


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


@pytest.fixture(scope="module", params=ENCODERS)
def clip(request: pytest.FixtureRequest) -> Any:
    return small_encoder(request.param)


# --- the prompt itself -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS)
def test_plain_and_negative_are_the_stock_nodes_bitwise(clip: Any, prompt: str) -> None:
    before = stock_encode(clip, PROMPTS[prompt])
    changed = {"negative_text": "a blue (tree:1.2)", "encoders": "all", "steps": 3}
    positive, negative, plain, plot, _ = run(clip, PROMPTS[prompt], **changed)
    assert_same(plain, before)
    assert_same(negative, stock_encode(clip, "a blue (tree:1.2)"))
    assert_same(stock_encode(clip, PROMPTS[prompt]), before)  # and the encoder is as it was
    assert positive[0][0].shape == (VARIANTS, *plain[0][0].shape[1:])
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
    last = run(clip, schedule="none")
    clip.clip_layer(-2)
    skipped = run(clip, schedule="none")
    assert_same(skipped[2], stock_encode(clip))
    assert not torch.equal(skipped[2][0][0], last[2][0][0])
    assert not torch.equal(skipped[0][0][0], last[0][0][0])
    # The pooled vector is the last layer's whatever the skip, and so are the offsets found with it.
    assert torch.equal(skipped[0][0][1]["pooled_output"], last[0][0][1]["pooled_output"])


@pytest.mark.parametrize("kind", ["sd1", "qwen3"])
def test_lora_patched_encoders(kind: str) -> None:
    """The variants are those of the patched encoder; the shared one is as before."""
    clip = small_encoder(kind)
    before, unpatched = stock_encode(clip), run(clip)
    weights = clip.cond_stage_model.state_dict()
    layer = ("layers.0.mlp.fc1.weight", "layers.0.mlp.up_proj.weight")
    name = next(key for key in weights if key.endswith(layer))
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


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_encoder_reaches_the_similarity(kind: str) -> None:
    *_, report = run(small_encoder(kind), encoders="all", steps=Settings().steps)
    assert "NOT" not in report, report


@pytest.mark.parametrize("text", ["a heart", "a heart on the right", "a small heart on a mint background"])
@pytest.mark.parametrize("added", [0, 4])
def test_the_demo_clip_comes_near_the_bound(added: int, text: str) -> None:
    clip = loader.load_clip()
    settings = Settings(kappa=0.8)
    with torch.inference_mode():
        _, [outcome] = variants_hook.vary_prompt(clip, text, 10, 0, settings, added=added, keep_words=False)
    least = least_mean_pairwise(0.8, 10)
    assert outcome.vector == "projected pooled"
    assert (outcome.variants.cosines[-1] - 0.8).abs().max() <= 0.01
    assert float(outcome.variants.spreads[-1]) <= least * 1.03


def test_the_same_each_time_and_another_by_another_seed() -> None:
    clip = small_encoder("sdxl")
    first = run(clip)
    assert torch.equal(run(clip)[0][0][0], first[0][0][0])
    assert torch.equal(run(small_encoder("sdxl"))[0][0][0], first[0][0][0])
    assert not torch.allclose(run(clip, seed=1)[0][0][0], first[0][0][0], atol=1e-3)
    assert torch.isfinite(run(clip, seed=2**64 - 1)[0][0][0]).all()


@pytest.mark.parametrize("added", [0, 4])
@pytest.mark.parametrize("kind", ["sd1", "t5"])
def test_chunks_do_not_matter(kind: str, added: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to rounding: a matrix product of one row rounds otherwise than one of five."""
    found = []
    for chunk in (5, 2, 1):
        monkeypatch.setattr(PromptEncoder, "_chunk_for", lambda self, count, chunk=chunk: min(count, chunk))
        found.append(run(small_encoder(kind), variants=5, schedule="none", added_tokens=added, keep_words=True)[0][0])
        again = run(small_encoder(kind), variants=5, schedule="none", added_tokens=added, keep_words=True)[0][0][0]
        assert torch.equal(again, found[-1][0])
    for cond, extras in found[1:]:
        assert torch.allclose(cond, found[0][0], atol=2e-4)
        assert (cond - found[0][0]).abs().max() < (cond[0] - cond[1]).abs().max() / 5000
        if extras.get("pooled_output") is not None:
            assert torch.allclose(extras["pooled_output"], found[0][1]["pooled_output"], atol=2e-4)


def test_pick_is_the_variant_alone() -> None:
    clip = small_encoder("flux")
    whole = run(clip)[0]
    for k in range(VARIANTS):
        alone = run(clip, pick=k + 1)
        assert torch.equal(alone[0][0][0], whole[0][0][k : k + 1])
        assert torch.equal(alone[0][0][1]["pooled_output"], whole[0][1]["pooled_output"][k : k + 1])
        assert f"Variant {k + 1} of {VARIANTS} alone" in alone[4]


def test_which_encoders() -> None:
    clip = small_encoder("flux")
    alone, auto = run(clip, encoders="clip"), run(clip)
    assert torch.equal(alone[0][0][0][0], alone[0][0][0][1])  # T5 makes this output, and it is as it is
    assert not torch.equal(auto[0][0][0][0], auto[0][0][0][1])
    assert "t5xxl: as it is (encoders = all varies it too)" in alone[4]
    assert "as it is" not in auto[4]
    assert (len(alone[3]), len(auto[3])) == (1, 2)


# --- the negative ----------------------------------------------------------------------------------------------------


def test_the_negatives_variants_are_kept_on_disk(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever prompt and seed; another similarity makes others."""
    clip = small_encoder("sd1")
    positive, negative, _, plot, report = run(clip, vary_negative=True)
    assert negative[0][0].shape == (VARIANTS, 77, 64)
    assert not torch.equal(negative[0][0][0], negative[0][0][1])
    assert PAYLOAD in negative[0][1]
    assert len(plot) == 2
    assert "negative, clip_l" in report
    assert "kept" not in report
    [file] = (user / "__diversity" / "variants").iterdir()

    real, optimised = variants_hook.optimise_variants, []

    def count(start: Tensor, reference: Tensor, encode: Any, settings: Settings, *rest: Any) -> Any:
        optimised.append(settings.steps)
        return real(start, reference, encode, settings, *rest)

    monkeypatch.setattr(variants_hook, "optimise_variants", count)
    again = run(clip, "two blue trees", vary_negative=True, seed=5)
    assert optimised == [OPTIONS["steps"], 0]
    assert "kept from an earlier run" in again[4]
    assert torch.equal(again[1][0][0], negative[0][0])
    assert list(file.parent.iterdir()) == [file]
    run(clip, vary_negative=True, similarity=0.7)
    assert len(list(file.parent.iterdir())) == 2

    file.write_bytes(b"broken")
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


@pytest.mark.parametrize(("family", "kind"), [("eps", "sd1"), ("flux", "flux")])
def test_row_k_reaches_picture_k(family: str, kind: str, user: Path) -> None:
    """Each picture of the batch is the one that its variant makes alone from the same noise."""
    clip, model = small_encoder(kind), small_model(family)
    options = {"vary_negative": kind == "sd1", "ratio": 0.7}
    noise = random_latent(family, VARIANTS)
    positive, negative, plain, *_ = run(clip, **options)
    whole = sample(model, noise, positive, negative)
    without = sample(model, noise, plain, stock_encode(clip, ""))
    for k in range(VARIANTS):
        own_positive, own_negative, *_ = run(clip, **options, pick=k + 1)
        alone = sample(model, noise[k : k + 1], own_positive, own_negative)
        assert torch.allclose(whole[k : k + 1], alone, atol=1e-3)
        assert (whole[k] - without[k]).abs().max() > 1e-2
    equal_noise = noise[:1].repeat(VARIANTS, *[1] * (noise.ndim - 1))
    alike = sample(model, equal_noise, positive, negative)
    assert (alike[0] - alike[1]).abs().max() > 1e-2


def test_the_built_in_schedule_is_schedule_conditionings() -> None:
    clip, model, noise = small_encoder("sd1"), small_model("eps"), random_latent("eps", VARIANTS)
    positive, negative, plain, *_ = run(clip, ratio=0.6, schedule="smooth")
    bare = run(clip, schedule="none")[0]
    assert PAYLOAD not in bare[0][1]
    own = ScheduleConditioning.execute(bare, plain, 0.6, 0.0, "smooth", 0, "steps").args[0]
    pictures = sample(model, noise, positive, negative)
    assert torch.equal(pictures, sample(model, noise, own, negative))
    assert not torch.equal(pictures, sample(model, noise, bare, negative))


def test_ratio_0_gives_the_plain_pictures_bitwise() -> None:
    clip, model, noise = small_encoder("sd1"), small_model("eps"), random_latent("eps", VARIANTS)
    positive, negative, plain, _, report = run(clip, ratio=0.0)
    assert torch.equal(sample(model, noise, positive, negative), sample(model, noise, plain, negative))
    assert "ratio is 0: the variants are never in force" in report


def test_few_steps_without_guidance() -> None:
    clip, model, noise = small_encoder("flux"), small_model("flux"), random_latent("flux", VARIANTS)
    positive, negative, plain, _, report = run(clip, perturbed_steps=1)
    pictures = sample(model, noise, positive, negative, cfg=1.0)
    assert not torch.equal(pictures, sample(model, noise, plain, negative, cfg=1.0))
    assert "first 1 step (linear)" in report


# --- what it says ----------------------------------------------------------------------------------------------------


def test_report() -> None:
    clip = small_encoder("sdxl")
    report = run(clip, steps=100)[4]
    assert "clip_l (projected pooled): cosine to the prompt" in report
    assert "clip_g (projected pooled): cosine to the prompt" in report
    assert "least possible" in report
    assert "In force over the first 40% of the steps (linear)." in report
    assert f"For a batch of {VARIANTS} pictures." in report
    with torch.inference_mode():
        text_encoders(clip)["clip_l"].transformer.text_projection.weight.zero_()
    assert "clip_l (unprojected pooled)" in run(clip)[4]
    assert "mean of the output, common mean removed" in run(small_encoder("t5"))[4]


def test_one_variant_says_that_it_has_no_other() -> None:
    positive, *_, report = run(small_encoder("sd1"), variants=1)
    assert len(positive[0][0]) == 1
    assert "one variant: it has no other to differ from" in report
    assert "batch" not in report


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"similarity": 1.0}, "similarity is 1: all variants are the prompt itself"),
        ({"steps": 0}, "The aim was NOT reached"),
        ({"ratio": -0.3}, "last 30% of the steps"),
        ({"schedule": "none"}, "No schedule: the variants are in force for the whole run"),
    ],
)
def test_what_changes_little_is_said(changed: dict[str, Any], words: str) -> None:
    assert words in run(small_encoder("sd1"), **changed)[4]


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("changed", [{"similarity": 1.0}, {"steps": 0}])
def test_similarity_1_and_no_steps_are_the_prompt_itself(changed: dict[str, Any], spread: bool) -> None:
    options = {**changed, "schedule": "none", "spread": spread, "keep_words": True}
    positive, _, plain, *_ = run(small_encoder("sd1"), **options)
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
    with pytest.raises(ValueError, match="pick is 4; it must be 0"):
        run(clip, pick=4)
    with pytest.raises(ValueError, match="Write a prompt"):
        run(small_encoder("t5"), "")
    scheduled_clip = clip.clone()
    scheduled_clip.patcher.forced_hooks = object()
    scheduled_clip.use_clip_schedule = True
    with pytest.raises(ValueError, match="Switch schedule_clip off"), torch.inference_mode():
        variants_hook.vary_prompt(scheduled_clip, "a", 2, 0, Settings())


# --- schema ----------------------------------------------------------------------------------------------------------


def test_main_knobs_in_plain_sight_and_the_defaults_are_the_methods() -> None:
    given = DiversePrompts.GET_NODE_INFO_V1()["input"]
    own = {name: entry[1] for name, entry in given["required"].items()}
    assert list(own) == ["clip", "text", *OPTIONS]  # saved workflows keep widgets by position
    shown = [name for name, options in own.items() if not options.get("advanced")]
    assert shown == ["clip", "text", "negative_text", "variants", "similarity", "ratio", "seed"]
    settings, window = Settings(), Window()
    assert own["similarity"]["default"] == settings.kappa
    assert own["schedule"]["default"] == window.easing
    for name in ("tolerance", "diversity", "steps", "spread"):
        assert own[name]["default"] == getattr(settings, name)
    assert own["seed"]["control_after_generate"]
