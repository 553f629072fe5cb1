"""Mode published of Diverse Prompts beside the release written again (small/released_tpso.py): offsets, cosines and
conditionings through small real encoders, the bank, and images through small real models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import folder_paths
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfyui_diversity.core.drivers import tpso_published as driver
from comfyui_diversity.core.drivers.schedule import PAYLOAD
from comfyui_diversity.core.drivers.shared_noise import _SEED_OFFSET
from comfyui_diversity.core.hooks.carried import payloads
from comfyui_diversity.core.hooks.gradients import gradients
from comfyui_diversity.core.hooks.prompt import text_encoders
from comfyui_diversity.core.methods.schedule import ReleasedWindow
from comfyui_diversity.nodes._inputs import Options, read_options
from comfyui_diversity.nodes.shared_noise import UseSharedNoise
from comfyui_diversity.nodes.tpso import DiversePrompts
from comfyui_diversity.nodes.tpso_options import DiversePromptsOptions
from small.encoders import small_encoder
from small.models import FAMILIES, small_model
from small.released_tpso import Found, alphas, released, released_full_batch, starts
from torch import Tensor

TEXT = "a photo of a cat, sitting."  # 6 words of 8 tokens
COUNT, SEED, RATE = 4, 7, 0.002
KEYS = {"clip_l": "l", "clip_g": "g", "clip_h": "h"}
fast = pytest.mark.fast


class Tower:
    """A CLIP text tower on a prompt: ComfyUI's own forward pass at all 77 positions, in float64."""

    def __init__(self, clip: Any, name: str, text: str, read_layer: bool) -> None:
        self.module, self.name, self._read_layer = text_encoders(clip)[name], name, read_layer
        tokens = [word[0] for word in clip.tokenize(text)[KEYS[name]][0]]
        self.end = tokens.index(49407)
        self.embeds = self.module.transformer.get_input_embeddings().weight[tokens].double()
        assert self.embeds.shape[0] == 77

    def run(self, offsets: Tensor) -> tuple[Any, ...]:
        moved = self.embeds.clone()
        moved[1 : 1 + len(offsets)] += offsets
        return self.module.transformer(
            None, None, embeds=moved[None], num_tokens=[self.end + 1], intermediate_output=self.module.layer_idx,
            final_layer_norm_intermediate=self.module.layer_norm_hidden_state, dtype=torch.float64, embeds_info=[],
        )  # fmt: skip

    def vector(self, offsets: Tensor) -> Tensor:
        last, layer, projected, _ = self.run(offsets)
        if not self._read_layer:
            return projected[0]
        read = last if self.module.layer == "last" else layer
        return self.module.transformer.text_projection(read[0, self.end])

    def hidden(self, offsets: Tensor) -> Tensor:
        last, layer, *_ = self.run(offsets)
        return (last if self.module.layer == "last" else layer)[0].float()


@pytest.fixture(autouse=True)
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """What float32 rounds away would choose other directions after a few steps."""
    real = driver.released_start
    monkeypatch.setattr(driver, "released_start", lambda *given: real(*given).double())


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Path]:
    before = folder_paths.get_user_directory()
    folder_paths.set_user_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_user_directory(before)


def by_release(towers: list[Tower], positions: list[int], count: int, seed: int, **rule: Any) -> list[Found]:
    shapes = [(count, own, tower.embeds.shape[1]) for own, tower in zip(positions, towers, strict=True)]
    with gradients(*[tower.module for tower in towers]):
        return [
            (released_full_batch if "group" in rule else released)(tower.vector, start, **rule)
            for tower, start in zip(towers, starts(seed, shapes), strict=True)
        ]


