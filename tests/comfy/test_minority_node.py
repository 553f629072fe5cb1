"""The node Minority Prompt: its widgets, its presets, both ways to a sampler, and the token that it keeps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import folder_paths
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import BasicGuider, CFGGuider, RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_flux import CLIPTextEncodeFlux
from comfyui_diversity.core.drivers import minority as hook
from comfyui_diversity.core.hooks.carried import payloads
from comfyui_diversity.core.methods.minority import Settings
from comfyui_diversity.nodes.minority import MinorityPrompt
from comfyui_diversity.nodes.minority_options import MinorityPromptOptions
from small.encoders import small_encoder
from small.models import small_model
from torch import Tensor

TEXT, SEED, STEPS, BATCH = "a red fish", 7, 3, 2
MAIN: dict[str, Any] = {
    "text": TEXT,
    "preset": "base model",
    "strength": 1.0,
    "initial_word": "cool",
    "objective": "minority",
    "mode": "recommended",
}
OPTIONS: dict[str, Any] = {
    "iterations": -1,
    "learning_rate": -1.0,
    "start_percent": 0.0,
    "end_percent": -1.0,
    "keep_until": -1.0,
    "similarity": 0.0,
    "renoise": -1.0,
    "save_as": "",
}
RARE: dict[str, Any] = {
    "every": 1,
    "position": "end",
    "encoders": "auto",
    "typical": False,
    "chunk_size": -1,
    "checkpointing": False,
}


class Graph:
    """What the stock nodes around ours hold."""

    def __init__(self) -> None:
        self.model, self.clip = small_model("eps"), small_encoder("sd1")

    @torch.inference_mode()
    def node(self, positive: list | None = None, **changed: Any) -> tuple[Any, list]:
        """The outputs; the options node is connected where one of its widgets is named."""
        main = {name: changed.pop(name, value) for name, value in MAIN.items()}
        options = MinorityPromptOptions.execute(**{**OPTIONS, **RARE, **changed}).args[0] if changed else None
        return MinorityPrompt.execute(self.model, self.clip, **main, positive=positive, options=options).args

    @torch.inference_mode()
    def plain(self, text: str = TEXT) -> list:
        """What CLIP Text Encode gives."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def simple(self, model: Any, positive: list, batch: int = BATCH) -> Tensor:
        """KSampler."""
        empty = torch.zeros(batch, 4, 8, 8)
        noise = comfy.sample.prepare_noise(empty, SEED)
        with torch.inference_mode():
            return comfy.sample.sample(
                model,
                noise,
                STEPS,
                3.0,
                "euler",
                "simple",
                positive,
                self.plain(""),
                empty,
                disable_pbar=True,
                seed=SEED,
            )

    def advanced(self, model: Any, guider: Any) -> Tensor:
        """SamplerCustomAdvanced."""
        sampling = model.get_model_object("model_sampling")
        with torch.inference_mode():
            out = SamplerCustomAdvanced.execute(
                RandomNoise.execute(SEED).args[0],
                guider,
                comfy.samplers.sampler_object("euler"),
                comfy.samplers.calculate_sigmas(sampling, "simple", STEPS),
                {"samples": torch.zeros(BATCH, 4, 8, 8)},
            )
        return out.args[0]["samples"]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph()


def learning(positive: list) -> Any:
    return payloads(positive[0][1])[hook.KEY].learning


@pytest.mark.fast
def test_ksampler_and_guiders_give_one_result(graph: Graph) -> None:
    model, positive = graph.node(iterations=2)
    expected = graph.simple(model, positive)
    assert not torch.equal(expected, graph.simple(graph.model, graph.plain()))
    guided = CFGGuider.execute(model, positive, graph.plain(""), 3.0).args[0]
    assert torch.equal(graph.advanced(model, guided), expected)
    basic = BasicGuider.execute(model, positive).args[0]
    assert torch.isfinite(graph.advanced(model, basic)).all()


def test_recommended_is_what_it_was_without_the_new_options(graph: Graph) -> None:
    positive = graph.node(iterations=2)[1]
    old = dict(OPTIONS, iterations=2) | RARE
    given = MinorityPromptOptions.execute(**old).args[0]
    with torch.inference_mode():
        again = MinorityPrompt.execute(graph.model, graph.clip, **MAIN, options=given).args[1]
    assert learning(again).settings == learning(positive).settings == Settings(2, 1.4)
    assert (learning(again).published, learning(again).late, learning(again).start) == (False, False, "auto")


