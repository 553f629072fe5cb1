"""Tables of the frontier for docs/measurements/frontier.md, from the committed rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from devtools.pages import table

from .frontier_figures import MOST_LESS, POINTS_LESS, summary
from .frontier_store import FRONTIER, load
from .intervals import beside, mean_interval

Entry = Mapping[str, Any]
PICTURE = "frontier.png"
BLOCK = "frontier: "
_WITH = "with "
MOST_SHOWN = 0.1  # good share below the baseline's, of rows on the front
# By name in a row: the column's head, and decimals. A model's table has those that all of its rows have.
_FIGURES = {
    "adherence": ("adherence", 3),
    "fidelity": ("fidelity", 3),
    "good_share": ("good share", 3),
    "vendi": ("Vendi", 2),
    "quality_vendi": ("quality-weighted Vendi", 2),
    "rare_share": ("rare share", 3),
    "mss_centred": ("centred MSS", 3),
}
_KINDS = {"baseline": "baseline", "rival": "rival", "method": "ours", "data": ""}


def block(name: str, path: Path = FRONTIER) -> str:
    """What stands in the page's block of that name: `summary`, `front`, `picture`, `made`, the rows of a model, or
    `with PART`, the rows of all models that have a rival or method of this name."""
    rows = load(path)
    if not rows:
        return "Not measured yet."
    models = list(dict.fromkeys(row["model"] for row in rows))
    if name == "summary":
        return gains([summary([row for row in rows if row["model"] == model]) for model in models])
    if name == "front":
        return front(rows)
    if name == "picture":
        return f"![Good share against Vendi, one panel a model]({PICTURE})"
    if name == "made":
        return made(rows)
    if name.startswith(_WITH):
        return with_part(rows, name.removeprefix(_WITH))
    own = [row for row in rows if row["model"] == name]
    return outline(own, name) if own else "Not measured yet."


def gains(found: Sequence[Mapping[str, Any]]) -> str:
    """Of every model a line for the baseline, the best free rival, the best rival of all (the same line if it is free)
    and ours.

    Quality-weighted Vendi is that of the best row whose good share is at most five points below the baseline's; more
    Vendi than the baseline is what a curve has where its good share is one point below.
    """
    quality, gain = (f"good images lost: {100 * less:g} of 100 at most" for less in (MOST_LESS, POINTS_LESS))
    head = ["model", "best of", f"quality-weighted Vendi ({quality})", "ours: more by", f"gain in Vendi ({gain})",
            "ours: times as much", "hypervolume"]  # fmt: skip
    body = []
    for one in found:
        good, vendi = one["baseline"]
        model = f"{one['model']}: {one['prompts']} prompts, {one['images']} images a row"
        start = [_score(one, "quality_baseline"), _score(one, "quality_difference_baseline", "+")]
        body.append([model, f"baseline, CFG {one['cfg']:g}", *start, f"good {good:.3f}, Vendi {vendi:.2f}", "", ""])
        free, rivals = (
            _cells(one[name], _score(one, f"quality_difference_{name}", "+"), _score(one, f"ratio_{name}"))
            for name in ("free", "rivals")
        )
        body += (
            [["", "free rivals, all rivals", *free]]
            if free == rivals
            else [["", "free rivals", *free], ["", "all rivals", *rivals]]
        )
        body.append(["", "ours", *_cells(one["ours"])])
    return table(head, body)


def _cells(group: Mapping[str, Any], more: str = "", times: str = "") -> list[str]:
    """Of a group its best row by quality-weighted Vendi, and its best curve. more, times: ours beside them."""
    quality = f"{group['quality_name']}: {_score(group, 'quality')}"
    return [quality, more, f"{group['name']}: {_score(group, 'gain', '+')}", times, f"{group['hypervolume']:.3f}"]


def _score(one: Mapping[str, Any], name: str, sign: str = "") -> str:
    return f"{rounded(one[name], 2, sign)} {_range(one[f'{name}_interval'], 2)}"


def _range(pair: Sequence[float], digits: int) -> str:
    return f"({rounded(pair[0], digits)} to {rounded(pair[1], digits)})"


def rounded(value: float, digits: int, sign: str = "") -> str:
    """A zero has no minus, whichever side it was rounded from."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def outline(rows: Sequence[Entry], model: str) -> str:
    """All rows of a model, each figure with the 95 % interval of its difference from the baseline, over the same
    prompts, or *unclear* where that holds 0. The greatest Vendi among rows with the baseline's quality less one point
    is bold. Times of another machine than the baseline's are left out."""
    base = next((row for row in rows if row["role"] == "baseline"), None)
    enough = base["good_share"] - POINTS_LESS - 1e-9 if base else 0.0
    able = [row["vendi"] for row in rows if row["role"] != "data" and row["good_share"] >= enough]
    figures = _common(rows)
    body = []
    for row in sorted(rows, key=_place):
        best = row["role"] != "data" and row["good_share"] >= enough and row["vendi"] == max(able)
        here = base is not None and row["role"] != "data" and row["machine"] == base["machine"]
        ratio = row["seconds"] / base["seconds"] if base and here else 0.0
        body.append(
            [
                _KINDS[row["role"]],
                row["name"],
                _settings(row),
                f"{row['cfg']:g}" if row["role"] != "data" else "",
                *(_figure(row, base, name, best and name == "vendi") for name in figures),
                f"{ratio:.1f}" if ratio else "",
            ]
        )
    head = ["kind", "curve", "settings", "CFG", *(_FIGURES[name][0] for name in figures), "time"]
    return f"{model}: {rows[0]['prompts']} prompts, {rows[0]['images']} images a row.\n\n{table(head, body)}"


