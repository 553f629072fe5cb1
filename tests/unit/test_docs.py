"""Links of the documentation lead somewhere, and its tables are those of the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import families_page, report
from benchmarks.results import COMMITTED
from devtools.pages import replace_block, table, without_blocks
from devtools.places import HERE

ROOT = HERE.root
PAGES = [ROOT / "README.md", ROOT / "demo" / "MODEL_CARD.md", *sorted((ROOT / "docs").rglob("*.md"))]
HELP = sorted((ROOT / "web" / "docs").glob("*.md"))


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            dead.append(link)
    assert not dead


def test_paths_that_help_pages_and_comments_name_are_there() -> None:
    sources = [*HELP, *(path for folder in ("core", "nodes") for path in (ROOT / folder).rglob("*.py"))]
    named = {(path, name) for path in sources for name in re.findall(r"\bdocs/[\w/]+\.md", path.read_text("utf-8"))}
    assert not [(path.name, name) for path, name in named if not (ROOT / name).exists()]


def test_tables_are_those_of_the_results() -> None:
    assert not report.outdated(), "run `python -m benchmarks.report`"


def test_every_result_has_a_table_and_its_provenance() -> None:
    shown = {file for one in report.TABLES.values() for file in one.files}
    shown |= set(families_page.FILES)
    found = {path.stem: path for path in COMMITTED.glob("*.json")}
    assert found.keys() - {"frontier", "frontier_settings", *families_page.OFFICIAL} == shown
    for path in (path for name, path in found.items() if name != "frontier"):
        assert all("commit" in row or "from" in row for row in json.loads(path.read_text("utf-8"))["rows"]), path.name


def test_a_row_shows_its_change_from_the_baseline(tmp_path: Path) -> None:
    rows = [
        {"row": name, "model": "unet", "adherence": adherence, "mss": mss, "vendi": vendi, "rare_share": 0.1}
        for name, adherence, mss, vendi in (("baseline", 0.95, 0.8, 2.0), ("shipped", 0.94, 0.6, 3.0))
    ]
    (tmp_path / "some.json").write_text(json.dumps({"command": "make it", "rows": rows}))
    text = report.block(report.Table(("some",), ("adherence", "MSS", "Vendi", "rare share")), tmp_path)
    assert text.startswith("`make it`\n\n")
    assert text.splitlines()[-2:] == [
        "| unet | baseline | 0.950 | 0.800 | 2.00 | 0.100 |",
        "|  | shipped | 0.940 (-1.0) | 0.600 (-25 %) | 3.00 (+50 %) | 0.100 |",
    ]


def test_a_difference_has_its_interval_and_none_is_claimed_that_holds_zero(tmp_path: Path) -> None:
    def row(name: str, gain: float, vendi: list[float]) -> dict:
        adherence = [0.5 + gain * (k % 2 - 0.45) for k in range(60)]
        mean = sum(adherence) / 60
        by_prompt = {"adherence": adherence, "vendi": vendi}
        return {"row": name, "model": "unet", "adherence": mean, "vendi": vendi[0], "kid": 0.5, "by_prompt": by_prompt}

    rows = [row("baseline", 0, [1.5] * 60), row("better", 0.1, [2.0] * 60)]
    (tmp_path / "some.json").write_text(json.dumps({"command": "make it", "rows": rows}))
    text = report.block(report.Table(("some",), ("adherence", "Vendi", "KID")), tmp_path)
    assert text.splitlines()[-1] == "|  | better | 0.505 (unclear) | 2.00 (+0.50 to +0.50) | 0.500 |"


def test_a_table_may_have_some_rows_and_compare_with_another_than_the_baseline(tmp_path: Path) -> None:
    values = {"baseline": 1.0, "A, published": 2.0, "A, other": 3.0, "B, published": 4.0}
    rows = [{"row": name, "model": "unet", "vendi": value} for name, value in values.items()]
    (tmp_path / "some.json").write_text(json.dumps({"command": "make it", "rows": rows}))
    text = report.block(report.Table(("some",), ("Vendi",), ("baseline", "A, *"), against="A, published"), tmp_path)
    assert text.splitlines()[-3:] == [
        "| unet | baseline | 1.00 (-50 %) |",
        "|  | A, published | 2.00 |",
        "|  | A, other | 3.00 (+50 %) |",
    ]


@pytest.mark.parametrize("wanted", [{"rows": ("C, *",)}, {"against": "C"}])
def test_a_table_without_a_row_that_it_should_have_is_refused(wanted: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"row": "baseline", "model": "unet", "vendi": 1.0}]
    (tmp_path / "some.json").write_text(json.dumps({"command": "make it", "rows": rows}))
    with pytest.raises(ValueError, match=r"results of some have no row C"):
        report.block(report.Table(("some",), ("Vendi",), **wanted), tmp_path)


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text('{"command": "make it", "rows": [{"a": 1}]}')
    with pytest.raises(ValueError, match=r"some\.json is damaged .*; restore it"):
        report.block(report.Table(("some",)), tmp_path)


def test_blocks_are_replaced_and_nothing_else() -> None:
    page = "before\n\n<!-- a -->\nold\n<!-- /a -->\nafter\n"
    new = replace_block(page, "a", table(["x"], [["1 | 2\n3"]]))
    assert new == "before\n\n<!-- a -->\n\n| x |\n| --- |\n| 1 \\| 2 3 |\n\n<!-- /a -->\nafter\n"
    assert replace_block(new, "a", "old") == replace_block(page, "a", "old")
    assert without_blocks(new) == "before\n\n\nafter\n"
    with pytest.raises(ValueError, match="one block"):
        replace_block(page, "b", "")