@pytest.mark.parametrize("off", [{"strength": 0.0}, {"iterations": 0}, {"learning_rate": 0.0}])
def test_off_is_the_plain_prompt(graph: Graph, off: dict[str, Any]) -> None:
    model, positive = graph.node(**off)
    assert model is graph.model
    assert torch.equal(positive[0][0], graph.plain()[0][0])
    given = graph.plain()
    assert graph.node(positive=given, **off)[1] is given


def test_presets_fill_in_what_is_auto(graph: Graph) -> None:
    base = learning(graph.node()[1])
    assert (base.settings, base.steps.end, base.keep_until) == (Settings(5, 1.4), 0.1, 0.15)
    assert (base.renoise, base.absolute) == (None, False)
    few = learning(graph.node(preset="few-step model", strength=2.0)[1])
    assert (few.settings.iterations, few.steps.end) == (10, 0.1)
    assert few.settings.learning_rate == pytest.approx(1.4)
    own = learning(graph.node(iterations=3, learning_rate=0.2, end_percent=0.3, keep_until=0.0, renoise=0.75)[1])
    assert (own.settings, own.steps.end, own.keep_until, own.renoise) == (Settings(3, 0.2), 0.3, 0.0, 0.75)
    rare = learning(graph.node(similarity=0.8, chunk_size=2, every=2, typical=True)[1])
    assert (rare.similarity, rare.chunk_size, rare.steps.every, rare.settings.typical) == (0.8, 2, 2, True)


def test_published_is_the_releases(graph: Graph) -> None:
    """What is in force is compared with the release in test_published_minority.py."""
    base = learning(graph.node(mode="published")[1])
    assert (base.settings, base.steps.end, base.keep_until) == (Settings(10, 0.01, scaled=False), 0.1, 1.0)
    assert (base.renoise, base.start, base.notes) == (0.75, "word", ())
    few = learning(graph.node(mode="published", preset="few-step model")[1])
    assert (few.settings, few.steps.end, few.keep_until) == (Settings(3, 0.001, scaled=False), 1.0, 1.0)
    assert (few.renoise, few.word) == (None, "cool")
    one = learning(graph.node(mode="published", preset="SDXL-Lightning, one image")[1])
    assert (one.settings.learning_rate, one.word, one.renoise) == (0.01, "handsome", None)
    assert base.absolute
    assert few.absolute
    assert learning(graph.node(mode="published", anneal="on")[1]).renoise is None
    assert learning(graph.node(mode="published", preset="few-step model", anneal="off")[1]).renoise == 0.75
    assert learning(graph.node(mode="published", initial_word="")[1]).start == "default"
    own = learning(graph.node(mode="published", iterations=4, strength=2.0, start_percent=0.05)[1])
    assert own.notes == (
        "iterations 4 (it has 10)",
        "a learning rate of 0.02 (it has 0.01)",
        "start_percent 0.05 (it has 0)",
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"mode": "published", "similarity": 0.9}, r"similarity is 0\.9; it must be 0"),
        (
            {"mode": "published", "initial_word": "very cool"},
            "which is 2 tokens in clip_l; with mode published it must",
        ),
        ({"preset": "SDXL-Lightning, one image"}, 'or few-step model with mode "recommended"'),
        ({"start": "word", "initial_word": " "}, "initial_word is ' '; it must be a word with start"),
        ({"anneal": "on", "renoise": 0.5}, r"renoise is 0\.5; it must be -1 \(auto\) with anneal on"),
        ({"sg_lambda": -1.0}, "sg_lambda is -1"),
        ({"sg_lambda": 0.5, "objective": "diversity"}, r"sg_lambda is 0\.5; it must be 1 with objective diversity"),
        ({"start_scale": 2.0}, r"start_scale is 2\.0; it must be 0 or more; 1 but for gaussian and white"),
    ],
)
def test_what_contradicts_a_mode_is_refused(graph: Graph, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        graph.node(**changed)


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"chunk_size": 0}, "chunk_size is 0"), ({"renoise": 0.0}, "renoise is 0"), ({"keep_until": -0.5}, "from 0 to 1")],
)
def test_values_that_mean_nothing_are_named(graph: Graph, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        graph.node(**changed)


@torch.inference_mode()
def test_a_positive_with_another_text_for_one_encoder_is_refused() -> None:
    """Its embeddings are of T5 alone."""
    clip, text = small_encoder("flux"), "a red fish"

    def encoded(clip_l: str, t5xxl: str = text) -> list:
        return CLIPTextEncodeFlux.execute(clip, clip_l, t5xxl, 3.5).args[0]

    made = hook.to_learn(hook.Learning(clip, text), encoded(text))
    assert made[0][1]["guidance"] == 3.5
    with pytest.raises(ValueError, match="its pooled_output is of another one"):
        hook.to_learn(hook.Learning(clip, text), encoded("a blue house"))
    with pytest.raises(ValueError, match="positive is not this text"):
        hook.to_learn(hook.Learning(clip, text), encoded(text, "a blue house"))


def test_a_positive_of_another_text_is_refused(graph: Graph) -> None:
    assert learning(graph.node(positive=graph.plain())[1]).text == TEXT
    with pytest.raises(ValueError, match="positive is not this text"):
        graph.node(positive=graph.plain("a blue house"))


# --- keeping ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def embeddings(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(tmp_path)], set()))
    tokenizer = graph.clip.tokenizer.clip_l
    monkeypatch.setattr(tokenizer, "embedding_directory", [str(tmp_path)])
    monkeypatch.setattr(tokenizer, "embedding_size", 64)
    return tmp_path


def test_a_kept_token_is_an_embedding_for_stock_nodes(graph: Graph, embeddings: Path) -> None:
    """What the last step was sampled with, read by CLIP Text Encode alone."""
    used: list[Tensor] = []

    def spy(executor: Any, x: Tensor, t: Tensor, concat: Any, text: Tensor, *rest: Any, **named: Any) -> Tensor:
        if torch.is_inference_mode_enabled():
            used.append(text.clone())
        return executor(x, t, concat, text, *rest, **named)

    model, positive = graph.node(save_as="rare", keep_until=1.0, iterations=2)
    assert list(embeddings.rglob("*")) == []
    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "spy", spy)
    graph.simple(watched, positive, batch=1)
    assert [path.name for path in (embeddings / "diversity").iterdir()] == ["rare.safetensors"]
    stock = graph.plain(f"{TEXT} embedding:rare")[0][0]
    with_prompt = min((row - stock[0]).abs().max().item() for row in used[-1])
    assert with_prompt < 2e-5
    assert (stock - graph.plain(f"{TEXT} cool")[0][0]).abs().max() > 1e-3

    graph.simple(model, positive)
    names = sorted(path.name for path in (embeddings / "diversity").iterdir())
    assert names == ["rare.safetensors", "rare_1.safetensors", "rare_2.safetensors"]
    graph.node(save_as="rare")  # its own file is no obstacle


