"""The committed results against the benchmarks: each row can be made again."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from torch import Tensor

from benchmarks import cfg_curve, rows
from benchmarks.results import COMMITTED, read
from benchmarks.world import World
from devtools.places import HERE

ROWS_OF = (
    "ablations",
    "cno_settings",
    "tpso_settings",
    "keep_settings",
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
    assert cfg_curve.main(arguments) == 0
    [row] = read(tmp_path / "cfg_curve_distilled_tune.json")["rows"]
    assert (row["row"], row["cfg"], row["images"]) == ("CFG 1", 1.0, 4)
    assert len(row["by_prompt"]["quality_vendi"]) == 2
    monkeypatch.setattr(cfg_curve.World, "latents", lambda *_: pytest.fail("made twice"))
    cfg_curve.main(arguments)
    [again] = read(tmp_path / "cfg_curve_distilled_tune.json")["rows"]
    assert {**again, "seconds": 0} == {**row, "seconds": 0}


def test_the_cfg_curve_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cfg_curve, "STORE", tmp_path / "images")
    (tmp_path / "cfg_curve_distilled_tune.json").write_text('{"command": ')
    assert cfg_curve.main(["distilled", "--images", "2", "--prompts", "1", "--out", str(tmp_path)]) == 1
    assert "cfg_curve_distilled_tune.json is damaged" in capsys.readouterr().err


def test_a_benchmark_of_settings_says_what_is_wrong(tmp_path: Path) -> None:
    def make(world: World, text: str, seed: int) -> Tensor:
        raise ValueError(f"strength is 3 for {text}; it must be 0 to 1.")

    parser = rows.arguments_of(None)
    options = parser.parse_args(["--model", "distilled", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        rows.carry_out("some", {"row": make}, parser, options)
    # A text is printed to stderr, and the exit code is 1.
    assert str(ended.value.code).startswith("strength is 3 for ")
    assert not list(tmp_path.iterdir())
