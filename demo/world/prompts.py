"""The prompts that results are reported on, and, apart from them, those that settings may be chosen on.

The two kinds share no text: whatever is tuned (guidance, training length, a method's strength) is tuned on
`TUNE_PROMPTS`, whatever is published is measured on `REPORT_PROMPTS`. Both are drawn, not written: a quarter of the
prompts states nothing but the object, a quarter one attribute, a quarter two, a quarter three.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .attributes import OBJECTS, VALUES, Scene, rare_values
from .captions import OPTIONAL, caption


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


def draw_prompts(seed: int, each: int, wordings: Sequence[str], taken: Sequence[Prompt] = ()) -> tuple[Prompt, ...]:
    """`4 * each` prompts, those with 0, 1, 2 and 3 attributes beside the object in turn.

    Every multiple of 24 prompts has all objects equally often. Which attributes are stated goes round all
    combinations of that number; half of the stated values are rare (`rare_values`) and half are not.

    Args:
        seed: of the draw.
        each: prompts of each number of attributes.
        wordings: what is made of "a heart" in prompts that state nothing else: texts with one `{}`, for the noun.
        taken: prompts that must not come again.

    Raises ValueError if there are fewer than `each` different prompts that state the object alone.
    """
    if each > len(OBJECTS) * len(wordings):
        raise ValueError(f"each is {each}; it must be at most {len(OBJECTS) * len(wordings)}, as wordings are so few.")
    rng = random.Random(seed)
    objects = rng.sample(OBJECTS, len(OBJECTS))
    known = {frozenset(prompt.stated.items()) for prompt in taken}
    drawn: list[list[Prompt]] = []
    for count in range(4):
        sets = list(itertools.combinations(OPTIONAL, count))
        rounds = [rng.sample(sets, len(sets)) for _ in range(-(-each // len(sets)))]
        chosen = list(itertools.chain(*rounds))
        rare = [k % 2 == 0 for k in range(each * count)]
        rng.shuffle(rare)
        prompts = []
        for k in range(each):
            obj = objects[(k + 3 * count) % len(objects)]
            if count == 0:
                noun = make_prompt(obj).text
                wording = wordings[k // len(objects)]
                prompts.append(Prompt(wording.format(noun), {"object": obj}))
                continue
            kinds = rare[k * count : (k + 1) * count]
            options = _unused(obj, chosen[k], kinds, known)
            # Few sizes are rare: where they are used up, the other kind.
            options = options or _unused(obj, chosen[k], [not kind for kind in kinds], known)
            prompt = make_prompt(obj, **rng.choice(options))
            known.add(frozenset(prompt.stated.items()))
            prompts.append(prompt)
        drawn.append(prompts)
    return tuple(itertools.chain(*zip(*drawn, strict=True)))


def _unused(
    obj: str, names: Sequence[str], rare: Sequence[bool], known: Collection[frozenset[tuple[str, str]]]
) -> list[dict[str, str]]:
    """All that these attributes of the object can be, each rare or not as `rare` says, but for what is known."""
    uncommon, kinds = rare_values(obj), dict(zip(names, rare, strict=True))
    values = [[v for v in VALUES[name] if (v in uncommon[name]) == kinds[name]] for name in names]
    found = [dict(zip(names, one, strict=True)) for one in itertools.product(*values)]
    return [one for one in found if frozenset({"object": obj, **one}.items()) not in known]


REPORT_PROMPTS = draw_prompts(2026, 15, ("{}", "a picture of {}", "picture of {}"))
TUNE_PROMPTS = draw_prompts(2027, 15, ("a drawing of {}", "drawing of {}", "the drawing of {}"), taken=REPORT_PROMPTS)

# What `dev.py demo` has time for: every object twice, three prompts of each number of attributes.
DEMO_PROMPTS = REPORT_PROMPTS[:12]
