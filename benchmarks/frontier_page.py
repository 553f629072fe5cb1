"""Tables of the frontier for docs/measurements/frontier.md, from the committed rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from devtools.pages import table

from .frontier_figures import POINTS_LESS, summary
from .frontier_store import FRONTIER, load

Entry = Mapping[str, Any]
PICTURE = "frontier.png"
BLOCK = "frontier: "
_HEAD = ["kind", "curve", "settings", "CFG", "adherence", "fidelity", "good share", "Vendi", "quality-weighted Vendi",
         "time"]  # fmt: skip
_KINDS = {"baseline": "baseline", "rival": "rival", "method": "ours", "data": ""}


def block(name: str, path: Path = FRONTIER) -> str:
    """What stands in the page's block of that name: `summary`, `picture`, `made`, or the rows of a model."""
    rows = load(path)
    if not rows:
        return "Not measured yet."
    models = list(dict.fromkeys(row["model"] for row in rows))
    if name == "summary":
        return gains([summary([row for row in rows if row["model"] == model]) for model in models])
    if name == "picture":
        return f"![Good share against Vendi, one panel a model]({PICTURE})"
    if name == "made":
        return made(rows)
    own = [row for row in rows if row["model"] == name]
    return outline(own, name) if own else "Not measured yet."


def gains(found: Sequence[Mapping[str, Any]]) -> str:
    """One line a model: gains in Vendi at the baseline's quality less one point."""
    head = ["model", "prompts, images a row", "baseline", "best free rival", "best rival", "ours",
            "ours / free rival", "ours / any rival", "hypervolume: free, any rival, ours"]  # fmt: skip
    body = []
    for one in found:
        good, vendi = one["baseline"]
        volumes = ", ".join(f"{one[name]['hypervolume']:.3f}" for name in ("free", "rivals", "ours"))
        body.append(
            [
                one["model"],
                f"{one['prompts']}, {one['images']}",
                f"CFG {one['cfg']:g}: good {good:.3f}, Vendi {vendi:.2f}",
                *(_gain(one[name]) for name in ("free", "rivals", "ours")),
                *(
                    f"{one[f'ratio_{name}']:.2f} {_range(one[f'ratio_{name}_interval'], 2)}"
                    for name in ("free", "rivals")
                ),
                volumes,
            ]
        )
    return table(head, body)


def _gain(one: Mapping[str, Any]) -> str:
    return f"{one['name']}: {one['gain']:+.2f} {_range(one['gain_interval'], 2)}"


def _ratio(one: Mapping[str, Any], name: str) -> str:
    return f"{one[f'ratio_{name}']:.2f} {_range(one[f'ratio_{name}_interval'], 2)}"


def _range(pair: Sequence[float], digits: int) -> str:
    return f"({pair[0]:.{digits}f} to {pair[1]:.{digits}f})"


def outline(rows: Sequence[Entry], model: str) -> str:
    """All rows of a model; the greatest Vendi among those with the baseline's quality less one point is bold."""
    base = next((row for row in rows if row["role"] == "baseline"), None)
    enough = base["good_share"] - POINTS_LESS - 1e-9 if base else 0.0
    able = [row["vendi"] for row in rows if row["role"] != "data" and row["good_share"] >= enough]
    order = list(_KINDS)
    body = []
    for row in sorted(rows, key=lambda row: (order.index(row["role"]), row["name"], row["cfg"], row["vendi"])):
        best = row["role"] != "data" and able and row["vendi"] == max(able) and row["good_share"] >= enough
        vendi = f"**{row['vendi']:.2f}**" if best else f"{row['vendi']:.2f}"
        ratio = row["seconds"] / base["seconds"] if base and row["role"] != "data" else 0.0
        settings = "; ".join(f"{key} {value}" for one in row["settings"].values() for key, value in one.items())
        body.append(
            [
                _KINDS[row["role"]],
                row["name"],
                settings,
                f"{row['cfg']:g}" if row["role"] != "data" else "",
                f"{row['adherence']:.3f}",
                f"{row['fidelity']:.3f}",
                f"{row['good_share']:.3f} {_range(row['good_share_interval'], 3)}",
                f"{vendi} {_range(row['vendi_interval'], 2)}",
                f"{row['quality_vendi']:.2f} {_range(row['quality_vendi_interval'], 2)}",
                f"{ratio:.1f}" if ratio else "",
            ]
        )
    return f"{model}: {rows[0]['prompts']} prompts, {rows[0]['images']} images a row.\n\n{table(_HEAD, body)}"


def made(rows: Sequence[Entry]) -> str:
    """On what, and by which versions."""
    first = rows[0]
    versions = ", ".join(f"{name} {value}" for name, value in first["versions"].items())
    found = dict.fromkeys((row["model"], row["revision"]) for row in rows)  # in order, each once
    own = ", ".join(
        f"{' and '.join(revision for name, revision in found if name == model)} ({model})"
        for model in dict.fromkeys(model for model, _ in found)
    )
    return f"Made on {first['machine']}; {versions}; revision {own}."
