"""Rows of the frontier on the demo models: every part changes the images; rows are made once, and never mixed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_diversity.core.hooks.sampling import SamplerRun, with_noise_change

from benchmarks import bench, frontier_store, provenance
from benchmarks.frontier_extent import REPORTED
from benchmarks.frontier_rows import MODELS, PARTS, TOGETHER, Row, grid, rows_of, together
from benchmarks.job import finished, new_job
from benchmarks.rivals.group_selection import group_selection
from benchmarks.world import World

TEXT = "a small heart"
CFG = {"distilled": 1.0, "mmdit": 2.0}


@pytest.fixture(scope="module")
def worlds() -> dict[str, World]:
    return {name: World(name, 3) for name in ("distilled", "mmdit")}


@pytest.fixture(scope="module")
def plain(worlds: dict[str, World]) -> dict[str, torch.Tensor]:
    """Latents of both models as they are."""
    return {name: latents(world, CFG[name]) for name, world in worlds.items()}


def latents(world: World, cfg: float, *parts: tuple[str, Mapping[str, Any]], images: int = 2) -> torch.Tensor:
    job = new_job(world, TEXT, 3, images, cfg)
    for name, settings in parts:
        PARTS[name].make(**settings)(job)
    return finished(job)


@pytest.mark.parametrize("model", ["distilled", "turbo"])  # euler, and res_multistep as in Z-Image Turbo's template
def test_a_job_is_sampled_as_ksampler_would(model: str) -> None:
    world = World(model, 4)
    assert torch.equal(finished(new_job(world, TEXT, 3, 2, world.recipe.cfg)), world.latents(TEXT, 3, 2))


# The cheapest settings of each.
SETTINGS: dict[str, dict[str, Any]] = {
    "more seeds": {"times": 2},
    "CFG interval": {"start": 0.25},
    "pink noise": {"alpha": 0.5},
    "seed variance": {"strength": 2.0, "pooled": True},
    "conditioning variation": {"strength": 0.8},
    "CADS": {"strength": 0.25},
    "DAVE": {"strength": 0.5, "end": 0.25},
    "contextual repulsion": {"strength": 1.0, "end": 0.5},
    "particle guidance": {"strength": 0.5},
    "DPP (DiverseFlow)": {"strength": 0.2, "pool": 4},
    "first step by the base model": {"cfg": 2.0},
    "group selection": {"times": 3, "window": 4},
    "Diverse Prompts": {"steps": 3},
    "shared noise": {},
    "Diverse Noise": {"iterations": 1},
    "wide noise": {"factor": 2.0},
    "Minority Prompt": {"iterations": 1},
    "Diversify": {"strength": 1.0},
    "Diverse Noise, low frequencies": {"iterations": 1, "cells": 4},
    "Diverse Noise, hinge": {"iterations": 2},
    "N of 2N": {"times": 4},
    "Keep the Best": {"times": 2},
}


def test_settings_are_of_all_parts() -> None:
    assert SETTINGS.keys() == PARTS.keys()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_part_changes_the_images(name: str, worlds: dict[str, World], plain: dict[str, torch.Tensor]) -> None:
    # The few-step model where that will do: it needs one pass a step.
    model = "distilled" if "distilled" in PARTS[name].models else "mmdit"
    found = latents(worlds[model], CFG[model], (name, SETTINGS[name]))
    assert found.shape == plain[model].shape
    assert torch.isfinite(found).all()
    assert (found - plain[model]).std() > 1e-3


def test_the_same_seed_gives_the_same_images_and_no_part_stays_behind(
    worlds: dict[str, World], plain: dict[str, torch.Tensor]
) -> None:
    world = worlds["distilled"]
    for name in ("CADS", "seed variance", "more seeds", "group selection"):
        assert torch.equal(latents(world, 1.0, (name, SETTINGS[name])), latents(world, 1.0, (name, SETTINGS[name])))
    assert torch.equal(latents(world, 1.0), plain["distilled"])


def test_parts_that_do_nothing_leave_the_images_alone(worlds: dict[str, World], plain: dict[str, torch.Tensor]) -> None:
    for name, settings in (
        ("CFG interval", {"start": 0.0}),
        ("pink noise", {"alpha": 0.0}),
        ("wide noise", {"factor": 1.0}),
        ("seed variance", {"strength": 0.0}),
        ("CADS", {"strength": 0.5, "start": 1.0, "end": 1.0}),
        ("DAVE", {"strength": 0.0}),
        ("contextual repulsion", {"strength": 0.0}),
        ("particle guidance", {"strength": 0.0}),
        ("DPP (DiverseFlow)", {"strength": 0.0}),
        ("group selection", {"times": 1}),
    ):
        model = "distilled" if "distilled" in PARTS[name].models else "mmdit"
        found = latents(worlds[model], CFG[model], (name, settings))
        assert torch.allclose(found, plain[model], atol=2e-4), name


def test_cfg_off_to_the_end_is_cfg_1(worlds: dict[str, World]) -> None:
    off = latents(worlds["mmdit"], 3.0, ("CFG interval", {"start": 1.0, "end": 0.9}))
    assert torch.allclose(off, latents(worlds["mmdit"], 1.0), atol=1e-3)


def test_a_hinge_that_never_closes_is_diverse_noise(worlds: dict[str, World]) -> None:
    settings = {"strength": 1.0, "iterations": 2, "projection": "norm"}
    free, plain = (
        latents(worlds["mmdit"], 2.0, (name, {**settings, **own}))
        for name, own in (
            ("Diverse Noise, hinge", {"limit": 1e6}),
            ("Diverse Noise", {"cells": 0}),
        )
    )
    assert torch.allclose(free, plain, atol=1e-4)


def test_noise_is_optimised_after_the_starts_are_chosen(worlds: dict[str, World]) -> None:
    world = worlds["distilled"]
    seen: list[torch.Tensor] = []
    job = new_job(world, TEXT, 3, 2, 1.0)
    group_selection(4)(job)

    def watch(run: SamplerRun) -> torch.Tensor:
        seen.append(run.noise.clone())
        return run.noise

    job.model = with_noise_change(job.model, "cno", watch)
    finished(job)
    alone = new_job(world, TEXT, 3, 2, 1.0)
    assert torch.equal(seen[0][0], alone.noise[0])  # the first is always kept
    assert not torch.equal(seen[0][1], alone.noise[1])


def test_a_row_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier_store, "STORE", tmp_path / "store")
    made = bench.Bench("report", 2, 3)
    row = Row("distilled", "rival", "pink", 1.0, (("pink noise", {"alpha": 0.5}),))
    entry = made.row(row)
    assert entry["images"] == 6
    assert entry["revision"] == provenance.revision("rival", "distilled")
    assert entry["settings"] == {"pink noise": {"alpha": 0.5}}
    low, high = entry["vendi_interval"]
    assert low <= entry["vendi"] <= high
    assert entry["vendi"] == pytest.approx(sum(entry["per_prompt"]["vendi"]) / 2, abs=1e-3)
    monkeypatch.setattr(bench, "new_job", lambda *_: pytest.fail("made again"))
    assert made.row(row) == entry
    scores = sorted((tmp_path / "store").rglob("*.json"))
    assert len(scores) == 2
    whole = [path.read_text() for path in scores]
    for text in (whole[0][:40], "{}", "[]", '{"vendi": "x"}', ""):  # a damaged score is made again
        scores[0].write_text(text)
        assert made.row(row) == entry
        assert [path.read_text() for path in scores] == whole
    timed = next((tmp_path / "store").rglob("*.seconds"))
    timed.write_text("")
    for path in scores:
        path.unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(str(timed))} is damaged .*; delete .*\.npz with it"):
        made.row(row)


def test_a_full_disk_leaves_no_half_of_a_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    monkeypatch.setattr(frontier_store, "STORE", tmp_path / "store")
    made = bench.Bench("report", 1, 2)
    row = Row("distilled", "rival", "pink", 1.0, (("pink noise", {"alpha": 0.5}),))
    made.images_of(row, 0)
    with full_disk(), pytest.raises(OSError, match="File too large"):
        made.prompt_score(row, 0)
    assert {path.suffix for path in (tmp_path / "store").rglob("*.*")} == {".npz", ".seconds"}


def test_a_row_is_of_the_revision_of_what_made_it() -> None:
    first = (("first step by the base model", {"cfg": 1.0}),)
    rows = {
        "baseline": [Row("mmdit", "rival", "CFG", 3.0), Row("mmdit", "data", "the data itself", 0.0)],
        "rival": [Row("mmdit", "rival", "pink", 2.0, (("pink noise", {"alpha": 0.5}),))],
        "teacher's rival": [Row("distilled", "rival", "first step by the base model", 1.0, first)],
        "method": [Row("mmdit", "method", "Diversify", 2.0, (("Diversify", {"strength": 0.5}),))],
    }
    assert rows.keys() == set(provenance.ROLES)
    assert all(bench.made_as(row) == role for role, own in rows.items() for row in own)


def test_the_command_refuses_rows_of_another_revision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "frontier.json"
    figures = dict.fromkeys(frontier_store.NEEDED, 0)
    other = {**figures, "key": "b", "model": "mmdit", "revision": "older"}
    path.write_text(json.dumps([{**figures, "key": "a", "model": "distilled", "revision": "old"}, other]))
    only = ["--out", str(tmp_path), "--model", "distilled"]
    assert bench.main(only) == 1
    assert "rows of revision old of distilled" in capsys.readouterr().err
    assert bench.main([*only, "--replace", "--rows", "nothing"]) == 1
    assert "--rows is ['nothing']" in capsys.readouterr().err
    assert json.loads(path.read_text()) == [other]
    assert bench.main([*only, "--full", "--rows", "Minority + Noise"]) == 1
    assert "come with --every" in capsys.readouterr().err


def test_rows_of_another_size_are_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "carry_out", lambda *_: pytest.fail("made something"))
    path, figures = tmp_path / "frontier.json", dict.fromkeys(frontier_store.NEEDED, 0)
    one = {"revision": provenance.revision("baseline", "mmdit"), "model": "mmdit", "prompts": 4, "images": 40}
    frontier_store.save(path, [{**figures, **one, "key": "a"}])
    assert bench.main(["--full", "--out", str(tmp_path), "--model", "distilled", "mmdit"]) == 1
    assert "--prompts 4 --images 10 for mmdit; this is --prompts 60 --images 20" in capsys.readouterr().err
    assert [row["key"] for row in frontier_store.load(path)] == ["a"]
    bench.begin_anew(path, ["distilled"], 60, 20)
    bench.begin_anew(path, ["mmdit"], 4, 10)
    assert [row["key"] for row in frontier_store.load(path)] == ["a"]
    bench.begin_anew(path, ["mmdit"], 60, 20)
    assert frontier_store.load(path) == []


@pytest.mark.parametrize(("arguments", "models", "size", "folder"), [
    ([], ["distilled"], (4, 5), bench.QUICK_OUT),
    (["--full"], list(REPORTED), (60, 20), bench.OUT),
    (["--every"], list(MODELS), (60, 20), bench.OUT),
    (["--every", "--one"], list(MODELS), (60, 20), bench.OUT),
])  # fmt: skip
def test_how_much_is_made(
    arguments: list[str], models: list[str], size: tuple[int, int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(bench, "carry_out", lambda *given: found.extend(given))
    monkeypatch.setattr(bench, "check", lambda *_: [])
    monkeypatch.setattr(bench, "draw_frontier", lambda *_: None)
    assert bench.main(arguments) == 0
    made, rows, path, _ = found
    assert (len(made.prompts), made.images) == size
    assert path == folder / "frontier.json"
    wanted = [row for model in models for row in (grid(model) if "--every" in arguments else rows_of(model))]
    curves = {(row.model, row.role, row.name) for row in wanted}
    one_each = not arguments or "--one" in arguments
    assert {(row.model, row.role, row.name) for row in rows} == curves
    assert len(rows) == (len(curves) if one_each else len(wanted))


def test_other_starts_go_before_all_that_optimises_noise() -> None:
    for row in grid("distilled"):
        names = [name for name, _ in row.parts]
        for start in {"pink noise", "wide noise"} & set(names):
            assert set(names[: names.index(start)]) <= {"Keep the Best"}


@pytest.mark.parametrize("name", [name for name, parts in TOGETHER.items() if "Minority Prompt" not in parts])
def test_of_parts_together_none_is_lost(name: str, worlds: dict[str, World]) -> None:
    parts = together("distilled", TOGETHER[name])
    whole = latents(worlds["distilled"], 1.0, *parts, images=3)
    for left_out in parts if len(parts) > 1 else ():
        others = [part for part in parts if part is not left_out]
        assert not torch.allclose(whole, latents(worlds["distilled"], 1.0, *others, images=3), atol=1e-3), left_out


def test_wide_noise_is_what_diverse_noise_has_as_an_option(worlds: dict[str, World]) -> None:
    wide, world = ("wide noise", {"factor": 2.0}), worlds["distilled"]
    for strength in (0.0, 0.5):
        parts = (wide, ("Diverse Noise", {"strength": strength}))
        option = ("Diverse Noise", {"strength": strength, "wide": 2.0})
        assert torch.equal(latents(world, 1.0, *parts), latents(world, 1.0, option))


def test_the_best_are_kept_of_images_as_ksampler_makes_them() -> None:
    world = World("distilled", 4)
    more = world.latents(TEXT, 3, 6)
    for drop in (0.0, 0.5):
        found = latents(world, 1.0, ("Keep the Best", {"times": 3, "drop": drop}))
        assert len(found) == 2
        assert all(any(torch.equal(one, other) for other in more) for one in found)


def test_the_best_are_kept_of_a_larger_batch_that_all_other_parts_see() -> None:
    rows = [row for row in grid("distilled") if "Keep the Best" in row.settings]
    assert rows
    assert all(row.parts[0][0] == "Keep the Best" for row in rows)
