"""The frontier's figures and files, on rows written out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import StepPatch

from benchmarks import provenance
from benchmarks.frontier_extent import REPORTED, values
from benchmarks.frontier_figures import best_at, hypervolume, summary
from benchmarks.frontier_page import front, gains, made, outline, rounded, with_part
from benchmarks.frontier_plot import draw_frontier, looks, picture
from benchmarks.frontier_rows import MODELS, TOGETHER, grid, quick, rows_of
from benchmarks.frontier_store import FRONTIER, check, load, merged, save
from benchmarks.intervals import mean_interval, resampled
from benchmarks.search import survivors
from devtools.places import HERE


def row(role: str, name: str, good: float, vendi: float, free: bool = True, **other: Any) -> dict[str, Any]:
    """A row of 40 prompts, half of them a little better and half a little worse."""
    swing = np.where(np.arange(40) % 2, 0.02, -0.02)
    per_prompt = {"good_share": (good + swing).tolist(), "vendi": (vendi - swing).tolist()}
    per_prompt["quality_vendi"] = [share * score for share, score in zip(*per_prompt.values(), strict=True)]
    means = {"adherence": good, "fidelity": 1.0, "good_share": good, "vendi": vendi, "quality_vendi": good * vendi}
    intervals = {f"{figure}_interval": [value - 0.01, value + 0.01] for figure, value in means.items()}
    made = {"revision": "a", "key": f"{role} {name} {vendi}", "machine": "some", "versions": {"torch": "1"}}
    own = {"model": "mmdit", "role": role, "name": name, "free": free, "settings": {}, "cfg": 2.0, "prompts": 40}
    return {**own, "images": 400, "seconds": 1.0, **means, **intervals, **made, "per_prompt": per_prompt, **other}


ROWS = [
    row("baseline", "CFG", 0.95, 1.6),
    row("rival", "CFG", 0.90, 2.0),
    row("rival", "pink", 0.93, 1.8),
    row("rival", "selection", 0.96, 1.9, free=False),
    row("method", "ours", 0.95, 2.2),
    row("method", "ours", 0.85, 2.6),
]


def test_area_of_two_points() -> None:
    assert hypervolume([(0.9, 2.0), (0.6, 3.0), (0.55, 1.5), (0.4, 9.0)]) == pytest.approx(0.4 * 1 + 0.1 * 1)


def test_between_two_rows_lies_a_straight_line() -> None:
    assert best_at([(0.95, 1.6), (0.85, 2.6)], 0.90) == pytest.approx(2.1)
    assert best_at([(0.95, 1.6)], 0.96) == -np.inf


def test_gains_are_those_at_the_quality_of_the_baseline() -> None:
    found = summary(ROWS)
    assert found["free"]["name"] == "pink"  # 1.7 where it has lost one of its two points; CFG 1.68
    assert found["free"]["gain"] == pytest.approx(0.1)
    assert found["rivals"]["name"] == "selection"
    assert found["rivals"]["gain"] == pytest.approx(0.3)
    assert found["ours"]["gain"] == pytest.approx(0.64)  # a tenth of the way to the next row
    assert found["ratio_free"] == pytest.approx(6.4)
    low, high = found["ratio_free_interval"]
    assert low <= 6.4 <= high


def test_the_best_quality_weighted_score_is_of_a_row_that_breaks_few_images() -> None:
    found = summary(ROWS)
    assert found["quality_baseline"] == pytest.approx(0.95 * 1.6, abs=1e-3)
    assert (found["free"]["quality_name"], found["rivals"]["quality_name"]) == ("CFG", "selection")
    assert found["free"]["quality"] == pytest.approx(0.90 * 2.0, abs=1e-3)  # five points less, to the point
    assert found["ours"]["quality"] == pytest.approx(0.95 * 2.2, abs=1e-3)  # not 0.85 * 2.6
    assert found["quality_difference_rivals"] == pytest.approx(0.95 * 2.2 - 0.96 * 1.9, abs=1e-3)
    low, high = found["ours"]["quality_interval"]
    assert low <= found["ours"]["quality"] <= high
    low, high = found["quality_difference_free_interval"]
    assert 0 < low <= found["quality_difference_free"] <= high
    alone = summary([ROWS[0], row("rival", "CFG", 0.895, 9.0)])
    assert alone["free"]["quality_name"] == "none"
    assert alone["free"]["quality"] == alone["quality_baseline"]


def test_the_best_rival_has_a_line_of_its_own_where_it_is_not_free() -> None:
    lines = gains([summary(ROWS)]).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["baseline, CFG 2", "free rivals", "all rivals", "ours"]
    assert "| CFG: 1.80 (" in lines[3]
    assert "| pink: +0.10 (" in lines[3]
    assert "| selection: 1.82 (" in lines[4]
    assert "| ours: 2.09 (" in lines[5]
    lines = gains([summary([row for row in ROWS if row["free"]])]).splitlines()
    assert [line.split(" | ")[1] for line in lines[3:]] == ["free rivals, all rivals", "ours"]


def test_a_model_has_one_baseline() -> None:
    with pytest.raises(ValueError, match="2 baselines"):
        summary([*ROWS, ROWS[0]])


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        low, high = mean_interval(rng.normal(3.0, 1.0, 60), 400)
        inside += low <= 3.0 <= high
    assert 178 <= inside <= 200
    assert np.array_equal(resampled(5), resampled(5))


def test_rows_of_another_revision_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "frontier.json"
    model = ROWS[0]["model"]
    for one in ROWS:
        save(path, merged(path, one, {"a"}))
    assert load(path) == ROWS
    better = {**ROWS[1], "vendi": 9.0}
    assert merged(path, better, {"a", "b"}) == [ROWS[0], better, *ROWS[2:]]
    with pytest.raises(ValueError, match=f"revision a of {model}; this is b, c"):
        check(path, model, {"b", "c"}, 40, 10)
    fewer = {**ROWS[1], "prompts": 4, "images": 40}
    with pytest.raises(ValueError, match="rows of --prompts 40 --images 10 for mmdit; this is --prompts 4 --images 10"):
        merged(path, fewer, {"a"})
    assert merged(path, {**fewer, "model": "another", "key": "of another"}, {"a"})[:-1] == ROWS
    other = {**ROWS[0], "model": "another", "key": "another", "revision": "b"}
    assert merged(path, other, {"b"}) == [*ROWS, other]
    path.write_text("[{]")
    with pytest.raises(ValueError, match=r"frontier\.json cannot be read"):
        load(path)


def test_every_row_has_its_own_key_and_every_model_its_baseline() -> None:
    for model in MODELS:
        every, rows = grid(model), rows_of(model)
        assert len({one.key for one in every}) == len(every)
        assert [one.role for one in rows].count("baseline") == 1
        assert {one.name for one in rows_of(model, full=False)} == {one.name for one in rows}
        assert all(one.changes() is not None for one in every)
        assert {one.key for one in rows} < {one.key for one in every}


@pytest.mark.parametrize("model", REPORTED)
def test_all_that_is_to_be_reported_is_in_the_grid(model: str) -> None:
    for name, wanted in values(model).items():
        own = [one for one in grid(model) if one.name == name]
        there = {one.cfg if name.endswith("over CFG") else one.factor for one in own}
        assert set(wanted) <= there, name


@pytest.mark.parametrize("model", MODELS)
def test_one_row_a_curve_is_that_at_the_chosen_settings(model: str) -> None:
    for one in rows_of(model, full=False):
        chosen = {other.factor for other in rows_of(model) if (other.role, other.name) == (one.role, one.name)}
        assert one.factor == 1 or 1 not in chosen
    assert [one.cfg for one in rows_of("mmdit", full=False) if one.role == "rival" and one.name == "CFG"] == [3.0]


@pytest.mark.parametrize("model", REPORTED)
def test_rivals_are_reported_at_their_chosen_settings(model: str) -> None:
    rows = rows_of(model)
    for one in grid(model):
        if one.role == "rival" and one.factor == 1:
            assert one in rows


def test_what_is_reported_has_been_run() -> None:
    """The rows of the committed file are those that `bench --full` makes, no fewer and no others."""
    there = {one["key"] for one in load(FRONTIER) if one["role"] != "data"}
    assert there == {one.key for model in REPORTED for one in rows_of(model)}
    assert {(one["prompts"], one["images"]) for one in load(FRONTIER)} == {(60, 1200)}


def test_half_of_the_tries_go_on_and_the_best_of_them_first() -> None:
    assert survivors([0.3, 0.9, float("nan"), 0.5], 2) == [1, 3]


def test_the_picture_and_the_tables_show_every_curve(tmp_path: Path) -> None:
    rows = [*ROWS, row("data", "the data itself", 1.0, 2.2)]
    draw_frontier(rows, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 5000
    text = outline(rows, "mmdit")
    assert all(one["name"] in text for one in rows)
    assert "**2.20**" in text  # the greatest Vendi at the baseline's quality


def test_a_figure_has_the_interval_of_its_difference_from_the_baseline() -> None:
    other = row("rival", "pink", 0.95, 1.8)
    wide = np.where(np.arange(40) % 2, 0.5, -0.5)  # as much better on some prompts as worse on others
    other["per_prompt"]["good_share"] = (0.95 + wide).tolist()
    lines = outline([ROWS[0], other], "mmdit").splitlines()
    [base], [pink] = ([line for line in lines if line.startswith(f"| {kind}")] for kind in ("baseline", "rival"))
    assert "0.950 | 1.60 |" in base  # with nothing to compare it with
    assert "0.950 (unclear)" in pink
    assert "**1.80** (+0.20 to +0.20)" in pink


def test_the_rows_of_one_method_stand_beside_the_baseline_of_their_model() -> None:
    pink, both = {"pink": {"alpha": 0.5}}, {"pink": {"alpha": 0.5}, "ours": {}}
    rows = [*ROWS, row("method", "both", 0.9, 2.3, settings=both), row("rival", "pink", 0.93, 1.8, settings=pink)]
    rows += [{**ROWS[0], "model": "unet"}]
    lines = [line.split(" | ")[:4] for line in with_part(rows, "pink").splitlines()[2:]]
    assert lines == [
        ["| mmdit", "CFG", "", "2"],
        ["| ", "pink", "alpha 0.5", "2"],
        ["| ", "both", "alpha 0.5", "2"],
    ]
    assert "1.80 (+0.20 to +0.20)" in with_part(rows, "pink")
    with pytest.raises(ValueError, match="no row with 'nothing'"):
        with_part(rows, "nothing")


def test_on_the_front_is_what_no_other_row_beats() -> None:
    rows = [*ROWS, row("rival", "twin", 0.95, 2.2), row("method", "too bad", 0.84, 9.0)]
    rows += [row("data", "the data itself", 1.0, 2.2), {**ROWS[0], "model": "unet"}]
    lines = [line.split(" | ") for line in front(rows).splitlines()[2:]]
    assert [(line[0], line[2], line[5]) for line in lines] == [
        ("| mmdit", "selection", "-1.0 (-1.0 to -1.0)"),
        ("| ", "ours", "0.0 (unclear)"),
        ("| ", "twin", "0.0 (unclear)"),
        ("| ", "ours", "10.0 (+10.0 to +10.0)"),
        ("| unet", "CFG", "0.0"),
    ]
    assert lines[0][6] == "1.90 (+0.30 to +0.30)"


def test_times_of_two_machines_are_not_compared() -> None:
    rows = [ROWS[0], row("rival", "here", 0.95, 1.8, seconds=3.0), row("rival", "there", 0.95, 1.8, machine="another")]
    lines = {line.split(" | ")[1]: line for line in outline(rows, "mmdit").splitlines() if line.startswith("| rival")}
    assert lines["here"].endswith("| 3.0 |")
    assert lines["there"].endswith("|  |")
    assert "- mmdit: some and another; revision a." in made(rows)


def test_a_curve_looks_the_same_in_all_panels() -> None:
    more = [row("method", "before ours", 0.95, 2.1), row("rival", "another", 0.95, 2.1), *reversed(ROWS)]
    left, right = picture([*ROWS, *({**one, "model": "unet"} for one in more)]).axes
    seen, others = ({line.get_label(): marks(line) for line in axis.lines} for axis in (left, right))
    names = {one["name"] for one in ROWS if one["role"] != "baseline"}
    assert {name: seen[name] for name in names} == {name: others[name] for name in names}
    assert len({others[name] for name in {"before ours", "another", *names}}) == len(names) + 2
    every = [row(one.role, one.name, 0.9, 1.5) for model in MODELS for one in grid(model)]
    found = looks(every)
    assert len({(look["color"], look["marker"]) for look in found.values()}) == len(found)


def marks(line: Any) -> tuple[str, str]:
    return line.get_color(), line.get_marker()


def test_a_curve_of_several_rows_is_joined_from_the_baseline_on_by_vendi() -> None:
    rows = [*reversed(ROWS), row("rival", "CFG", 0.90, 1.4)]
    [axis] = picture(rows).axes
    joined = [np.asarray(line.get_xdata()).tolist() for line in axis.lines if line.get_linestyle() in ("-", "--")]
    assert sorted(joined) == [[1.4, 1.6, 2.0], [1.6, 2.2, 2.6]]


def test_the_data_squeezes_no_rows_into_a_corner() -> None:
    for vendi, inside in ((2.7, True), (9.0, False)):
        [axis] = picture([*ROWS, row("data", "the data itself", 1.0, vendi)]).axes
        assert ("the data itself" in {line.get_label() for line in axis.lines}) == inside
        assert any(f"Vendi {vendi:.2f}" in text.get_text() for text in axis.texts) != inside
        assert axis.get_xlim()[0] < 1.6
        assert 2.6 < axis.get_xlim()[1] < 3


def test_one_legend_names_every_curve_below_its_group() -> None:
    figure = picture([*ROWS, *({**one, "model": "unet"} for one in ROWS)])
    [legend] = figure.legends
    texts = [text.get_text() for text in legend.get_texts() if text.get_text()]
    first = ["baseline", "the data itself", "front of ours", "front of rivals"]
    assert texts == [*first, "ours", "ours", "rivals", "CFG", "pink", "selection"]
    assert all(axis.get_legend() is None for axis in figure.axes)


def test_a_revision_is_of_one_models_weights(tmp_path: Path) -> None:
    for model in MODELS:
        assert all((HERE.root / name).is_file() for name in provenance._weights(model))
    files = {name for model in MODELS for name in provenance._weights(model)}
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"old")
    before = digests(tmp_path)
    (tmp_path / "demo/weights/diversity_demo_turbo.safetensors").write_bytes(b"new")
    after = digests(tmp_path)
    assert {key for key in before if before[key] != after[key]} == {key for key in before if key[1] == "turbo"}
    before = after
    (tmp_path / "demo/weights/diffusion_models/diversity_demo_mmdit.safetensors").write_bytes(b"new")
    after = digests(tmp_path)
    assert {key for key in before if before[key] != after[key]} == {
        *((role, "mmdit") for role in provenance.ROLES),
        ("teacher's rival", "distilled"),
    }


def digests(root: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """By role and model, of what images are made by, and of how they are judged as well."""
    provenance.making.cache_clear()
    provenance.revision.cache_clear()
    return {
        (role, model): (provenance.making(role, model, root), provenance.revision(role, model, root))
        for role in provenance.ROLES
        for model in MODELS
    }


def test_what_a_rival_does_not_import_is_no_part_of_its_revision(tmp_path: Path) -> None:
    for folder in ("core", "benchmarks", "demo"):
        shutil.copytree(HERE.root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("weights", "results"))
    before, rivals = digests(tmp_path), {"rival", "teacher's rival"}
    for changed, roles in (
        ("core/drivers/diversify.py", {"method"}),
        ("core/hooks/sampling.py", {"method", *rivals}),
        ("core/hooks/gradient_check.py", {"method", *rivals}),  # by way of another
        ("benchmarks/rivals/cads.py", {"method", *rivals}),
        ("benchmarks/world.py", set(provenance.ROLES)),
    ):
        with (tmp_path / changed).open("a") as file:
            file.write("# changed\n")
        after = digests(tmp_path)
        assert {role for role, model in before if before[role, model] != after[role, model]} == roles
        before = after


@pytest.mark.parametrize("name", [name for name, names in TOGETHER.items() if "pink noise" in names])
def test_what_stands_on_pink_noise_is_swept_as_pink_noise_alone(name: str) -> None:
    rows = grid("distilled")
    alone, under = ([row for row in rows if row.name == wanted] for wanted in ("pink noise", name))
    assert [row.settings["pink noise"] for row in under] == [row.settings["pink noise"] for row in alone]
    assert all(list(row.settings) == list(TOGETHER[name]) for row in under)
    [middle] = [row for row in quick(rows) if row.name == name]
    assert middle == under[1]


def test_a_zero_has_no_minus() -> None:
    assert [rounded(-0.004, 2), rounded(-0.004, 2, "+"), rounded(-0.006, 2, "+")] == ["0.00", "+0.00", "-0.01"]


def test_the_front_of_a_group_is_the_best_share_for_at_least_so_much_diversity() -> None:
    [axis] = picture([*ROWS, row("rival", "beaten", 0.92, 1.7)]).axes
    stairs: list[Any] = [patch.get_data() for patch in axis.patches if isinstance(patch, StepPatch)]
    ours, rivals = ([*map(float, one.values)] for one in stairs)
    assert ours == [0.95, 0.95, 0.85]  # the baseline, and what has more at the same share, then less
    assert rivals == [0.96, 0.96, 0.96, 0.96, 0.90]  # "selection" beats all that have less
    edges = [float(edge) for edge in stairs[0].edges]
    assert edges[1:] == [1.6, 2.2, 2.6]
    assert edges[0] == axis.get_xlim()[0]
