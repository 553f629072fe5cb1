"""What the demo is asked to do."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from comfyui_diversity.demo.world.prompts import DEMO_PROMPTS
from rich.console import Console

from benchmarks.demo import IMAGES, OUTPUT, make_plan, overview, run
from benchmarks.demo_rows import RUNS
from benchmarks.demo_sheet import Block
from devtools.places import HERE


def test_whole_plan() -> None:
    plan = make_plan([])
    assert list(plan.runs) == list(RUNS)
    assert [prompt for prompt, _ in plan.prompts] == list(DEMO_PROMPTS)
    assert len({seed for _, seed in plan.prompts}) == len(DEMO_PROMPTS)
    rows = [plan.prompts_of(row) for row in RUNS]
    assert plan.images == sum(len(row) for row in rows) * IMAGES
    assert all(list(prompts) == list(plan.prompts) for row, prompts in zip(RUNS, rows, strict=True) if row.every == 1)
    assert plan.output == OUTPUT


def test_rows_that_are_compared_share_their_prompts() -> None:
    for compared in {(row.model, row.cfg) for row in RUNS}:
        assert len({row.every for row in RUNS if (row.model, row.cfg) == compared}) == 1


def test_rows_with_fewer_prompts_are_not_on_the_overview() -> None:
    whole = make_plan([])
    first = next(row for row in RUNS if row.every == 1)
    rows = [dataclasses.replace(first, cfg=1), dataclasses.replace(first, cfg=2, every=2)]
    plan = dataclasses.replace(whole, runs=rows)
    images = np.zeros((IMAGES, 8, 8, 3), np.uint8)
    blocks = {row: Block(row.title, "", [images for _ in plan.prompts_of(row)]) for row in rows}
    both = overview(plan, blocks)
    alone = overview(plan, {first: blocks[rows[0]]})
    assert both.size == alone.size


def test_the_baselines_are_there() -> None:
    rows = {(row.model, row.cfg, row.steps) for row in RUNS if row.method == "baseline"}
    assert {("unet", cfg, 20) for cfg in (1, 2, 6)} | {("mmdit", cfg, 20) for cfg in (1, 2, 6)} <= rows
    assert ("distilled", 1) in {(model, cfg) for model, cfg, _ in rows}


def test_every_row_says_what_it_is_there_for() -> None:
    roles = {f"{row.model}/{row.name}": row.role for row in RUNS}
    assert roles["mmdit/baseline_cfg1"] == "baseline"
    assert roles["unclip/baseline_cfg3_real"] == roles["unclip/baseline_cfg3_text"] == "rival"
    assert {row.role for row in RUNS if row.method != "baseline"} == {"method"}


def test_every_row_has_its_template() -> None:
    for row in RUNS:
        assert (HERE.prompts / f"{row.template}.json").is_file()


def test_part_of_it_goes_elsewhere() -> None:
    plan = make_plan(["--only", "unet/baseline_cfg2"])
    assert [row.name for row in plan.runs] == ["baseline_cfg2"]
    assert plan.output == OUTPUT / "partial"
    quick = make_plan(["--quick"])
    assert 0 < len(quick.prompts) < len(DEMO_PROMPTS)
    # A prompt has the seed it has in the whole plan.
    assert all(entry in make_plan([]).prompts for entry in quick.prompts)
    assert quick.output == OUTPUT / "partial"


def test_refuses_to_do_nothing() -> None:
    with pytest.raises(ValueError, match="--only is 'nothing'; it must be part of one of unet/baseline_cfg1"):
        make_plan(["--only", "nothing"])


def test_refuses_two_rows_of_one_name() -> None:
    plan = make_plan(["--only", "unet/baseline_cfg2"])
    twice = dataclasses.replace(plan, runs=[plan.runs[0], dataclasses.replace(plan.runs[0], steps=5)])
    with pytest.raises(ValueError, match="twice there is unet/baseline_cfg2"):
        run(twice, Console(quiet=True))


def test_the_server_does_not_wait_for_torch() -> None:
    """Which takes seconds to import: the demo starts ComfyUI first."""
    check = "import sys, benchmarks.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=HERE.root).returncode == 0
