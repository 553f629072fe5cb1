"""The Markdown table of the demo's figures."""

from __future__ import annotations

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