def front(rows: Sequence[Entry]) -> str:
    """Of every model the rows that no other row beats in good images and in Vendi at once, where they have at most ten
    good images of 100 fewer than the baseline; of equal rows all. A negative loss is a gain.

    Raises ValueError for a model without a baseline."""
    head = ["model", "kind", "curve", "settings", "CFG", "good images lost of 100", "Vendi", "quality-weighted Vendi",
            "time"]  # fmt: skip
    body = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model and row["role"] != "data"]
        base = next((row for row in own if row["role"] == "baseline"), None)
        if base is None:
            raise ValueError(f"The frontier has no baseline for {model}.")
        label = model
        for row in sorted(own, key=lambda one: (one["vendi"], -one["good_share"])):
            lost = base["good_share"] - row["good_share"]
            if lost > MOST_SHOWN + 1e-9 or any(_beats(other, row) for other in own):
                continue
            kind = [label, _KINDS[row["role"]], row["name"], _settings(row), f"{row['cfg']:g}"]
            less = np.subtract(*(np.array(one["per_prompt"]["good_share"]) for one in (base, row)))
            share = "" if row is base else f" {beside(mean_interval(100 * less), 1)}"
            figures = [_figure(row, base, name, False) for name in ("vendi", "quality_vendi")]
            here = row["machine"] == base["machine"]
            time = f"{row['seconds'] / base['seconds']:.1f}" if here and base["seconds"] else ""
            body.append([*kind, f"{rounded(100 * lost, 1)}{share}", *figures, time])
            label = ""  # once is enough
    return table(head, body)


def _beats(other: Entry, row: Entry) -> bool:
    """Whether a row is as good as another in both, and better in one."""
    pairs = [(other[name], row[name]) for name in ("good_share", "vendi")]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def with_part(rows: Sequence[Entry], part: str) -> str:
    """Of every model the baseline and the rows with this rival or method, alone or beside others, as `outline` has
    them. Raises ValueError where no row has it."""
    figures, body = _common(rows), []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model and (row["role"] == "baseline" or part in row["settings"])]
        if all(row["role"] == "baseline" for row in own):
            continue
        base = next((row for row in own if row["role"] == "baseline"), None)
        for row in sorted(own, key=_place):
            cells = [_figure(row, base, name, False) for name in figures]
            body.append([model, row["name"], _settings(row), f"{row['cfg']:g}", f"{row['images']}", *cells])
            model = ""  # once is enough
    if not body:
        raise ValueError(f"The frontier has no row with {part!r}.")
    return table(["model", "curve", "settings", "CFG", "images", *(_FIGURES[name][0] for name in figures)], body)


def _common(rows: Sequence[Entry]) -> list[str]:
    """The figures that all rows have."""
    return [name for name in _FIGURES if all(name in row["per_prompt"] for row in rows)]


def _place(row: Entry) -> tuple[int, str, float, float]:
    """Sorts the rows of a model."""
    return list(_KINDS).index(row["role"]), row["name"], row["cfg"], row["vendi"]


def _settings(row: Entry) -> str:
    return "; ".join(f"{key} {value}" for one in row["settings"].values() for key, value in one.items())


def _figure(row: Entry, base: Entry | None, name: str, bold: bool) -> str:
    """A figure and how far it is from the baseline's, prompt by prompt."""
    _, digits = _FIGURES[name]
    text = f"{row[name]:.{digits}f}"
    text = f"**{text}**" if bold else text
    if base is None or row is base or row["role"] == "data":
        return text
    more = np.subtract(*(one["per_prompt"][name] for one in (row, base)))
    return f"{text} {beside(mean_interval(more), digits)}"


def made(rows: Sequence[Entry]) -> str:
    """On what, and by which versions; of each model the machines and revisions of its rows, in order."""
    versions = ", ".join(f"{name} {value}" for name, value in rows[0]["versions"].items())
    lines = [f"Made with {versions}:", ""]
    for model in dict.fromkeys(row["model"] for row in rows):
        found = [
            " and ".join(dict.fromkeys(row[name] for row in rows if row["model"] == model))
            for name in ("machine", "revision")
        ]
        lines.append(f"- {model}: {found[0]}; revision {found[1]}.")
    return "\n".join(lines)
