"""Files of results and of the frontier's rows: what is missing or damaged in them is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.frontier_store import FRONTIER, NEEDED, load
from benchmarks.results import COMMITTED, add_row, read

ROW = {"row": "baseline", "model": "unet", "steps": 20, "adherence": 0.9, "vendi": 2.0}


def file_of(folder: Path, rows: Any) -> Path:
    path = folder / "some.json"
    path.write_text(json.dumps({"command": "make it", "rows": rows}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "it has no rows"),
        ({}, "it has no rows"),
        ([ROW, {"row": "other", "model": "unet", "steps": 20}], "row 'other' has neither figures nor cells"),
        ([{"row": "other", "cells": {}}], "row 'other' has neither figures nor cells"),
        ([{"vendi": 2.0}], "'row'"),
        (["baseline"], "indices"),
    ],
)
def test_results_without_rows_or_figures_are_refused(rows: Any, why: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, rows)
    for use in (read, lambda path: add_row(path, "make it", ROW)):
        with pytest.raises(ValueError, match=rf"some\.json is damaged \(.*{why}.*\); restore it"):
            use(path)


def test_results_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"some\.json is missing; restore it, or make it again"):
        read(tmp_path / "some.json")
    with pytest.raises(ValueError, match="is damaged"):
        read(tmp_path)  # a folder


def test_a_figure_that_a_row_has_not_is_named_with_the_file(tmp_path: Path) -> None:
    [row] = read(file_of(tmp_path, [ROW]))["rows"]
    assert row == ROW
    assert json.loads(json.dumps(row)) == ROW
    with pytest.raises(ValueError, match=r"some\.json: row 'baseline' has no mss; make it again"):
        row["mss"]


def test_the_report_says_what_is_wrong_with_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, said in (
        (file_of(tmp_path, [ROW]), "row 'baseline' has no "),
        (tmp_path / "no.json", "no.json is missing"),
    ):
        assert report.main([str(path)]) == 1
        printed = capsys.readouterr()
        assert said in printed.err
        assert str(path) in printed.err
        assert len(printed.err.splitlines()) == 1


def test_the_report_says_what_is_wrong_with_a_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def outdated() -> dict[Path, str]:
        raise ValueError("The results of some are bad.")

    monkeypatch.setattr(report, "outdated", outdated)
    assert report.main(["--check"]) == 1
    assert capsys.readouterr().err == "The results of some are bad.\n"


def test_committed_files_are_whole() -> None:
    assert load(FRONTIER)
    for path in COMMITTED.glob("*.json"):
        assert path.stem.startswith("frontier") or read(path)["rows"]


@pytest.mark.parametrize("lacking", NEEDED[1:])
def test_a_row_of_the_frontier_without_a_figure_is_refused(lacking: str, tmp_path: Path) -> None:
    path, row = tmp_path / "frontier.json", dict.fromkeys(NEEDED, 0)
    path.write_text(json.dumps([row]))
    assert load(path) == [row]
    del row[lacking]
    path.write_text(json.dumps([{**row, "key": "the row"}]))
    with pytest.raises(ValueError, match=rf"frontier\.json cannot be read \(row 'the row' has no {lacking}\)"):
        load(path)


@pytest.mark.parametrize("found", [{}, [5], [None], ["key"], [{"model": "unet"}]])
def test_what_is_no_list_of_rows_is_refused(found: Any, tmp_path: Path) -> None:
    path = tmp_path / "frontier.json"
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"frontier\.json cannot be read \(it is not a list of rows\)"):
        load(path)
