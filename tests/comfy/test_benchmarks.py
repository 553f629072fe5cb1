"""The committed results against the benchmarks: each row can be made again."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks import cfg_curve
from benchmarks.results import COMMITTED, read
from devtools.places import HERE

ROWS_OF = (
    "ablations",
    "cno_settings",
    "tpso_settings",
    "minority_settings",
    "ovi_images",
    "ovi_settings",
    "rarest_first",
)


@pytest.mark.parametrize("name", ROWS_OF)
def test_every_committed_row_is_one_of_the_benchmark(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    known = {*(module.RANKINGS if name == "rarest_first" else module.ROWS), *getattr(module, "BESIDE", ())}
    files = list(COMMITTED.glob(f"{name}_*.json"))
    assert files
    assert {row["row"] for file in files for row in read(file)["rows"]} <= known


@pytest.mark.parametrize("path", sorted((HERE.root / "benchmarks").rglob("*.py")), ids=lambda path: path.stem)
def test_it_can_be_started(path: Path) -> None:
    """Rows are made while a benchmark is imported."""
    importlib.import_module(".".join(path.relative_to(HERE.root).with_suffix("").parts).removesuffix(".__init__"))


def test_the_cfg_curve_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cfg_curve, "STORE", tmp_path / "images")
    arguments = ["distilled", "--images", "2", "--prompts", "2", "--out", str(tmp_path)]
    cfg_curve.main(arguments)
    [row] = read(tmp_path / "cfg_curve_distilled_tune.json")["rows"]
    assert (row["row"], row["cfg"], row["images"]) == ("CFG 1", 1.0, 4)
    assert len(row["by_prompt"]["quality_vendi"]) == 2
    monkeypatch.setattr(cfg_curve.World, "latents", lambda *_: pytest.fail("made twice"))
    cfg_curve.main(arguments)
    [again] = read(tmp_path / "cfg_curve_distilled_tune.json")["rows"]
    assert {**again, "seconds": 0} == {**row, "seconds": 0}
