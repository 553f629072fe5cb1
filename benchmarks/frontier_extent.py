"""How much of the grid of rows `python dev.py bench --full` makes; `--every` makes all of it.

A rival has the row at its chosen settings, and some have another one. Ours are measured as published, as they ship, and
where one thing more may answer a question: another value of the main knob, another CFG, two methods together. The whole
grid has three times as many rows. Most of them lie between two that are there, or have Minority Prompt beside something
else, and that takes several times as long as the other methods and goes no further by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .frontier_rows import Row

REPORTED = ("distilled", "turbo", "mmdit", "unet")

_ONE = (1.0,)
# Of every model: curves of ours, and the values of the main knob they have rows for, as multiples of the chosen one.
_COMMON: dict[str, tuple[float, ...]] = {
    "Diverse Prompts, shipped": _ONE,
    "Diverse Noise, shipped": _ONE,
    "Minority Prompt, shipped": _ONE,
    "CNO, published": _ONE,
    "Diversify": (1.0, 2.0),
    "wide noise": (0.5, 1.0),
    "Prompts + Noise": _ONE,
}
# Of one model, in place of these or beside them. Rivals are here, too: where the chosen value loses much, for a value
# nearer to one good image of 100; where it gains little, for one that goes further. Of curves "over CFG" the numbers
# are CFGs.
_OWN: dict[str, dict[str, tuple[float, ...]]] = {
    "distilled": {
        "TPSO, published": _ONE,
        "pink noise": (0.5, 1.0),
        "particle guidance": (0.5, 1.0),
        "Prompts, less alike": _ONE,
        "Noise, stronger": _ONE,
        # As its search chose.
        "Diverse Prompts": _ONE,
        "Diverse Noise": _ONE,
        "Minority Prompt": _ONE,
        "MinorityPrompt, published": _ONE,
        "Prompts + pink": _ONE,
        "Noise on pink": (0.5, 1.0),
        "Noise on wide": (0.5, 1.0),
        "all together": _ONE,
        "the best kept": _ONE,
        "Diversify, the best kept": (2.0,),
        "Diversify, more dropped": (2.0,),
        "pink, more dropped": (0.5, 1.0),
        "wide, more dropped": (0.5, 1.0),
        "Noise on pink, the best kept": (0.5, 1.0),
        "Noise on pink, more dropped": (0.5, 1.0),
        "N of 2N, then Noise": _ONE,
        "Noise, 10 iterations": _ONE,
    },
    "turbo": {
        "pink noise": (1.0, 2.0),
        "Prompts, less alike": _ONE,
        "Noise, stronger": _ONE,
        "Diverse Noise": _ONE,
        "Diverse Noise, low frequencies": (0.5, 1.0),
        "MinorityPrompt, published": _ONE,
        "Noise, two cells": _ONE,
        "Noise on pink": (0.5, 1.0, 2.0),
        "Noise on wide": (0.5, 1.0),
        "all together": _ONE,
        "the best kept": _ONE,
        "Noise, the best kept": _ONE,
        "Diversify, more dropped": (2.0,),
        "wide, more dropped": (0.5,),
        "Noise on pink, more dropped": _ONE,
    },
    "mmdit": {
        "TPSO, published": _ONE,
        "pink noise": (0.5, 1.0),
        "conditioning variation": (0.5, 1.0),
        "Prompts, less alike": _ONE,
        "Noise, stronger": _ONE,
        "Diverse Noise, low frequencies": _ONE,
        "Diverse Noise, hinge": _ONE,
        "Noise, fine detail too": _ONE,
        "Noise, estimates at CFG 1": _ONE,
        "Minority, one step": _ONE,
        "Prompts + pink": (0.5,),
        "Noise on pink": (0.5,),
        "Noise on wide": (0.5,),
        "all together": (0.5,),
        "Diversify, the best kept": (1.0, 2.0),
        "Diversify, more dropped": (1.0, 2.0),
        "Diversify, over CFG": (1.0, 1.5),
        "Diverse Noise, over CFG": (1.0, 1.5),
        "Diverse Prompts, over CFG": (1.5,),
    },
    "unet": {
        "TPSO, published": _ONE,
        "Noise, two cells": _ONE,
        "Noise on wide": _ONE,
        "all together": _ONE,
        "Diversify, the best kept": (2.0,),
        "Diversify, more dropped": (2.0,),
        "Diversify, over CFG": (1.0, 1.5),
        "Diverse Noise, over CFG": (1.0, 1.5),
        "more dropped, over CFG": (1.0,),
    },
}


def values(model: str) -> dict[str, tuple[float, ...]]:
    """Of each curve with rows to report the multiples of the main knob's chosen value, or the CFGs; of a rival's only
    where they are others than the chosen value alone."""
    return _COMMON | _OWN.get(model, {})


def wanted(row: Row) -> bool:
    """Whether a row of the grid is one of those that are reported."""
    if row.role == "baseline" or row.name == "CFG":
        return True
    own = values(row.model).get(row.name, _ONE if row.role == "rival" else ())
    return (row.cfg if row.name.endswith(", over CFG") else row.factor) in own