def test_images_are_not_lost_with_a_token_that_cannot_be_written(
    graph: Graph, embeddings: Path, full_disk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, positive = graph.node(save_as="rare", iterations=1)
    with full_disk(), caplog.at_level(logging.WARNING):
        images = graph.simple(model, positive)
    assert "the learned token is lost" in caplog.text
    assert [path.name for path in embeddings.rglob("*")] == ["diversity"]
    assert torch.equal(images, graph.simple(model, positive))


@pytest.mark.parametrize("name", ["../up", "two words"])
def test_names_that_are_no_file_names_are_refused(graph: Graph, embeddings: Path, name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        graph.node(save_as=name)


def test_the_embedding_of_another_is_not_overwritten(graph: Graph, embeddings: Path) -> None:
    (embeddings / "style").mkdir()
    (embeddings / "style" / "mine.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="there is an embedding of that name"):
        graph.node(save_as="mine")
    graph.node(save_as="min")


# --- schema -----------------------------------------------------------------------------------------------------------


def test_widgets_and_their_defaults() -> None:
    given = MinorityPrompt.GET_NODE_INFO_V1()["input"]
    assert list(given["required"]) == ["model", "clip", *MAIN]
    assert list(given["optional"]) == ["positive", "options"]
    options = MinorityPromptOptions.GET_NODE_INFO_V1()["input"]["required"]
    assert {name: entry[1]["default"] for name, entry in options.items()} == {**OPTIONS, **RARE}
    assert [name for name, entry in options.items() if entry[1].get("advanced")] == list(RARE)
    main = {name: given["required"][name][1].get("default") for name in MAIN if name not in ("text", "mode")}
    assert main == {name: MAIN[name] for name in main}
