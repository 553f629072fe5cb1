"""`benchmarks.cost` on small models: calls are counted, and a patched model has nothing to do outside its steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from small.encoders import small_encoder
from small.models import small_model

from benchmarks import cost
from benchmarks.cost import STEPS, Architecture, Bench, inactive, text_of
from benchmarks.results import PrintedTable, read


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(Architecture("small", small_model("eps"), small_encoder("sd1"), 7.0, 64), 2, 8, 5)


def test_calls_are_those_of_the_steps_and_of_the_iterations(bench: Bench) -> None:
    calls, runs = len(bench.run().calls), bench.runs()

    def more(name: str) -> int:
        return len(runs[name][0]().calls) - calls

    # Prompt and negative go together, or one after the other.
    assert more("Diverse Noise, 3 iterations") == 3 * calls // STEPS
    assert more("Diverse Prompts, while sampling") == 0
    assert more("Minority Prompt, 5 iterations") == 2 * 5  # each iteration asks twice


def test_the_same_run_costs_the_same(bench: Bench) -> None:
    # Of the order of one: how near, on a busy machine, is for the benchmark to say.
    assert 0.1 < inactive(bench.run, bench.run, STEPS, 2) < 10


def test_prompts_have_the_words_that_were_asked_for() -> None:
    assert text_of(12).split()[:2] == ["a", "small"]
    assert len(text_of(12).split()) == 12


def test_variants_all_at_once_beside_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "full_clip_l", lambda: small_encoder("sd1"))
    cost.prompts(2, (3,), 1, PrintedTable(tmp_path / "cost_prompts.json", "", cost.PROMPTS_HEAD))
    [row] = read(tmp_path / "cost_prompts.json")["rows"]
    assert row["row"] == "CLIP-L, 3 words, 2 variants"
