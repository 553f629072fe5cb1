"""Templates of diverse prompts: with KSampler, with a schedule node, on a fast model, and a prompt morph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..frontend import Node
from .baseline import IMAGES, PROMPT, SEED, baseline, finished, moved

BLUE = ("#223", "#335")
_WIDTH = 360  # a column
_FIRST, _SECOND = "a house", "a balloon"  # of the morph

NOTES = {
    "tpso_unet": """**The same ten hearts as *baseline_unet*, from ten variants of the prompt.** One node in place of \
both prompts: *Diverse Prompts (TPSO)*. Seed and noise are the same.

Press **Run** and compare: other colours, sizes, places and backgrounds, and all of them hearts.

**similarity** and **ratio** are the knobs: a lower similarity and a higher ratio give more different images. Here \
the options have the prompt's own words varied (**added_tokens** 0) and kept (**keep_words**). The plot \
shows how far apart the variants are.""",
    "tpso_mmdit": """**On a flow-matching transformer, with the schedule as a node of its own:** *Diverse Prompts* has \
its schedule switched off; *Schedule Conditioning* turns its variants into the plain prompt.

Press **Run** and compare with *baseline_mmdit*: the same prompt and seed. Then try **start_percent** and \
**easing**.""",
    "tpso_distilled": """**On a fast model:** four steps at cfg 1. The option **perturbed_steps** says in how many \
of the four the variants have a share: the first.

Press **Run** and compare with *baseline_distilled*.""",
    "tpso_turbo": """**On a model like Z-Image Turbo:** a language model reads the prompt, and *Diverse Prompts* \
varies what it reads: by default a few added tokens behind the prompt's own words, inside the chat template.

Press **Run** and compare with *baseline_turbo*.""",
    "prompt_morph": """**One prompt that turns into another** while the images are made: what comes first decides \
the layout, what comes last the details.

Press **Run**, then try **ratio** 0, 0.2 and 0.6.""",
}


def with_sampler(model: str, **settings: Any) -> dict[str, Node]:
    """Diverse Prompts in place of both prompts, and its plot."""
    nodes = baseline(model)
    del nodes["positive"], nodes["negative"]
    main = {name: settings.pop(name) for name in ("similarity", "ratio") if name in settings}
    chosen = {"text": PROMPT, "negative_text": "", "variants": IMAGES, "seed": SEED}
    nodes["tpso"] = Node(
        "DiversityTPSO",
        (360, 0),
        (320, 420),
        values={**chosen, "control_after_generate": "fixed", **main},
        inputs={"clip": ("world", 1), **({"options": ("options", 0)} if settings else {})},
        color=BLUE,
    )
    if settings:
        nodes["options"] = Node("DiversityTPSOOptions", (360, 470), (320, 310), values=settings, color=BLUE)
    nodes["latent"] = replace(nodes["latent"], pos=(740, 450), size=(290, 106))
    nodes["plot"] = Node("PreviewImage", (1090, 110), (200, 246), "How far apart", inputs={"images": ("tpso", 3)})
    return _sampling(nodes, ("tpso", 0), ("tpso", 1))


def with_schedule(model: str, **settings: Any) -> dict[str, Node]:
    """The schedule as a node of its own."""
    nodes = with_sampler(model, schedule="off")
    nodes = moved(nodes, _WIDTH, ("sampler", "vae", "latent", "decode", "plot", "save"))
    nodes["schedule"] = _schedule((740, 0), ("tpso", 0), ("tpso", 2), settings)
    return _sampling(nodes, ("schedule", 0), ("tpso", 1))


def morph(model: str, **settings: Any) -> dict[str, Node]:
    """Two stock prompts, one after the other."""
    nodes = moved(baseline(model), _WIDTH, ("sampler", "vae", "decode", "save"))
    first, negative = nodes["positive"], nodes["negative"]
    nodes["positive"] = replace(first, pos=(360, 0), title="First", values={"text": _FIRST})
    nodes["second"] = replace(first, pos=(360, 170), title="Then", values={"text": _SECOND})
    nodes["negative"] = replace(negative, pos=(360, 340))
    nodes["latent"] = replace(nodes["latent"], pos=(360, 480))
    nodes["schedule"] = _schedule((740, 0), ("positive", 0), ("second", 0), settings)
    return _sampling(nodes, ("schedule", 0), ("negative", 0))


def _schedule(pos: tuple[int, int], first: tuple[str, int], second: tuple[str, int], settings: dict[str, Any]) -> Node:
    inputs = {"conditioning_from": first, "conditioning_to": second}
    return Node("DiversityScheduleConditioning", pos, (300, 178), values=settings, inputs=inputs, color=BLUE)


def _sampling(nodes: dict[str, Node], positive: tuple[str, int], negative: tuple[str, int]) -> dict[str, Node]:
    sampler = nodes["sampler"]
    links = {**sampler.inputs, "positive": positive, "negative": negative}
    return {**nodes, "sampler": replace(sampler, inputs=links)}


TPSO_TEMPLATES: dict[str, dict[str, Node]] = {
    name: finished(name, nodes, NOTES[name])
    for name, nodes in {
        # This model follows what stands at the end of a prompt closely: its words are varied, and kept.
        "tpso_unet": with_sampler("unet", ratio=0.1, added_tokens=0, keep_words=True),
        "tpso_mmdit": with_schedule("mmdit", ratio=0.2),
        "tpso_distilled": with_sampler("distilled", perturbed_steps=1, added_tokens=2),
        "tpso_turbo": with_sampler("turbo"),
        "prompt_morph": morph("unet", ratio=0.4),
    }.items()
}
