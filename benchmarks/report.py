"""Writes the tables of the docs and the README from the committed results: `python -m benchmarks.report`.

A table stands between `<!-- table: NAME -->` and `<!-- /table: NAME -->`, with the commands that make it; names are
those of `TABLES`. Blocks of `benchmarks.frontier_page` stand between `<!-- frontier: NAME -->` marks, those of
`benchmarks.families_page` between `<!-- families: NAME -->` marks. `python -m benchmarks.report FILE.json ...` prints
the tables of any results instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from devtools.pages import block_names, replace_block, table
from devtools.places import HERE

from . import families_page, frontier_page
from .frontier_plot import draw_frontier
from .frontier_store import load
from .intervals import beside
from .measure import difference
from .results import COMMITTED, read

FOLDER = HERE.root / "docs" / "measurements"
USE = HERE.root / "docs" / "use"
README = HERE.root / "README.md"
BASELINE = "baseline"
USUAL = ("adherence", "MSS", "centred MSS", "Vendi", "colours (eff.)", "rare share")
_KEYS = {
    "MSS": "mss",
    "centred MSS": "mss_centred",
    "Vendi": "vendi",
    "rare share": "rare_share",
    "good share": "good_share",
    "quality Vendi": "quality_vendi",
    "KID": "kid",
}
_SCORES = ("Vendi", "quality Vendi")  # of 1 and more
_BLOCK = "table: "


@dataclass(frozen=True)
class Table:
    """A table of one or more files of results; every row of a file, or those whose names fit a pattern of `rows`.

    columns: of measured images (see `USUAL`); None: the file's own columns, which are texts.
    ships: rows that are the settings of the nodes or workflows.
    against: the row that the others are compared with.
    """

    files: tuple[str, ...]
    columns: tuple[str, ...] | None = USUAL
    rows: tuple[str, ...] | None = None
    ships: tuple[str, ...] = ()
    against: str = BASELINE


_ABLATED = ("adherence", "fidelity", "MSS", "Vendi", "rare share", "KID")


def _ablation(method: str, against: str) -> Table:
    return Table(("ablations_mmdit_report_160",), _ABLATED, (BASELINE, f"{method}, *"), against=f"{method}, {against}")


_OVI = ("text cosine", "nearest of the bank", "neighbours that fit", "prompt's images", "other prompts")


def _ovi(constraint: str, weight: str, *columns: str) -> Table:
    rows = ("image", "text", "published, none", f"published, {constraint} *")
    against = f"published, {constraint} {weight}"
    return Table(("ovi_settings_published_report_16",), (*_OVI, *columns), rows, against=against)


_JUDGED = ("adherence", "fidelity", "good share", "Vendi", "quality Vendi", "colours (eff.)", "rare share",
           "centred MSS", "divergence", "KID")  # fmt: skip
_CHOSEN = ("adherence", "fidelity", "good share", "Vendi", "quality Vendi", "rare share", "centred MSS")
TABLES = {
    "ablations tpso": _ablation("TPSO", "lambda 0"),
    "ablations cno": _ablation("CNO", "published"),
    "ablations cosines": Table(("ablations_cosines",), None),
    "ablations minority": _ablation("Minority", "published"),
    "cfg tune": Table(("cfg_curve_unet_tune", "cfg_curve_mmdit_tune"), _JUDGED, against="CFG 2"),
    "cfg tune one": Table(("cfg_curve_distilled_tune", "cfg_curve_turbo_tune"), _JUDGED),
    "cno tune": Table(("cno_settings_distilled_tune_300", "cno_settings_turbo_tune_600"), _CHOSEN, ships=("shipped",)),
    "keep tune": Table(
        ("keep_settings_distilled_tune_300", "keep_settings_mmdit_tune_200", "keep_settings_unet_tune_200"),
        _CHOSEN,
        ships=("10 of 15",),
    ),
    "minority tune": Table(("minority_settings_distilled_tune_300",), _CHOSEN, ships=("shipped",)),
    "minority memory": Table(("minority_memory",), None),
    "rarest first chosen": Table(("rarest_first_unet_tune",), None, ships=("renoise 0.75",)),
    "rarest first": Table(("rarest_first_unet_report",), None, ships=("renoise 0.75",)),
    "tpso tune": Table(("tpso_settings_distilled_tune_300",), _CHOSEN, ships=("added 2, kappa 0.8, ratio 0.2",)),
    "tpso spread": Table(("tpso_spread",), None),
    "tpso cosines": Table(("tpso_cosines",), None),
    "tpso speed": Table(("tpso_speed",), None),
    "turbo cosines": Table(("turbo_cosines",), None),
    **{
        name: Table((name.replace(" ", "_"),), None)
        for name in ("cost", "cost growth", "cost idle", "cost prompts", "cost profile", "cost savings")
    },
    "diversify tune": Table(
        tuple(f"diversify_strength_{model}_tune_600" for model in ("distilled", "turbo", "mmdit", "unet")), _JUDGED
    ),
    "diversify one": Table(
        tuple(f"diversify_strength_{model}_report_300" for model in ("distilled", "turbo", "mmdit", "unet")),
        _JUDGED,
        ("one at a time*",),
        against="one at a time",
    ),
    "turbo base": Table(("turbo_turbo_base_tune_200",), _JUDGED, against="cfg 2.0"),
    "turbo tune": Table(("turbo_turbo_tune_120",), _JUDGED, ships=("shipped noise",)),
    "ovi settings": Table(
        ("ovi_settings_tune_16",),
        (*_OVI[:3], "other prompts", "Mahalanobis", "length"),
        (
            "image",
            "text",
            "none*token*",
            "none",
            "nearest neighbour *.*5",
            "nearest neighbour 0.7",
            "nearest neighbour 2.1",
            "mahalanobis *",
        ),
        ("nearest neighbour 0.35",),
        "nearest neighbour 0.35",
    ),
    "ovi images": Table(
        ("ovi_images_unclip_report_200",),
        _CHOSEN,
        ships=("nearest, weight 0.25, length matched",),
        against="text directly",
    ),
    "ovi tokens": Table(
        ("ovi_settings_published_report_16",),
        ("text cosine", "halfway", "nearest of the bank", "neighbours that fit"),
        ("published, none*",),
        against="published, none",
    ),
    "ovi mahalanobis": _ovi("mahalanobis", "0.009", "bank's mean"),
    "ovi nearest": _ovi("nearest neighbour", "0.5"),
}


def block(wanted: Table, folder: Path = COMMITTED) -> str:
    """The commands that make a table, and the table."""
    results = [read(folder / f"{file}.json") for file in wanted.files]
    commands = [f"`{one['command']}`" for one in results]
    if wanted.columns is None:
        rows = results[0]["rows"]
        body = [
            [_marked(first, row["row"], wanted), *others] for row in rows for first, *others in [row["cells"].values()]
        ]
        return "\n\n".join([*commands, table(list(rows[0]["cells"]), body)])
    head = ["model", "row", *wanted.columns]
    body = []
    for one in results:
        rows = {row["row"]: row for row in one["rows"]}
        model = next(iter(rows.values()))["model"]
        for row_name in _chosen(wanted, rows):
            cells = _cells(rows[row_name], rows.get(wanted.against), wanted.columns)
            body.append([model, _marked(row_name, row_name, wanted), *cells])
            model = ""  # once is enough
    return "\n\n".join(["  \n".join(commands), table(head, body)])


def _chosen(wanted: Table, rows: Mapping[str, Any]) -> list[str]:
    """Names of a table's rows, in the file's order. Raises ValueError for a row that the file should have."""
    chosen = wanted.rows or ("*",)
    needed = chosen if wanted.against == BASELINE else (*chosen, wanted.against)
    missing = [pattern for pattern in needed if not any(fnmatch(name, pattern) for name in rows)]
    if missing:
        raise ValueError(f"The results of {', '.join(wanted.files)} have no row {', '.join(missing)}; make it again.")
    return [name for name in rows if any(fnmatch(name, pattern) for pattern in chosen)]


def _marked(text: str, name: str, wanted: Table) -> str:
    if name not in wanted.ships:
        return text
    return f"**{text}**" if text == "shipped" else f"**{text}** (ships)"


def _cells(row: Mapping[str, Any], baseline: Mapping[str, Any] | None, columns: Sequence[str]) -> list[str]:
    """Texts of a row, beside the one that it is compared with.

    Where rows have their figures prompt by prompt, with the 95 % interval of the difference from that one, or
    `unclear` where that holds 0. Else adherence with its change in points, MSS and Vendi with theirs in percent.
    """
    other = None if row is baseline else baseline
    cells = []
    for column in columns:
        if column == "colours (eff.)":
            cells.append(f"{row['effective_number']['colour']:.2f}")
            continue
        key = _KEYS.get(column, column)
        digits = 2 if column in _SCORES else 3
        text = f"{row[key]:.{digits}f}"
        if other is not None and key in row.get("by_prompt", ()):
            text += f" {beside(difference(row, other, key)[1], digits)}"
        elif other is not None and "by_prompt" in row:
            pass  # taken over all images: no pairs to compare
        elif other is not None and column == "adherence":
            text += f" ({100 * (row[key] - other[key]):+.1f})"
        elif other is not None and column != "rare share":
            text += f" ({100 * (row[key] / other[key] - 1):+.0f} %)"
        cells.append(text)
    return cells


def written(page: str, folder: Path = COMMITTED) -> str:
    """The page with its tables as the results have them."""
    for name in block_names(page):
        if name.startswith(frontier_page.BLOCK):
            found = frontier_page.block(name.removeprefix(frontier_page.BLOCK), folder / frontier_page.FRONTIER.name)
            page = replace_block(page, name, found)
        elif name.startswith(families_page.BLOCK):
            page = replace_block(page, name, families_page.block(name.removeprefix(families_page.BLOCK), folder))
        elif name.startswith(_BLOCK):
            page = replace_block(page, name, block(TABLES[name.removeprefix(_BLOCK)], folder))
    return page


def outdated() -> dict[Path, str]:
    """Pages that are not what the committed results give, and what they should say."""
    paths = (README, *sorted(FOLDER.glob("*.md")), *sorted(USE.glob("*.md")))
    pages = {path: path.read_text(encoding="utf-8") for path in paths}
    return {path: new for path, old in pages.items() if (new := written(old)) != old}


def any_table(path: Path) -> str:
    """The table of a file of results."""
    first = read(path)["rows"][0]
    columns = None if "cells" in first else USUAL if "vendi" in first else tuple(first["by_prompt"])
    return block(Table((path.stem,), columns), path.parent)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="print these results as tables instead")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page is not up to date")
    options = parser.parse_args(arguments)
    try:
        for path in options.files:
            print(any_table(path), "\n")
        if options.files:
            return 0
        found = outdated()
        rows = load(frontier_page.FRONTIER)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if rows and not options.check:
        draw_frontier(rows, FOLDER / frontier_page.PICTURE)
    for path, text in found.items():
        print(path.relative_to(HERE.root))
        if not options.check:
            path.write_text(text, encoding="utf-8")
    return 1 if options.check and found else 0


if __name__ == "__main__":
    sys.exit(main())
