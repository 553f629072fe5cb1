"""The rows of the frontier: what is sampled, by name, as data.

A row is a model, a CFG and a list of parts, each a rival or a method with its settings. Rows of one `name` make one
curve: the same parts at other CFGs, or at other values of the main knob. The settings were chosen on the prompts for
choosing by `python -m benchmarks.search`, which keeps them in `benchmarks/results/frontier_settings.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .frontier_extent import wanted
from .job import Change
from .ours import BESIDE, OURS
from .results import COMMITTED
from .rivals import GUIDED, RIVALS, Rival

PARTS: dict[str, Rival] = {**RIVALS, **OURS, **BESIDE}
CHOSEN = COMMITTED / "frontier_settings.json"
CFGS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0)
# Before a search has chosen: by quality-weighted Vendi on earlier prompts.
BEST_CFG = {"unet": 2.0, "mmdit": 2.0, "distilled": 1.0, "turbo": 1.0, "turbo_base": 2.0}
MODELS = tuple(BEST_CFG)
WITH_CLIP = ("unet", "mmdit", "distilled")
SWEEP = (0.5, 1.0, 2.0)  # times the chosen value of the main knob
Parts = tuple[tuple[str, Mapping[str, Any]], ...]


@dataclass(frozen=True)
class Row:
    """role: baseline, rival or method. name: of the curve. parts: names and settings, applied in this order. factor: of
    the main knob, as a multiple of the chosen value."""

    model: str
    role: str
    name: str
    cfg: float
    parts: Parts = ()
    free: bool = True
    factor: float = 1.0

    @property
    def settings(self) -> dict[str, Any]:
        return {name: dict(values) for name, values in self.parts}

    @property
    def key(self) -> str:
        """Tells a row from all others, and is the same for the same row."""
        return f"{self.model}, {self.name}, CFG {self.cfg:g}, {json.dumps(self.settings, sort_keys=True)}"

    def changes(self) -> list[Change]:
        return [PARTS[name].make(**values) for name, values in self.parts]


def chosen(model: str, name: str, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings that a search chose for a part; before there was one, those in the middle of its grid."""
    found = _chosen() if settings is None else settings
    own = found.get(model, {}).get(name)
    grid = PARTS[name].grid
    return dict(own) if own is not None else dict(grid[len(grid) // 2])


def best_cfg(model: str) -> float:
    return float(_chosen().get(model, {}).get("CFG", {}).get("cfg", BEST_CFG[model]))


def _chosen() -> dict[str, Any]:
    return json.loads(CHOSEN.read_text("utf-8"))["models"] if CHOSEN.exists() else {}


# Ours, by role: what the papers publish, and what we recommend (the nodes' defaults).
PUBLISHED: dict[str, Parts] = {
    "TPSO, published": (("Diverse Prompts", {"mode": "published", "ratio": 0.4, "negative": True}),
                        ("shared noise", {})),
    "CNO, published": (("Diverse Noise", {"mode": "published"}),),
    "MinorityPrompt, published": (("Minority Prompt", {"mode": "published"}),),
}  # fmt: skip
RECOMMENDED: dict[str, Parts] = {
    "Diverse Prompts, shipped": (("Diverse Prompts", {}),),
    "Diverse Noise, shipped": (("Diverse Noise", {}),),
    "Minority Prompt, shipped": (("Minority Prompt", {}),),
}
# Names of parts: ours as they ship, rivals and wide noise at their chosen settings.
TOGETHER: dict[str, Sequence[str]] = {
    "Prompts + Noise": ("Diverse Prompts", "Diverse Noise"),
    "Minority + Noise": ("Minority Prompt", "Diverse Noise"),
    "Prompts + pink": ("pink noise", "Diverse Prompts"),
    "Noise on pink": ("pink noise", "Diverse Noise"),
    "Noise on wide": ("wide noise", "Diverse Noise"),
    "Minority + pink": ("pink noise", "Minority Prompt"),
    "all together": ("pink noise", "Diverse Prompts", "Diverse Noise"),
    "the best kept": ("Keep the Best",),
    "pink, the best kept": ("Keep the Best", "pink noise"),
    "wide, the best kept": ("Keep the Best", "wide noise"),
    "Noise, the best kept": ("Keep the Best", "Diverse Noise"),
    "Noise on pink, the best kept": ("Keep the Best", "pink noise", "Diverse Noise"),
    "Diversify, the best kept": ("Keep the Best", "Diversify"),
}
# Parts whose main knob the rows of these are taken over.
SWEPT: dict[str, Rival] = {**RIVALS, "Diversify": BESIDE["Diversify"], "wide noise": OURS["wide noise"]}


def together(model: str, names: Sequence[str]) -> Parts:
    """Parts by name: ours as they ship, rivals and wide noise, which is off as it ships, as they were chosen."""
    ships: dict[str, Mapping[str, Any]] = {name: {} for name in OURS if name not in SWEPT}
    ships |= {"Diversify": {"strength": 0.5}, "Keep the Best": {"times": 1.5}}
    return tuple((name, ships[name] if name in ships else chosen(model, name)) for name in names)


def curve(model: str, role: str, name: str, parts: Parts, knob: str, cfg: float, free: bool = False) -> Iterator[Row]:
    """The row of these parts, and its neighbours at half and twice the main knob of the last part."""
    *others, (last, settings) = parts
    for factor in SWEEP if knob in settings else (1.0,):
        value = settings.get(knob)
        own = dict(settings)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and factor != 1:
            own[knob] = swept(knob, value, factor)
        yield Row(model, role, name, cfg, (*others, (last, own)), free, factor)


def over_knob(row: Row) -> list[Row]:
    """Rows over the main knob of the first part that is swept, as of that part alone; without one, the row itself."""
    place = next((k for k, (name, _) in enumerate(row.parts) if name in SWEPT), None)
    if place is None:
        return [row]
    before, own, after = row.parts[:place], row.parts[place], row.parts[place + 1 :]
    curved = curve(row.model, row.role, row.name, (own,), SWEPT[own[0]].knob, row.cfg, row.free)
    return [replace(one, parts=(*before, *one.parts, *after)) for one in curved]


def more_dropped(row: Row) -> Row:
    """A row of the best kept, with three times as many dropped."""
    parts = tuple((name, {**own, "drop": 0.15} if name == "Keep the Best" else own) for name, own in row.parts)
    return replace(row, name=row.name.replace("the best kept", "more dropped"), parts=parts)


def swept(knob: str, value: float, factor: float) -> float:
    """A knob at half or twice its effect. A cosine is halved by the angle's square, of a factor what it has above 1,
    whole numbers stay whole."""
    if knob == "kappa":
        return round(max(1 - (1 - value) * factor, 0.05), 4)
    if knob == "factor":
        return round(1 + (value - 1) * factor, 6)
    if isinstance(value, int):
        return max(1, round(value * factor))
    return round(value * factor, 6)


def rows_of(model: str, full: bool = True) -> list[Row]:
    """The rows of a model that are reported (see `frontier_extent`); without `full` one row a curve."""
    rows = [row for row in grid(model) if wanted(row)]
    return rows if full else quick(rows)


def grid(model: str) -> list[Row]:
    """All rows that a model can have. Raises ValueError for an unknown one."""
    if model not in MODELS:
        raise ValueError(f"model is {model!r}; it must be one of {', '.join(MODELS)}.")
    cfg, found = best_cfg(model), []
    guided = model in GUIDED
    found.append(Row(model, "baseline", "CFG", cfg))
    if guided:
        found += [Row(model, "rival", "CFG", other) for other in CFGS if other != cfg]
    for name, rival in RIVALS.items():
        if model in rival.models:
            parts: Parts = ((name, chosen(model, name)),)
            found += curve(model, "rival", name, parts, rival.knob, cfg, rival.free)
    for name, parts in {**RECOMMENDED, **PUBLISHED}.items():
        if name == "TPSO, published" and model not in WITH_CLIP:
            continue  # neither the paper nor its code has a rule for language models
        found.append(Row(model, "method", name, cfg, parts, False))
    found += curve(model, "method", "Diversify", (("Diversify", {"strength": 0.5}),), BESIDE["Diversify"].knob, cfg)
    for name, ours in OURS.items():
        if model in ours.models:
            found += curve(model, "method", name, ((name, chosen(model, name)),), ours.knob, cfg)
    for name, names in TOGETHER.items():
        found += over_knob(Row(model, "method", name, cfg, together(model, names), False))
    # One thing changed in what ships.
    extra: dict[str, Parts] = {
        "N of 2N, then Noise": (("N of 2N", {"times": 2}), ("Diverse Noise", {})),
        "Noise, 10 iterations": (("Diverse Noise", {"iterations": 10}),),
        "Noise, two cells": (("Diverse Noise", {"cells": 2}),),
        "Noise, fine detail too": (("Diverse Noise", {"cells": 0, "strength": 0.25}),),
        "Minority, one step": (("Minority Prompt", {"window": [0.0, 0.01], "keep_until": 0.0}),),
        "Prompts, less alike": (("Diverse Prompts", {"kappa": 0.35}),),
        "Noise, stronger": (("Diverse Noise", {"strength": 1.0}),),
    }
    if guided:
        extra["Noise, estimates at CFG 1"] = (("Diverse Noise", {"cfg": 1.0}),)
        over = ("Diversify", "Diverse Prompts", "Diverse Noise", "Minority Prompt", "Prompts + Noise", "the best kept")
        for name in over:
            parts = together(model, TOGETHER.get(name, (name,)))
            found += [Row(model, "method", f"{name}, over CFG", other, parts, False) for other in CFGS if other != cfg]
    found += [Row(model, "method", name, cfg, parts, False) for name, parts in extra.items()]
    found += [more_dropped(row) for row in found if "Keep the Best" in row.settings]
    unique: dict[str, Row] = {}
    for row in found:
        if row.factor == 1 or row.key not in unique:
            unique[row.key] = row
    return list(unique.values())


def quick(rows: Sequence[Row]) -> list[Row]:
    """Of every curve the row at the chosen settings; where it has none, or one at each of several CFGs, that in the
    middle."""
    curves: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        curves.setdefault((row.role, row.name), []).append(row)
    chosen = ([row for row in found if row.factor == 1] or found for found in curves.values())
    return [found[len(found) // 2] for found in chosen]
