"""Templates of kept images: more than are wanted, made to differ, and of these the best."""

from __future__ import annotations

from dataclasses import replace

from ..frontend import Node
from .baseline import IMAGES, baseline, finished, moved

BLUE = ("#223", "#335")
_WIDTH = 360  # a column
PINK = {"distilled": 0.6, "turbo": 0.4}
_MORE = IMAGES + IMAGES // 2

NOTE = f"""**{_MORE} images made to differ, the {IMAGES} best of them kept.** *Diverse Noise* on pink noise makes them \
differ further than it would alone. *Keep the Best* drops what came out worst, and of the rest what is like another.

Press **Run** and compare with *baseline_%s*. Its report says which images went, and why.

**drop** is the knob: higher for fewer broken images, lower for more difference. *batch_size* says of how many."""


def kept(model: str) -> dict[str, Node]:
    """Diverse Noise on pink noise, and Keep the Best behind the sampler."""
    nodes = moved(baseline(model), _WIDTH, ("sampler", "vae", "decode", "save"))
    nodes = moved(nodes, _WIDTH, ("vae", "decode", "save"))
    source = nodes["sampler"].inputs["model"]
    nodes["latent"] = replace(nodes["latent"], values={**nodes["latent"].values, "batch_size": _MORE})
    nodes["options"] = Node("DiversityCNOOptions", (740, 180), (300, 340), values={"pink": PINK[model]}, color=BLUE)
    links = {"model": source, "options": ("options", 0)}
    nodes["cno"] = Node("DiversityCNO", (740, 0), (300, 126), inputs=links, color=BLUE)
    nodes["sampler"] = replace(nodes["sampler"], inputs={**nodes["sampler"].inputs, "model": ("cno", 0)})
    inputs = {"model": source, "positive": ("positive", 0), "latent": ("sampler", 0)}
    nodes["keep"] = Node("DiversityKeepBest", (1460, 0), (300, 250), values={"keep": IMAGES}, inputs=inputs, color=BLUE)
    nodes["decode"] = replace(nodes["decode"], inputs={"samples": ("keep", 0), "vae": ("vae", 0)})
    return nodes


KEEP_TEMPLATES: dict[str, dict[str, Node]] = {
    f"keep_{model}": finished(f"keep_{model}", kept(model), NOTE % model) for model in PINK
}