def assert_same(outcomes: list, found: list[Found]) -> None:
    for outcome, own in zip(outcomes, found, strict=True):
        variants = outcome.variants
        assert torch.allclose(variants.cosines, torch.tensor(own.courses, dtype=torch.float64).T, atol=1e-7)
        assert torch.allclose(variants.offsets, torch.stack(own.offsets), atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "rate", "strength", "steps"),
    [
        pytest.param("sd1", RATE, 1.0, None, marks=fast),
        ("sd1", 0.01, 0.0, 20),
        ("sd2", RATE, 1.0, 25),
        ("sd3 clips", RATE, 10.0, 14),
    ],
)
def test_variants_are_the_releases(kind: str, rate: float, strength: float, steps: int | None) -> None:
    """Every cosine at every encoding, the offsets that are kept, and the conditioning."""
    clip = small_encoder(kind)
    names = {"sd1": ["clip_l"], "sd2": ["clip_h"], "sd3 clips": ["clip_l", "clip_g"]}[kind]
    sd35 = kind == "sd3 clips"
    preset, _ = driver.choose_preset(clip)
    tolerance = 0.06 if sd35 else 0.01
    rule = driver.rule_of(
        preset, tolerance=tolerance, steps=steps, learning_rate=rate, diversity=None if strength else 0.0
    )
    with torch.inference_mode():
        [[cond, extras]], outcomes = driver.vary_as_released(clip, TEXT, COUNT, SEED, preset, rule)
    towers = [Tower(clip, name, TEXT, read_layer=not sd35) for name in names]
    positions = [tower.end - 1 if sd35 else len(TEXT.split()) for tower in towers]
    found = by_release(
        towers, positions, COUNT, SEED, kappa=0.8, tolerance=tolerance, strength=strength, max_steps=steps or 50,
        rate=rate, one_step_past=sd35,
    )  # fmt: skip
    assert_same(outcomes, found)
    courses = [course for own in found for course in own.courses]
    arrivals = {sum(abs(cosine - 0.8) > tolerance for cosine in course) for course in courses}
    assert len(arrivals) > 1, "no variant waits for another, so that freezing is not tested"
    with gradients(*[tower.module for tower in towers]), torch.no_grad():
        rows = [
            torch.cat([tower.hidden(own.offsets[k]) for tower, own in zip(towers, found, strict=True)], dim=1)
            for k in range(COUNT)
        ]
    assert torch.allclose(cond[..., : rows[0].shape[1]], torch.stack(rows), atol=1e-4)
    assert len(cond) == COUNT
    if sd35:
        assert len(extras["pooled_output"]) == COUNT


