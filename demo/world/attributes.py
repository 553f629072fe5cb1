"""What a scene is made of, and how likely each attribute is for each object.

Every distribution depends on the object and has a long tail: a heart is mostly red, sometimes pink, rarely anything
else. A prompt that names the object alone therefore has strong modes and a rare side that is known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

OBJECTS = ("heart", "star", "fish", "tree", "balloon", "house")
COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
SIZES = ("small", "medium", "large")
PLACES = ("centre", "left", "right", "top", "bottom")
BACKGROUNDS = ("white", "grey", "navy", "peach", "mint")

VALUES: dict[str, tuple[str, ...]] = {
    "object": OBJECTS,
    "colour": COLOURS,
    "size": SIZES,
    "place": PLACES,
    "background": BACKGROUNDS,
}

# Probabilities by rank; the order below says which value holds which rank.
_TAILS: dict[str, tuple[float, ...]] = {
    "colour": (0.58, 0.18, 0.08, 0.055, 0.04, 0.03, 0.02, 0.015),
    "size": (0.66, 0.26, 0.08),
    "place": (0.56, 0.20, 0.12, 0.07, 0.05),
    "background": (0.58, 0.20, 0.11, 0.07, 0.04),
}

_ORDER: dict[str, dict[str, str]] = {
    "heart": {
        "colour": "red pink purple orange yellow blue teal green",
        "size": "medium large small",
        "place": "centre top left right bottom",
        "background": "white peach grey mint navy",
    },
    "star": {
        "colour": "yellow orange pink red blue teal purple green",
        "size": "small medium large",
        "place": "top centre right left bottom",
        "background": "navy grey white peach mint",
    },
    "fish": {
        "colour": "blue teal orange yellow red green pink purple",
        "size": "medium small large",
        "place": "centre bottom left right top",
        "background": "mint white navy grey peach",
    },
    "tree": {
        "colour": "green yellow orange red teal pink purple blue",
        "size": "large medium small",
        "place": "bottom centre left right top",
        "background": "peach mint white grey navy",
    },
    "balloon": {
        "colour": "purple red pink blue yellow teal orange green",
        "size": "medium large small",
        "place": "top right left centre bottom",
        "background": "grey white mint peach navy",
    },
    "house": {
        "colour": "orange teal yellow red green purple blue pink",
        "size": "large medium small",
        "place": "centre left right bottom top",
        "background": "mint peach grey navy white",
    },
}


@dataclass(frozen=True)
class Scene:
    """One image's attributes, each a member of `VALUES` under its name."""

    object: str
    colour: str
    size: str
    place: str
    background: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in VALUES[field.name]:
                raise ValueError(f"{field.name} is {value!r}; it must be one of {', '.join(VALUES[field.name])}.")


def distribution(attribute: str, obj: str) -> dict[str, float]:
    """Probability of each value of `attribute` given the object (objects themselves are equally likely)."""
    if attribute not in VALUES:
        raise ValueError(f"attribute is {attribute!r}; it must be one of {', '.join(VALUES)}.")
    if attribute == "object":
        return {name: 1 / len(OBJECTS) for name in OBJECTS}
    if obj not in OBJECTS:
        raise ValueError(f"object is {obj!r}; it must be one of {', '.join(OBJECTS)}.")
    ranked = _ORDER[obj][attribute].split()
    return dict(zip(ranked, _TAILS[attribute], strict=True))


def rare_values(obj: str, below: float = 0.10) -> dict[str, frozenset[str]]:
    """For each attribute the values that fewer than `below` of such scenes have."""
    return {
        attribute: frozenset(value for value, p in distribution(attribute, obj).items() if p < below)
        for attribute in _TAILS
    }


def sample_scene(rng: np.random.Generator, obj: str | None = None) -> Scene:
    """One scene drawn from the world's own distribution, of any object or of a given one."""
    if obj is None:
        obj = OBJECTS[rng.integers(len(OBJECTS))]
    drawn = {}
    for attribute in _TAILS:
        table = distribution(attribute, obj)
        drawn[attribute] = list(table)[rng.choice(len(table), p=list(table.values()))]
    return Scene(object=obj, **drawn)


def sample_uniform_scene(rng: np.random.Generator) -> Scene:
    """One scene with every attribute equally likely: what a classifier must be trained and tested on."""
    return Scene(**{name: values[rng.integers(len(values))] for name, values in VALUES.items()})
