"""Templates of kept images: more than are wanted, made to differ, and of these the best."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..frontend import Node
from .baseline import IMAGES, baseline, finished, moved
from .cno import BLUE, with_sampler

_WIDTH = 360  # a column
PINK, STRENGTH = 0.6, 1.0
_MORE = IMAGES + IMAGES // 2
_READ = """Its report says which images went, and why.

**drop** is the knob: higher for fewer broken images, lower for more difference."""

NOTES = {
    "keep_distilled": f"""**{_MORE} images made to differ, the {IMAGES} best of them kept.** *Diverse Noise* on pink \
noise makes them differ further than it would alone, and breaks more of them. *Keep the Best* drops what came out \
worst, and of the rest what is like another.

Press **Run** and compare with *baseline_distilled*. {_READ}""",
    "keep_mmdit": f"""**The same with CFG:** *Diversify (Model Only)* at {STRENGTH:g} makes {_MORE} images differ, \
*Keep the Best* keeps {IMAGES} of them.

Press **Run** and compare with *diversify_mmdit*. {_READ}""",
}


def kept(nodes: dict[str, Node], **values: Any) -> dict[str, Node]:
    """The same of more images, with Keep the Best behind the sampler, which reads the model as it is loaded."""
    nodes = moved(nodes, _WIDTH, ("vae", "decode", "save"))
    nodes["latent"] = replace(nodes["latent"], values={**nodes["latent"].values, "batch_size": _MORE})
    inputs = {"model": ("model", 0), "positive": ("positive", 0), "latent": ("sampler", 0)}
    own = {"keep": IMAGES, **values}
    nodes["keep"] = Node("DiversityKeepBest", (1460, 0), (300, 250), values=own, inputs=inputs, color=BLUE)
    nodes["decode"] = replace(nodes["decode"], inputs={"samples": ("keep", 0), "vae": ("vae", 0)})
    return nodes


def with_noise_on_pink() -> dict[str, Node]:
    # On a few-step model about so many of them are broken.
    return kept(with_sampler("distilled", {"pink": PINK}), drop=0.15)


def with_diversify() -> dict[str, Node]:
    nodes = moved(baseline("mmdit"), _WIDTH, ("sampler", "vae", "decode", "save"))
    links = {"model": ("model", 0)}
    nodes["diversify"] = Node(
        "DiversityDiversifyModel", (740, 0), (300, 106), values={"strength": STRENGTH}, inputs=links, color=BLUE
    )
    nodes["sampler"] = replace(nodes["sampler"], inputs={**nodes["sampler"].inputs, "model": ("diversify", 0)})
    return kept(nodes)


KEEP_TEMPLATES: dict[str, dict[str, Node]] = {
    name: finished(name, nodes, NOTES[name])
    for name, nodes in {"keep_distilled": with_noise_on_pink(), "keep_mmdit": with_diversify()}.items()
}
