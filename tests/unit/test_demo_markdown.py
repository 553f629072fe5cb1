"""The Markdown table of the demo's figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import demo_markdown
from benchmarks.demo_markdown import markdown

ROW = {
    "model": "unet",
    "method": "baseline",
    "cfg": 6.0,
    "steps": 20,
    "prompts": 10,
    "adherence": 0.98765,
    "fidelity": 0.875,
    "quality_vendi": 2.5,
    "effective_number": {"colour": 2.0, "size": 1.5, "place": 3.25, "background": 1.0},
    "rare_share": 0.0312,
    "mss": 0.5,
    "mss_centred": 0.25,
    "vendi": 3.14159,
    "seconds": 12.4,
}


def test_every_row_is_one_line_of_the_same_width() -> None:
    lines = markdown([ROW, ROW]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    figures = "0.988 | 0.875 | 2.50 | 2.00 | 1.50 | 3.25 | 1.00 | 0.031 | 0.500 | 0.250 | 3.14 | 12"
    assert lines[2] == f"| unet | baseline | 6 | 20 | 10 | {figures} |"


@pytest.mark.parametrize("text", ['[{"model": "un', "[]", "{}", "5", '["row"]', '[{"model": "unet"}]', None])
def test_damaged_figures_are_named(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(demo_markdown, "FIGURES", path)
    assert demo_markdown.main() == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"{path} is {'missing' if text is None else 'damaged ('}")
    assert "python dev.py demo" in printed.err


def test_figures_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_markdown, "FIGURES", tmp_path / "figures.json")
    (tmp_path / "figures.json").write_text(json.dumps([ROW]))
    assert demo_markdown.main() == 0
    assert capsys.readouterr().out == f"{markdown([ROW])}\n"
