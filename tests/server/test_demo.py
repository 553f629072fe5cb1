"""The demo on a real server, in small: what it writes, and how it fails."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from PIL import Image
from rich.console import Console

from benchmarks.demo import IMAGES, Plan, RowError, carry_out, make_plan
from devtools.places import HERE
from devtools.server import Server

KEYS = {
    "workflow",
    "model",
    "method",
    "role",
    "settings",
    "cfg",
    "steps",
    "prompts",
    "images",
    "adherence",
    "effective_number",
    "rare_share",
    "mss",
    "mss_centred",
    "vendi",
    "seconds",
    "fidelity",
    "residual",
    "good_share",
    "quality_vendi",
    "divergence",
    "kid",
}
AVERAGES = ("adherence", "fidelity", "good_share", "vendi", "quality_vendi", "rare_share")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """One prompt on two quick rows."""
    whole = make_plan([])
    baselines = [row for row in whole.runs if (row.model, row.method) == ("unet", "baseline") and row.cfg in (1, 6)]
    runs = [dataclasses.replace(row, steps=2) for row in baselines]
    return Plan(runs, whole.prompts[6:7], tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def rows(plan: Plan, server: Server) -> list[dict]:
    return carry_out(plan, [server], QUIET)


def test_figures(plan: Plan, rows: list[dict]) -> None:
    assert json.loads((plan.output / "figures.json").read_text(encoding="utf-8")) == rows
    for row, run in zip(rows, plan.runs, strict=True):
        assert set(row) >= KEYS
        assert row["role"] in ("baseline", "rival", "method")
        for name in AVERAGES:
            low, high = row[f"{name}_interval"]
            assert low <= row[name] <= high
        assert (row["model"], row["method"], row["cfg"], row["steps"]) == (run.model, run.method, run.cfg, run.steps)
        assert (row["prompts"], row["images"]) == (1, IMAGES)
        assert 0 <= row["adherence"] <= 1
        assert 0 <= row["rare_share"] <= 1
        assert -1 <= row["mss_centred"] < row["mss"] <= 1
        assert 1 <= row["vendi"] <= IMAGES
        assert row["seconds"] > 0
        unstated = plan.prompts[0][0].unstated
        assert set(row["effective_number"]) == set(unstated)
        assert all(1 <= number <= IMAGES for number in row["effective_number"].values())


def test_pictures_and_sheets(plan: Plan, rows: list[dict]) -> None:
    text = plan.prompts[0][0].text.replace(" ", "_")
    for run in plan.runs:
        folder = plan.output / run.model / run.name
        images = [Image.open(folder / f"{text}_{k}.png") for k in range(IMAGES)]
        assert {image.size for image in images} == {(128, 128)}
        assert len({image.tobytes() for image in images}) == IMAGES
        assert Image.open(folder / "sheet.jpg").width > IMAGES * 128
    assert (plan.output / "unet" / "overview.jpg").is_file()


def test_guidance_changes_the_images_not_the_noise(plan: Plan, rows: list[dict]) -> None:
    # Rows of a model share prompts and seeds; only what the row changes may differ.
    one, six = (plan.output / run.model / run.name for run in plan.runs)
    names = sorted(path.name for path in one.glob("*.png"))
    assert names == sorted(path.name for path in six.glob("*.png"))
    assert any((one / name).read_bytes() != (six / name).read_bytes() for name in names)


def test_nothing_is_left_in_the_servers_output(plan: Plan, rows: list[dict], server: Server) -> None:
    assert not (server.base / "output" / "diversity_demo").exists()


def test_a_failing_row_is_named(plan: Plan, server: Server) -> None:
    bad = dataclasses.replace(plan, runs=[dataclasses.replace(plan.runs[0], settings={"VAELoader.vae_name": "gone"})])
    with pytest.raises(RowError, match=r"Row unet/baseline_cfg1 \(workflows/baseline_unet.json\): .*refused.*\n.*gone"):
        carry_out(bad, [server], QUIET)
    bad = dataclasses.replace(plan, runs=[dataclasses.replace(plan.runs[0], template="no_such_template")])
    with pytest.raises(RowError, match="no_such_template"):
        carry_out(bad, [server], QUIET)


def demo(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.demo", *arguments]
    return subprocess.Popen(command, cwd=HERE.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_exit_code_of_a_mistake() -> None:
    process = demo("--only", "nothing")
    words, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "--only is 'nothing'" in words
    assert "Traceback" not in words
