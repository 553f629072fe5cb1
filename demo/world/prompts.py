"""The prompts that results are reported on, and, apart from them, those that settings may be chosen on.

The two kinds share no text: whatever is tuned (guidance, training length, a method's strength) is tuned on
`TUNE_PROMPTS` and the other sets of that name, whatever is published is measured on `REPORT_PROMPTS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .attributes import OBJECTS, VALUES, Scene
from .captions import caption


@dataclass(frozen=True)
class Prompt:
    """A text and the attributes that an image must have to satisfy it."""

    text: str
    stated: dict[str, str]

    @property
    def object(self) -> str:
        return self.stated["object"]

    @property
    def unstated(self) -> tuple[str, ...]:
        return tuple(name for name in VALUES if name not in self.stated)


def make_prompt(obj: str, **stated: str) -> Prompt:
    """A prompt for an object with the given attributes, in the world's plainest wording."""
    filler = {name: values[0] for name, values in VALUES.items()}
    text = caption(Scene(**{**filler, "object": obj, **stated}), tuple(stated))
    return Prompt(text, {"object": obj, **stated})


# Every object once by itself, then prompts that state one or two attributes.
REPORT_PROMPTS: tuple[Prompt, ...] = (
    *(make_prompt(obj) for obj in OBJECTS),
    make_prompt("heart", size="small", background="mint"),
    make_prompt("star", place="left"),
    make_prompt("tree", colour="red"),
    make_prompt("house", size="medium", place="right"),
)

# Prompts that leave all but the object open, in another wording than those of `REPORT_PROMPTS`.
TUNE_OBJECTS: tuple[Prompt, ...] = tuple(
    Prompt(f"a drawing of {make_prompt(obj).text}", {"object": obj}) for obj in OBJECTS
)

# Prompts that state two attributes.
TUNE_PAIRS: tuple[Prompt, ...] = (
    make_prompt("star", size="small", background="peach"),
    make_prompt("tree", size="medium", place="left"),
    make_prompt("fish", size="large", place="bottom"),
    make_prompt("heart", colour="orange", place="top"),
    make_prompt("balloon", colour="blue", background="white"),
    make_prompt("house", colour="pink", size="small"),
    make_prompt("star", colour="green", place="right"),
    make_prompt("heart", size="medium", background="navy"),
)

TUNE_PROMPTS: tuple[Prompt, ...] = (
    make_prompt("heart", place="right"),
    make_prompt("star", size="large"),
    make_prompt("fish", background="navy"),
    make_prompt("tree", place="left"),
    make_prompt("balloon", size="small"),
    make_prompt("house", background="white"),
    make_prompt("balloon", colour="yellow"),
    make_prompt("fish", colour="pink", place="top"),
)
