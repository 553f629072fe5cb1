"""The benchmark of OVI's settings: its rows in published mode, and what it reads off embeddings."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from comfyui_diversity.core.drivers.ovi import published, text_target
from comfyui_diversity.core.hooks.vision import VisionTower
from comfyui_diversity.core.methods.ovi import initial_tokens
from comfyui_diversity.demo import loader
from comfyui_diversity.demo.world.prompts import REPORT_PROMPTS
from torch.nn import functional as F

from benchmarks import ovi_settings as benchmark
from benchmarks.measure import difference


def test_each_published_row_changes_one_thing_and_its_name_says_which() -> None:
    default = published()
    for name, row in benchmark.PUBLISHED_ROWS.items():
        plan, [*_, last] = row.plan, name.split()
        assert plan.is_published
        assert plan.settings == default.settings
        assert plan.tokens == default.tokens or plan.weight == default.weight
        if row.constraint == "off":
            assert name.split(", ")[1] == "none"
            assert plan.tokens == (6 if last == "none" else int(name.split()[2]))
        else:
            _, weight = plan.constraints[row.constraint] or pytest.fail(name)
            assert weight * plan.weight == pytest.approx(float(last))
            assert row.constraint in name


@torch.inference_mode()
def test_figures_of_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "Others", partial(benchmark.Others, count=60))
    prompts = REPORT_PROMPTS[:4]
    clip, tower = loader.load_clip(), VisionTower(loader.load_clip_vision())
    texts = torch.cat([text_target(clip, prompt.text, tower.width).vectors for prompt in prompts])
    bank = benchmark.make_bank(tower, 40)
    figures = benchmark.Figures(tower, prompts, texts, bank)

    found = figures(3 * texts)
    assert found["text cosine"] == pytest.approx(torch.ones(4), abs=1e-5)
    assert found["length"] == pytest.approx(3 * texts.norm(dim=1))
    assert all(0 <= share <= 1 for share in found["neighbours that fit"].tolist())

    collapsed = figures(bank.mean.expand(4, -1))
    assert collapsed["other prompts"] == pytest.approx(torch.ones(4), abs=1e-5)
    assert collapsed["bank's mean"] == pytest.approx(torch.ones(4), abs=1e-5)
    assert collapsed["Mahalanobis"] == pytest.approx(torch.zeros(4), abs=1e-5)
    assert (figures(bank.members[:4])["nearest of the bank"] > 1 - 1e-5).all()
    assert (figures(figures.own)["prompt's images"] > 1 - 1e-5).all()

    rows = [benchmark.numbers(name, each) for name, each in (("texts", found), ("collapsed", collapsed))]
    more, (low, high) = difference(rows[0], rows[1], "text cosine")
    assert 0 < low <= more <= high


@torch.inference_mode()
def test_random_starts_are_nearly_one_embedding_and_have_one_neighbour() -> None:
    """Why far too much weight on the nearest neighbour as published gives every prompt the same embedding."""
    tower = VisionTower(loader.load_clip_vision())
    starts = initial_tokens(4, published().tokens, tower.token_width, 0)
    unit = F.normalize(torch.cat([tower.output(tokens).image_embeds for tokens in starts]), dim=1)
    assert (unit @ unit.T).min() > 0.999
    assert len(benchmark.make_bank(tower).nearest(unit)[1].unique()) == 1
