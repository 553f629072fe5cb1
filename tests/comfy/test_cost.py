"""`benchmarks.cost` on small models: calls are counted, and a patched model has nothing to do outside its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small.encoders import small_encoder
from small.models import small_model

from benchmarks import cost, cost_profile
from benchmarks.cost_architectures import Architecture
from benchmarks.cost_runs import DIVERSE_NOISE, MINORITY_5, PROMPTS, STEPS, Bench, Clock, beside, text_of
from benchmarks.results import PrintedTable, read


def small() -> Architecture:
    return Architecture("small", small_model("eps"), small_encoder("sd1"), 7.0, 64)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(small(), 2, 8, 5)


def table_in(folder: Path, head: list[str]) -> PrintedTable:
    return PrintedTable(folder / "table.json", "", head)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [row["cells"] for row in read(folder / "table.json")["rows"]]


def test_calls_are_those_of_the_steps_and_of_the_iterations(bench: Bench) -> None:
    calls, runs = bench.run().calls, bench.runs()

    def more(name: str) -> int:
        return runs[name].sample().calls - calls

    # Prompt and negative go together, or one after the other.
    assert more(DIVERSE_NOISE) == 3 * calls // STEPS
    assert more(PROMPTS) == 0
    assert more(MINORITY_5) == 2 * 5  # each iteration asks twice


def test_an_idle_step_is_the_fastest_of_those_at_the_end() -> None:
    clock = Clock([0.0, 5.0, 9.0, 20.0, 21.0, 23.0, 26.0])
    assert clock.least_step(4, 1) == 1.0
    assert clock.least_step(6, 2) == 5.0  # 26 - 21
    assert clock.calls == 7


def test_the_same_run_costs_the_same(bench: Bench) -> None:
    found = beside(bench, bench.runs()[PROMPTS], 2)
    # Of the order of one: how near, on a busy machine, is for the benchmark to say.
    assert 0.1 < found.seconds / found.plain < 10
    assert 0.1 < found.idle / found.plain_idle < 10
    assert found.calls == bench.run().calls


def test_tables_of_architectures_growth_and_idle_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "ARCHITECTURES", {"SD1.5": small})
    monkeypatch.setattr(cost, "tiny", small)
    monkeypatch.setattr(cost, "CHANGES", ({}, {"batch": 3}))
    monkeypatch.setattr(cost, "_IDLE_STEPS", 4)
    monkeypatch.setattr(cost, "peak_of", lambda work: (float(work().calls), 0.0))
    cost.denoisers(["SD1.5"], 2, 8, 5, 1, table_in(tmp_path / "one", cost.HEAD))
    found = rows_in(tmp_path / "one")
    assert [row["run"] for row in found] == ["plain", *Bench(small(), 2, 8, 5).runs()]
    assert all(float(row["memory, times the plain run's"]) > 0 for row in found)
    cost.growth(small(), 2, 8, 5, table_in(tmp_path / "two", cost.GROWTH_HEAD))
    assert [(row["images"], row["px"], row["words"]) for row in rows_in(tmp_path / "two")] == [
        ("2", "64", "5"),
        ("3", "64", "5"),
    ]
    cost.idle(1, table_in(tmp_path / "three", cost.IDLE_HEAD))
    assert all(float(row["an idle step (ms)"]) > 0 for row in rows_in(tmp_path / "three"))


def test_the_groups_of_a_profile_share_all_of_the_time() -> None:
    matrix = torch.randn(300, 300)
    seconds, shares = cost_profile.shares_of(lambda: [matrix @ matrix for _ in range(30)])
    assert seconds > 0
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[cost_profile.HEAD[3]] > 0.5
    groups = ("aten::addmm", "aten::native_layer_norm", "aten::copy_", "aten::view")
    assert [cost_profile.group_of(name) for name in groups] == cost_profile.HEAD[3:]


def test_prompts_have_the_words_that_were_asked_for() -> None:
    assert text_of(12).split()[:2] == ["a", "small"]
    assert len(text_of(12).split()) == 12


def test_variants_all_at_once_beside_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "full_clip_l", lambda: small_encoder("sd1"))
    cost.prompts(2, (3,), 1, table_in(tmp_path, cost.PROMPTS_HEAD))
    rows = rows_in(tmp_path)
    assert [(row["words"], row["varied"], row["variants"]) for row in rows] == [
        ("3", "4 added tokens", "2"),
        ("3", "its words", "2"),
    ]


def test_what_was_saved_is_counted(tmp_path: Path) -> None:
    own = Architecture("small", small_model("eps"), small_encoder("qwen3"), 1.0, 64)
    cost.savings(own, (12,), table_in(tmp_path, cost.SAVINGS_HEAD))
    unrelated, shared = rows_in(tmp_path)
    assert unrelated["calls before"] == "12"
    assert 1 <= int(unrelated["calls now"]) <= 6
    assert shared["what"].startswith("5 gradients of 4 variants, 12 words")
    assert (shared["calls before"], shared["calls now"]) == ("5", "5")
