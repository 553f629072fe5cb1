"""Scenes to words. A caption always names the object and leaves the other attributes out at random."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from .attributes import OBJECTS, VALUES, Scene

OPTIONAL = tuple(name for name in VALUES if name != "object")
_OPENINGS = ("", "", "a picture of ", "a drawing of ")
_PLACES = {
    "centre": ("in the centre", "in the middle"),
    "left": ("on the left", "at the left side"),
    "right": ("on the right", "at the right side"),
    "top": ("at the top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower part"),
}
_FILLERS = frozenset(["a", "an", "picture", "drawing", "of", "on", "in", "at", "the", "background", "front", "wall"])
_GROUNDS = ("on a {} background", "in front of a {} wall")


def caption(scene: Scene, stated: Collection[str], rng: np.random.Generator | None = None) -> str:
    """Words for the `stated` attributes of a scene, e.g. "a small red heart on the left".

    Without `rng` the first wording of each kind is used, so that prompts are written in one plain way.
    """
    unknown = set(stated) - set(OPTIONAL)
    if unknown:
        raise ValueError(f"stated has {', '.join(sorted(unknown))}; it may have {', '.join(OPTIONAL)}.")

    def choose(options: tuple[str, ...]) -> str:
        return options[0] if rng is None else options[rng.integers(len(options))]

    words = [getattr(scene, name) for name in ("size", "colour") if name in stated]
    noun = " ".join([*words, scene.object])
    article = "an" if noun[0] in "aeiou" else "a"
    text = f"{choose(_OPENINGS)}{article} {noun}"
    if "place" in stated:
        text += " " + choose(_PLACES[scene.place])
    if "background" in stated:
        text += " " + choose(_GROUNDS).format(scene.background)
    return text


def random_caption(scene: Scene, rng: np.random.Generator, keep: float = 0.5) -> str:
    """A training caption: each optional attribute is stated with probability `keep`, in a random wording."""
    stated = [name for name in OPTIONAL if rng.random() < keep]
    return caption(scene, stated, rng)


def stated_in(text: str) -> dict[str, str]:
    """The attributes that a caption states, `{"object": "heart", "place": "left"}`; of any wording that captions have.

    Raises ValueError for words that say nothing about a scene, and for two values of one attribute.
    """
    stated: dict[str, str] = {}

    def state(name: str, value: str) -> None:
        if name in stated and stated[name] != value:
            raise ValueError(f"text is {text!r}, which has two values of {name}: {stated[name]} and {value}.")
        stated[name] = value

    rest = " ".join(text.lower().replace(",", " ").split())
    for place, phrases in _PLACES.items():
        for phrase in phrases:
            if f" {phrase} " in f" {rest} ":
                state("place", place)
                rest = f" {rest} ".replace(f" {phrase} ", " ").strip()
    known = {value: name for name, values in VALUES.items() if name != "place" for value in values}
    for word in rest.split():
        if word in known:
            state(known[word], word)
        elif word not in _FILLERS:
            raise ValueError(
                f"text is {text!r}, where {word!r} means nothing here. Write it like "
                f'"a small red heart on the left on a navy background"; the objects are {", ".join(OBJECTS)}.'
            )
    return stated
