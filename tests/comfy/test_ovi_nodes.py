"""The nodes of OVI: what they put out, that stock nodes and models read it, and what they say of themselves."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.sd
import comfy.t2i_adapter.adapter
import folder_paths
import pytest
import torch
from comfyui_diversity.core.drivers.ovi import PUBLISHED_CONSTRAINTS, Plan
from comfyui_diversity.core.methods.image_bank import ImageBank
from comfyui_diversity.core.methods.ovi import Settings
from comfyui_diversity.nodes.image_bank import LoadImageBank, MakeImageBank, SaveImageBank
from comfyui_diversity.nodes.ovi import TextAsVision, TextToVision, _plan
from comfyui_diversity.nodes.ovi_options import TextToVisionOptions
from comfyui_diversity.nodes.tpso import DiversePrompts
from small.encoders import small_encoder
from small.models import WIDTH, _randomise, conditioning
from small.vision import SIZES, small_cascade, small_unclip, small_vision
from torch import Tensor
from torch.nn import functional as F

stock = importlib.import_module("nodes")  # ComfyUI's, not the pack's

WIDGETS: dict[str, Any] = {"variants": 2, "constraint": "off", "seed": 0, "mode": "recommended"}
OPTIONS: dict[str, Any] = {
    "weight": 1.0,
    "tokens": 5,
    "steps": 15,
    "learning_rate": -1.0,
    "target_cosine": 0.0,
    "match_length": "off",
}


def run(clip: Any = None, vision: Any = None, text: str = "a red fish", **changed: Any) -> tuple:
    """Outputs, negative, plot, report."""
    options = TextToVisionOptions.execute(**{name: changed.pop(name, value) for name, value in OPTIONS.items()}).args[0]
    given = {**WIDGETS, **changed}
    return TextToVision.execute(
        clip or small_encoder("sd1"), vision or small_vision(), text, **given, options=options
    ).args


def embeddings(outputs: list) -> Tensor:
    return torch.cat([output.image_embeds for output in outputs])


def random_images(count: int, size: int = 40, seed: int = 0) -> Tensor:
    return torch.rand(count, size, size, 3, generator=torch.Generator().manual_seed(seed))


def make_bank(images: list[Tensor] | None = None, vision: Any = None, bank: ImageBank | None = None) -> ImageBank:
    given = [random_images(6)] if images is None else images
    return MakeImageBank.execute(given, [vision or small_vision()], ["center"], bank and [bank]).args[0]


@pytest.fixture(autouse=True)
def as_nodes_run() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """An output folder that is thrown away."""
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_output_directory(before)


# --- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.fast
def test_complete_outputs_one_each() -> None:
    vision = small_vision()
    like = vision.encode_image(random_images(1))
    outputs, negative, plot, report = run(vision=vision, variants=3)
    assert len(outputs) == 3
    for one in [*outputs, negative]:
        assert set(vars(one)) == set(vars(like))
        for name in ("image_embeds", "last_hidden_state", "penultimate_hidden_states"):
            assert one[name].shape == like[name].shape
            assert one[name].dtype == like[name].dtype
            assert torch.isfinite(one[name]).all()
    assert not torch.equal(outputs[0].image_embeds, outputs[1].image_embeds)
    assert plot.ndim == 4
    assert 0 <= float(plot.min()) <= float(plot.max()) <= 1
    assert "Text: clip_l, projected pooled vector." in report
    assert report.count("cosine to the text") == 3
    assert "checked by their width alone" in report


def test_the_same_each_time_and_for_every_number_of_variants() -> None:
    first = embeddings(run()[0])
    assert torch.equal(embeddings(run()[0]), first)
    assert torch.allclose(embeddings(run(variants=4)[0])[:2], first, atol=1e-3)
    assert not torch.allclose(embeddings(run(seed=1)[0]), first, atol=1e-2)
    assert torch.isfinite(embeddings(run(seed=2**64 - 1)[0])).all()


def test_steps_help_and_the_report_tells_the_truth() -> None:
    clip = small_encoder("sd1")
    to = clip.encode_from_tokens(clip.tokenize("a red fish"), return_pooled=True)[1]
    to = to @ next(
        module.weight.float().T for name, module in clip.cond_stage_model.named_modules() if name.endswith("projection")
    )

    def cosine(steps: int) -> tuple[float, str]:
        outputs, *_, report = run(clip, variants=1, steps=steps)
        return F.cosine_similarity(outputs[0].image_embeds, to).item(), report

    none, _ = cosine(0)
    many, report = cosine(60)
    assert many > none + 0.2
    assert f"cosine to the text {many:.3f} after 60 steps" in report


def test_match_length() -> None:
    vision = small_vision()
    bank = make_bank(vision=vision)
    plain, _, _, report = run(vision=vision, bank=bank)
    matched, _, _, told = run(vision=vision, bank=bank, match_length="on")
    assert torch.allclose(embeddings(matched).norm(dim=1), torch.full((2,), bank.length), rtol=1e-4)
    assert torch.allclose(F.cosine_similarity(embeddings(matched), embeddings(plain)), torch.ones(2))
    assert torch.equal(matched[0].last_hidden_state, plain[0].last_hidden_state)
    assert "rescaled" in told
    assert "rescaled" not in report


def test_variants_of_diverse_prompts() -> None:
    clip, vision = small_encoder("sdxl"), small_vision(projection_dim=96)
    prompts = DiversePrompts.execute(clip, "a red fish", "", 3, 0.7, 0.4, 0).args[0]
    outputs, _, _, report = run(clip, vision, variants=1, prompts=prompts, steps=40)
    assert len(outputs) == 3
    assert "3 pooled vectors of prompts" in report
    cosines = F.cosine_similarity(embeddings(outputs)[:, None], prompts[0][1]["pooled_output"][None], dim=2)
    assert (cosines.argmax(1) == torch.arange(3)).all()  # each is nearest to its own


# --- mode and options ------------------------------------------------------------------------------------------------


def test_without_options_it_is_what_is_recommended() -> None:
    assert _plan("recommended", None) == Plan(Settings(500, 0.02), 16, 1.0, True)
    assert _plan("published", None) == Plan(
        Settings(1000, 0.02, patience=0, keep_last=True), 6, 1.0, False, PUBLISHED_CONSTRAINTS
    )
    assert "lowest loss" in run(steps=20)[-1]


def test_published_takes_all_its_steps_and_keeps_the_last() -> None:
    *_, report = run(mode="published", steps=20)
    assert report.count("after 20 steps (last step)") == 2
    assert "rescaled" not in report


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": 16}, "tokens is 16; it must be from 1 to 6 in published mode"),
        ({"target_cosine": 0.9}, r"target_cosine is 0\.9; it must be 0 \(off\) in published mode"),
        ({"match_length": "on"}, "match_length is 'on'; it must be off in published mode"),
    ],
)
def test_options_that_published_does_not_have_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(mode="published", **changed)


# --- the bank --------------------------------------------------------------------------------------------------------


def test_bank_of_batches_and_lists() -> None:
    vision = small_vision()
    batch = random_images(3)
    whole = make_bank([batch, random_images(1, size=70, seed=4)], vision)
    assert torch.allclose(whole.members[:3], vision.encode_image(batch).image_embeds, atol=1e-5)
    assert len(whole) == 4
    extended = make_bank([random_images(2, seed=7)], vision, whole)
    assert len(extended) == 6
    assert len(whole) == 4
    with pytest.raises(ValueError, match="another vision tower of the same width"):
        make_bank([batch], small_vision(seed=9), whole)
    with pytest.raises(ValueError, match="images is empty"):
        make_bank([random_images(0)], vision)


def test_bank_on_disk(output: Path, full_disk: Any) -> None:
    bank = make_bank()
    assert SaveImageBank.execute(bank, "my bank").args == (6,)
    assert (output / "diversity" / "banks" / "my bank.safetensors").is_file()
    before = LoadImageBank.fingerprint_inputs("my bank")
    again, count = LoadImageBank.execute("my bank").args
    assert torch.equal(again.members, bank.members)
    assert count == 6
    with full_disk(), pytest.raises(OSError, match=r"my bank\.safetensors could not be written"):
        SaveImageBank.execute(bank.extended(bank.members), "my bank")
    assert torch.equal(LoadImageBank.execute("my bank").args[0].members, bank.members)
    SaveImageBank.execute(bank.extended(bank.members), "my bank")
    assert LoadImageBank.fingerprint_inputs("my bank") != before
    assert run(bank=again, constraint="mahalanobis")[3].count("mahalanobis: ") == 2
    with pytest.raises(ValueError, match=r"name is 'other', but there is no such bank.*There are: my bank\."):
        LoadImageBank.execute("other")
    with pytest.raises(ValueError, match=r"name is '\.\./x'"):
        LoadImageBank.execute("../x")


def test_what_the_report_says_of_the_bank() -> None:
    vision = small_vision()
    bank = make_bank(vision=vision)
    assert "distances to the bank are only measured" in run(vision=vision, bank=bank)[3]
    held = run(vision=vision, bank=bank, constraint="nearest neighbour")[3]
    assert "nearest image of the bank: cosine" in held
    assert "nearest neighbour: " in held
    assert "weight is 0" in run(vision=vision, bank=bank, constraint="nearest neighbour", weight=0.0)[3]
    with pytest.raises(ValueError, match="needs a bank of real images"):
        run(constraint="mahalanobis")


# --- the text's own vector -------------------------------------------------------------------------------------------


def test_text_as_vision() -> None:
    clip, vision = small_encoder("sdxl"), small_vision(projection_dim=96)
    made, negative, report = TextAsVision.execute(clip, vision, "a red fish").args
    pooled = clip.encode_from_tokens(clip.tokenize("a red fish"), return_pooled=True)[1]
    assert F.cosine_similarity(made.image_embeds, pooled).item() == pytest.approx(1, abs=1e-5)
    assert made.image_embeds.norm().item() == pytest.approx(negative.image_embeds.norm().item(), rel=1e-4)
    assert torch.equal(made.last_hidden_state, negative.last_hidden_state)
    assert "sees nothing of the text" in report
    bank = make_bank(vision=vision)
    made = TextAsVision.execute(clip, vision, "a red fish", bank).args[0]
    assert made.image_embeds.norm().item() == pytest.approx(bank.length, rel=1e-4)


# --- stock consumers -------------------------------------------------------------------------------------------------


def sample(model: Any, noise: Tensor, positive: list, negative: list) -> Tensor:
    return comfy.sample.sample(
        model, noise, 2, 2.0, "euler", "simple", positive, negative, torch.zeros_like(noise), seed=0, disable_pbar=True
    )


@pytest.mark.parametrize("kind", ["unclip", "cascade"])
def test_models_that_read_image_embeddings(kind: str) -> None:
    """Through the stock unCLIPConditioning; the embedding matters, and it is the one of a real image's shape."""
    vision = small_vision()
    outputs, negative, *_ = run(vision=vision)
    model = small_unclip() if kind == "unclip" else small_cascade()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, *((4, 16, 16) if kind == "unclip" else (16, 8, 8)), generator=generator)
    text = conditioning("eps")
    text[0][1]["pooled_output"] = torch.randn(1, WIDTH, generator=generator)

    def image(one: Any) -> Tensor:
        attach = stock.unCLIPConditioning().apply_adm
        return sample(model, noise, attach(text, one, 1.0, 0.0)[0], attach(text, negative, 1.0, 0.0)[0])

    found = [image(one) for one in (*outputs, vision.encode_image(random_images(1)))]
    assert all(torch.isfinite(one).all() for one in found)
    assert (found[0] - found[1]).abs().max() > 1e-4
    assert (found[0] - found[2]).abs().max() > 1e-4


def test_style_models() -> None:
    """The stock StyleModelApply reads the last hidden state."""
    adapter = comfy.t2i_adapter.adapter.StyleAdapter(
        width=SIZES["hidden_size"], context_dim=WIDTH, num_head=4, n_layes=1, num_token=4
    )
    _randomise(adapter, 0)
    outputs, *_ = run()
    styled = [
        stock.StyleModelApply().apply_stylemodel(
            conditioning("eps"), comfy.sd.StyleModel(adapter), one, 1.0, "multiply"
        )[0][0][0]
        for one in outputs
    ]
    assert styled[0].shape == (1, 20 + 4, WIDTH)
    assert torch.isfinite(styled[0]).all()
    assert not torch.equal(styled[0], styled[1])
