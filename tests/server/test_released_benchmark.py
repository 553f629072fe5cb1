"""`python -m benchmarks.released` against a real server, on a demo workflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.released import main
from devtools.graph import shipped_prompt
from devtools.server import Client


def test_the_table_of_a_demo_workflow(client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(shipped_prompt("baseline_distilled")))
    (tmp_path / "prompts.txt").write_text("a heart\n\n")
    options = ["--server", client.url, "--prompts", str(tmp_path / "prompts.txt"), "--seeds", "1", "--images", "2"]
    assert main(["--workflow", str(workflow), "--clip", "demo", "--out", str(tmp_path), *options]) == 0
    printed = capsys.readouterr().out
    rows = {row["row"]: row for row in json.loads((tmp_path / "released.json").read_text())["rows"]}
    assert list(rows) == ["without", "Diverse Prompts", "Diverse Noise", "Minority Prompt", "Prompts + Noise"]
    base = rows["without"]["figures"]
    assert 1 <= base["Vendi"][0] < 2
    for name, row in rows.items():
        assert f"| {name} |" in printed
        assert name == "without" or row["figures"] != base  # the nodes were there, and did something
