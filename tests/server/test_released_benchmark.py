"""`python -m benchmarks.released` against a real server, on a demo workflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.released import main
from devtools.graph import shipped_prompt, with_values
from devtools.server import Client


def test_the_table_of_a_demo_workflow(client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(with_values(shipped_prompt("baseline_mmdit"), {"steps": 10})))
    (tmp_path / "prompts.txt").write_text("a heart\n\n")
    options = ["--server", client.url, "--prompts", str(tmp_path / "prompts.txt"), "--seeds", "1", "--images", "2"]
    assert main(["--workflow", str(workflow), "--clip", "demo", "--out", str(tmp_path), *options]) == 0
    printed = capsys.readouterr().out
    rows = {row["row"]: row for row in json.loads((tmp_path / "released.json").read_text())["rows"]}
    assert list(rows) == [
        "without",
        "CFG 1.33",
        "Pink noise 0.5",
        "Wide noise 2",
        "Diversify, strength 0.5",
        "Diversify, strength 1",
        "Diversify, the best kept",
        "Diverse Prompts",
        "Diverse Noise",
        "Minority Prompt",
    ]
    assert "10 rows x 1 prompts x 1 seeds = 10 runs of 2 images" in printed
    base = rows["without"]["figures"]
    assert 1 <= base["Vendi"][0] < 2
    assert all(f"| {name} |" in printed for name in rows)
    # The nodes were there, and did something; no two of them the same.
    found = [tuple(values[0] for values in row["figures"].values()) for row in rows.values()]
    assert len(set(found)) == len(rows)
