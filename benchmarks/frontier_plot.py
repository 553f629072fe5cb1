"""The picture of the frontier: share of good images against different images, one curve a method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Entry = Mapping[str, Any]
Look = Mapping[str, Any]
TITLES = {"distilled": "few-step model", "mmdit": "with CFG", "unet": "UNet", "turbo": "Z-Image kind",
          "turbo_base": "Z-Image kind, base model"}  # fmt: skip
GROUPS = {"method": "ours", "rival": "rivals"}
# Ours are filled and warm, rivals hollow and cold. The number of colours and that of markers have no common divisor, so
# that a pair comes again only after all others.
COLOURS = {"method": ("#d62728", "#ff9500", "#8e1b8c", "#8c4a2f", "#e0559a"),
           "rival": ("#1f77b4", "#2ca02c", "#17a2b8", "#6b7280", "#3f3fbf", "#8a8d00")}  # fmt: skip
MARKERS = {"method": "sD^ovP<>phd", "rival": "oD^svPX"}
BASELINE: Look = {"color": "black", "marker": "o", "markersize": 11, "markeredgecolor": "white", "zorder": 5}
# The front of each group: how good its images can be for at least so much diversity.
FRONTS = {"method": "#d62728", "rival": "#1f77b4"}
_FRONT: Look = {"linewidth": 3.5, "alpha": 0.4, "zorder": 2.5}
DATA: Look = {"color": "black", "marker": "*", "markersize": 14, "zorder": 4}
WIDTH, DPI, COLUMNS = 9.0, 160, 2  # inches, at 100 of a page's pixels each
_KEYS = 5  # columns of the legend
_ROOM = 0.25  # by this share of its length the data's point may widen an axis


def draw_frontier(rows: Sequence[Entry], target: Path) -> None:
    """Writes the picture. Nothing is drawn of no rows."""
    if not rows:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    picture(rows).savefig(target, dpi=DPI, bbox_inches="tight", metadata={"Software": None})


def picture(rows: Sequence[Entry]) -> Figure:
    """One panel a model, and one legend below: every row with its 95 % intervals, rows of one curve joined from the
    baseline on, the front of each group as stairs, and the data's own point."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = min(COLUMNS, len(models))
    lines = -(-len(models) // columns)
    figure = Figure(figsize=(WIDTH, 4 * lines + 1.4), layout="constrained")
    found = looks(rows)
    for k, model in enumerate(models):
        _panel(figure.add_subplot(lines, columns, k + 1), [row for row in rows if row["model"] == model], found)
    _legend(figure, found)
    return figure


def looks(rows: Sequence[Entry]) -> dict[tuple[str, str], Look]:
    """By role and name of a curve, how it is drawn: in all panels alike, and no two alike. Curves of many rows come
    first; later ones are smaller and lie above, as rivals do, so that none hides another at the same place."""
    found: dict[tuple[str, str], Look] = {}
    for role in GROUPS:
        sizes = Counter(row["name"] for row in rows if row["role"] == role)
        colours, markers = COLOURS[role], MARKERS[role]
        for k, name in enumerate(sorted(sizes, key=lambda one: (-sizes[one], one.lower()))):
            colour, shrunk = colours[k % len(colours)], 0.7 * (k % 4)
            own = (
                {"markersize": 9 - shrunk, "markeredgecolor": "white", "markeredgewidth": 0.6, "zorder": 3}
                if role == "method"
                else {"markersize": 7 - shrunk, "markerfacecolor": "none", "markeredgewidth": 1.3, "zorder": 4}
            )
            found[role, name] = {"color": colour, "marker": markers[k % len(markers)], **own}
    return found


def _panel(axis: Any, rows: Sequence[Entry], found: Mapping[tuple[str, str], Look]) -> None:
    bases, data = ([row for row in rows if row["role"] == role] for role in ("baseline", "data"))
    for (role, name), look in found.items():
        own = [row for row in rows if (row["role"], row["name"]) == (role, name)]
        _points(axis, own, look, name)
        if len(own) > 1:
            joined = sorted([*bases, *own], key=lambda row: row["vendi"])
            style = {"color": look["color"], "linewidth": 1.4, "zorder": 2}
            axis.plot(*_places(joined), linestyle="-" if role == "method" else "--", **style)
    for row in bases:
        for draw, figure in ((axis.axvline, "vendi"), (axis.axhline, "good_share")):
            draw(row[figure], color="black", linewidth=0.8, linestyle=":", alpha=0.6, zorder=1)
    _points(axis, bases, BASELINE, "baseline")
    axis.margins(0.05)
    axis.autoscale_view()
    for row in data:
        _data(axis, row)
    for role, colour in FRONTS.items():
        _front(axis, [*bases, *(row for row in rows if row["role"] == role)], colour)
    first = rows[0]
    axis.set_title(f"{TITLES.get(first['model'], first['model'])} ({first['model']})\n", fontsize=11, fontweight="bold")
    axis.text(0.5, 1.02, f"{first['prompts']} prompts, {first['images']} images a point", transform=axis.transAxes,
              ha="center", va="bottom", fontsize=8.5)  # fmt: skip
    axis.set_xlabel("different images (Vendi)", fontsize=9.5)
    axis.set_ylabel("share of good images", fontsize=9.5)
    axis.tick_params(labelsize=8.5)
    axis.grid(color="0.92")
    axis.set_axisbelow(True)


def _points(axis: Any, rows: Sequence[Entry], look: Look, name: str) -> None:
    bars = {"xerr": _bars(rows, "vendi"), "yerr": _bars(rows, "good_share")}
    axis.errorbar(*_places(rows), **bars, fmt="none", ecolor=look["color"], elinewidth=0.7, alpha=0.25, zorder=1)
    axis.plot(*_places(rows), label=name, linestyle="none", **look)


def _front(axis: Any, rows: Sequence[Entry], colour: str) -> None:
    """The greatest good share of rows with at least so much Vendi, over Vendi."""
    ordered = sorted(rows, key=lambda row: row["vendi"])
    shares = [max(row["good_share"] for row in ordered[k:]) for k in range(len(ordered))]
    left, _ = axis.get_xlim()
    axis.stairs(shares, [left, *(row["vendi"] for row in ordered)], baseline=None, color=colour, **_FRONT)
    axis.set_xlim(left, None)


def _data(axis: Any, row: Entry) -> None:
    """The data's own point, or, where that would squeeze all others into a corner, an arrow towards it."""
    place = row["vendi"], row["good_share"]
    limits = axis.get_xlim(), axis.get_ylim()
    if all(low <= value <= high + _ROOM * (high - low) for value, (low, high) in zip(place, limits, strict=True)):
        axis.plot(*place, label="the data itself", linestyle="none", **DATA)
        axis.margins(0.05)
        axis.autoscale_view()
        return
    axis.annotate(
        f"★ the data itself: Vendi {place[0]:.2f},\nshare {place[1]:.2f}", xy=(1, 0.94), xytext=(0.9, 0.94),
        xycoords="axes fraction", ha="right", va="center", fontsize=8.5, zorder=6,
        arrowprops={"arrowstyle": "-|>", "color": "black"}, bbox={"color": "white", "alpha": 0.8, "pad": 1},
    )  # fmt: skip


def _legend(figure: Figure, found: Mapping[tuple[str, str], Look]) -> None:
    """Below the panels: the baseline and the data, ours, the rivals, each group in columns of its own."""
    from matplotlib.lines import Line2D

    groups = [[("", {}), ("baseline", BASELINE), ("the data itself", DATA)]]
    stair = {"marker": "_", "markersize": 14, "markeredgewidth": _FRONT["linewidth"], "alpha": _FRONT["alpha"]}
    groups[0] += [(f"front of {GROUPS[role]}", {"color": colour, **stair}) for role, colour in FRONTS.items()]
    for role, title in GROUPS.items():
        groups.append([(title, {}), *((name, look) for (of, name), look in found.items() if of == role)])
    height = next(k for k in count(5) if sum(-(-len(group) // k) for group in groups) <= _KEYS)
    filled = [one for group in groups for one in [*group, *[("", {})] * (-len(group) % height)]]
    handles = [Line2D([], [], label=name, linestyle="none", **look) for name, look in filled]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=len(filled) // height, fontsize=8.5,
                           frameon=False, handletextpad=0.2, columnspacing=1.2)  # fmt: skip
    for text in legend.get_texts():
        text.set_fontweight("bold" if text.get_text() in GROUPS.values() else "normal")


def _places(rows: Sequence[Entry]) -> tuple[list[float], list[float]]:
    return [row["vendi"] for row in rows], [row["good_share"] for row in rows]


def _bars(rows: Sequence[Entry], name: str) -> list[list[float]]:
    """Lengths of the error bars, below and above."""
    pairs = [(row[name], *row[f"{name}_interval"]) for row in rows]
    return [[max(value - low, 0) for value, low, _ in pairs], [max(high - value, 0) for value, _, high in pairs]]