@pytest.mark.parametrize(("kind", "rows", "group"), [("sd1", 350, 35), ("sd3 clips", 300, 30)])
def test_the_bank_is_the_releases(
    kind: str, rows: int, group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Any
) -> None:
    """Its size, and a smaller one in fewer steps: a draw, and the same bank from the disk."""
    steps = 4
    clip = small_encoder(kind)
    preset, _ = driver.choose_preset(clip)
    rule = driver.rule_of(preset, kappa=0.7)
    assert driver.bank_rule(preset, rule).steps == 200
    assert driver.SD35.rule.steps == 200
    assert (preset.bank_rows, preset.bank_group, driver.BANK_POSITIONS) == (rows, group, 20)
    rows, group = 6, 3
    monkeypatch.setattr(driver, "BANK_STEPS", steps)
    preset = replace(preset, rule=replace(preset.rule, steps=steps), bank_rows=rows, bank_group=group)
    with torch.inference_mode():
        with full_disk():
            [[lost, _]], _ = driver.draw_negative(clip, "", COUNT, SEED, preset, rule, tmp_path)
        assert list(tmp_path.iterdir()) == []
        [[cond, _]], outcomes = driver.draw_negative(clip, "", COUNT, SEED, preset, rule, tmp_path)
        assert torch.equal(lost, cond)
        [[again, _]], loaded = driver.draw_negative(clip, "", COUNT, SEED, preset, rule, tmp_path)
        [[other, _]], _ = driver.draw_negative(clip, "", COUNT, SEED + 1, preset, rule, tmp_path)
    torch.manual_seed(SEED)
    drawn = torch.randperm(rows)[:COUNT]
    towers = [Tower(clip, one.encoder, "", read_layer=kind == "sd1") for one in outcomes]
    first = int(drawn[0]) // group * group  # the groups meet in their mean alone
    shapes = [(rows, 20, tower.embeds.shape[1]) for tower in towers]
    for tower, start, outcome in zip(towers, starts(preset.bank_seed, shapes), outcomes, strict=True):
        with gradients(tower.module):
            if kind == "sd1":
                given = {"kappa": 0.7, "tolerance": 0.01, "strength": 1.0 / (rows // group), "max_steps": steps}
                found = released_full_batch(tower.vector, start[first : first + group], group, **given)
            else:
                found = released(tower.vector, start[first : first + group], 0.7, 0.01, 0.0, steps, one_step_past=True)
        course = torch.tensor(found.courses[int(drawn[0]) - first], dtype=torch.float64)
        assert torch.allclose(outcome.variants.cosines[:, 0], course, atol=1e-7)
        gap = (outcome.variants.offsets[0] - found.offsets[int(drawn[0]) - first]).abs().max()
        assert gap < 1e-7  # of up to 0.014
    assert torch.equal(again, cond)
    assert not torch.equal(other, cond)
    assert [one.from_disk for one in (*outcomes, *loaded)] == [False] * len(towers) + [True] * len(towers)
    assert len(list(tmp_path.iterdir())) == len(towers)


def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small banks, for tests of what is done with them."""
    monkeypatch.setattr(driver, "BANK_STEPS", 2)
    for name in ("SD15", "SD35"):
        small = replace(getattr(driver, name), bank_rows=6, bank_group=3)
        monkeypatch.setattr(driver, name, small)
        monkeypatch.setitem(driver.PRESETS, small.name, small)


def options(**changed: Any) -> Options:
    return DiversePromptsOptions.execute(**{**read_options(DiversePromptsOptions, None), **changed}).args[0]


def run(clip: Any, text: str = TEXT, **changed: Any) -> tuple[list, list, list, Tensor, str]:
    main = {"negative_text": "", "variants": COUNT, "similarity": 0.8, "ratio": 0.4, "seed": SEED, "mode": "published"}
    own = {name: changed.pop(name, value) for name, value in main.items()}
    with torch.inference_mode():
        return DiversePrompts.execute(clip, text, **own, options=options(**changed) if changed else None).args


@pytest.mark.parametrize(
    ("family", "ratio", "steps"),
    [pytest.param("eps", 0.5, 6, marks=fast), ("eps", -0.5, 6), ("auraflow", 0.7, 5)],
)
def test_images_are_the_releases(
    family: str, ratio: float, steps: int, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One latent, the weights of both sides at every step, and for flows the noise after every step, Euler's steps
    written out."""
    few_steps(monkeypatch)
    clip, model, flow = small_encoder("sd1"), small_model(family), family == "auraflow"
    amount, cfg = 0.03 if flow else 0.0, 3.0
    positive, negative, plain, *_ = run(clip, ratio=ratio, steps=8)
    assert isinstance(payloads(positive[0][1])[PAYLOAD].window, ReleasedWindow)
    blank = clip.encode_from_tokens_scheduled(clip.tokenize(""))[0][0]
    read: list[tuple[Tensor, Tensor]] = []  # at each step, by prompt and negative

    def note(executor: Any, x: Tensor, t: Tensor, concat: Any, text: Tensor, *rest: Any, **named: Any) -> Tensor:
        parts = dict(zip(rest[1]["cond_or_uncond"], text.chunk(2), strict=True))
        read.append((parts[0].clone(), parts[1].clone()))
        return executor(x, t, concat, text, *rest, **named)

    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "note", note)
    empty = torch.zeros(COUNT, *FAMILIES[family].latent)
    noise = comfy.sample.prepare_noise(empty, SEED)
    with torch.inference_mode():
        images = comfy.sample.sample(
            UseSharedNoise.execute(watched, amount, flow).args[0], noise, steps, cfg, "euler", "simple", positive,
            negative, empty, disable_pbar=True, seed=SEED,
        )  # fmt: skip
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
        x = sampling.noise_scaling(sigmas[0], noise[:1].repeat(COUNT, 1, 1, 1), empty, True)
        generator = torch.Generator().manual_seed((SEED + _SEED_OFFSET) % 2**64)
        for i, alpha in enumerate(alphas(steps, ratio)):
            texts = [alpha * varied[0][0] + (1 - alpha) * own for varied, own in
                     ((positive, plain[0][0]), (negative, blank))]  # fmt: skip
            for seen, text in zip(read[i], texts, strict=True):
                assert torch.allclose(seen, text.expand_as(seen), atol=1e-5)
            sides = [model.model.apply_model(x, sigmas[i].expand(COUNT), c_crossattn=text) for text in texts]
            clean = sides[1] + cfg * (sides[0] - sides[1])
            x = x + (x - clean) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
            if flow:
                x = x + amount * torch.randn(x.shape, generator=generator)
        expected = model.model.process_latent_out(x)
    assert torch.allclose(images, expected, atol=2e-4 * float(expected.abs().max()))
    assert len(read) == steps
    for varied in (positive[0][0], negative[0][0]):
        assert (varied[0] - varied[1]).abs().max() > 1e-3


def test_the_report_says_whose_rule_it_was_and_what_is_missing(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_steps(monkeypatch)
    clip = small_encoder("sd1")
    report = run(clip)[4]
    assert "clip_l (projected pooled, 6 of 8 tokens varied)" in report
    assert "preset sd15 (by the text encoder): as released for SD1.5 and SD2.1." in report
    assert "4 of the bank's 6 blank prompts" in report
    assert "Use Shared Noise in front of the sampler, 50 sampling steps, CFG 7.5." in report
    assert "Other than published" not in report
    changed = run(clip, similarity=0.7, ratio=0.2, steps=5, diversity=2.0)[4]
    assert "similarity 0.7 (published: 0.8), lambda 2 (published: 1), steps 5 (published: 50), ratio 0.2" in changed
    assert run(clip, published_diversity=1.0, diversity=2.0, steps=2)[4].count("lambda") == 0
    with torch.inference_mode():
        text_encoders(clip)["clip_l"].transformer.text_projection.weight.zero_()
    unprojected = run(clip, steps=3)[4]
    assert "no text projection is loaded" in unprojected
    assert "aim 0.800" in unprojected
    words = run(small_encoder("sd1"), negative_text="blurry", steps=3)
    assert "a negative prompt with words, not varied" in words[4]
    assert len(words[1][0][0]) == 1
    assert "the release cuts a prompt off at 75 tokens" in run(clip, "a red fish in deep blue water, " * 12, steps=2)[4]
    flow = run(small_encoder("sd3 clips"), steps=2)[4]
    assert "preset sd35" in flow
    assert "8 of 8 tokens varied" in flow
    assert "noise_per_step 0.03 and noise_on_last_step on" in flow
    other = run(small_encoder("t5"), steps=2)[4]
    assert "not a CLIP, so that the paper has no rule for it" in other
    assert "aim 0.800" in other
    assert "there is no bank for a text encoder that is not a CLIP" in other


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"text": " "}, "text is ' '; it must be a prompt with words"),
        ({"variants": 0}, "variants is 0; it must be a whole number from 1"),
        ({"variants": 351, "steps": 1}, "variants is 351; it must be 1 to 350"),
        ({"similarity": 0.0}, "kappa is 0.0; it must be above 0"),
        ({"preset": "sd35"}, r"preset is 'sd35'; it must be auto or sd15 .* SD1.5's: SD3.5's rule is for flow"),
        ({"added_tokens": 4}, r"added_tokens is '4'; it must be -1 \(auto\) or 0 with mode published"),
        ({"keep_words": True}, "keep_words is 'on'; it must be off with mode published"),
        ({"schedule": "hold"}, "schedule is 'hold'; it must be linear or off with mode published"),
        ({"perturbed_steps": 2}, "perturbed_steps is '2'; it must be 0 with mode published"),
        ({"negative_text": "blurry", "negative_bank": "on"}, "negative_text is 'blurry'; it must be empty"),
        ({"negative_text": "blurry", "vary_negative": True}, "or switch vary_negative off"),
        ({"vary_negative": True, "negative_bank": "off"}, "negative_bank is 'off'; it must be auto or on"),
        ({"mode": "recommended", "preset": "sd15"}, "preset is 'sd15'; it must be auto with mode recommended"),
        ({"mode": "recommended", "negative_bank": "on"}, "negative_bank is 'on'; it must be auto with mode recom"),
        ({"mode": "recommended", "published_diversity": 1.0}, "published_diversity is 1.0; it must be -1"),
    ],
)
def test_what_contradicts_the_mode_is_refused(changed: dict[str, Any], words: str, user: Path) -> None:
    with pytest.raises(ValueError, match=words):
        run(small_encoder("sd1"), **{"text": TEXT, **changed})
