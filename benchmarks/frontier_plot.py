"""The picture of the frontier: good share against Vendi, one curve a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Entry = Mapping[str, Any]
STYLE = {"rival": {"linestyle": "--", "marker": "o"}, "method": {"linestyle": "-", "marker": "s"}}


def draw_frontier(rows: Sequence[Entry], target: Path) -> None:
    """One panel a model, side by side: every curve from the baseline through its rows, 95 % intervals, the data's own
    point. Nothing is drawn of no rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(row["model"] for row in rows))
    if not models:
        return
    figure, axes = pyplot.subplots(1, len(models), figsize=(7.5 * len(models), 8), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        _panel(axis, [row for row in rows if row["model"] == model], pyplot.get_cmap("tab20"))
        axis.set_title(f"{model}: {_count(rows, model)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(target, dpi=80, metadata={"Software": None})
    pyplot.close(figure)


def _panel(axis: Any, rows: Sequence[Entry], colours: Any) -> None:
    curves: dict[tuple[str, str], list[Entry]] = {}
    bases = [row for row in rows if row["role"] == "baseline"]
    for row in rows:
        if row["role"] in STYLE:
            curves.setdefault((row["role"], row["name"]), []).append(row)
    for k, ((role, name), own) in enumerate(sorted(curves.items(), key=lambda one: one[0], reverse=True)):
        points = sorted([*bases, *own], key=lambda row: row["vendi"])
        axis.errorbar(
            [row["vendi"] for row in points], [row["good_share"] for row in points],
            xerr=_bars(points, "vendi"), yerr=_bars(points, "good_share"),
            color=colours(k % 20), alpha=0.75, linewidth=1.2, elinewidth=0.4, markersize=4, label=name, **STYLE[role],
        )  # fmt: skip
    for row in bases:
        axis.plot(row["vendi"], row["good_share"], "k^", markersize=10, label=f"baseline, CFG {row['cfg']:g}")
    for row in rows:
        if row["role"] == "data":
            axis.plot(row["vendi"], row["good_share"], "k*", markersize=15, label=row["name"])
    axis.set_xlabel("Vendi score (how many different images)")
    axis.set_ylabel("good share (shows the prompt, and is unbroken)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="lower left")


def _bars(rows: Sequence[Entry], name: str) -> list[list[float]]:
    """Lengths of the error bars, below and above."""
    pairs = [(row[name], *row[f"{name}_interval"]) for row in rows]
    return [[max(value - low, 0) for value, low, _ in pairs], [max(high - value, 0) for value, _, high in pairs]]


def _count(rows: Sequence[Entry], model: str) -> str:
    first = next(row for row in rows if row["model"] == model)
    return f"{first['prompts']} prompts, {first['images']} images a row"
