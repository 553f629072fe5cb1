"""Templates of rare images: a token learned with KSampler, on a fast model, and one that is kept and used again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..frontend import Node
from .baseline import PROMPT, baseline, finished, moved

BLUE = ("#223", "#335")
TOKEN = "diversity_rare"  # name of the kept token
_WIDTH = 360  # a column

NOTES = {
    "minority_unet": """**The rare side of *baseline_unet*.** *Minority Prompt* goes in place of the prompt box and \
between model and sampler. Prompt, seed and noise are the same.

Press **Run** and compare: look for colours, sizes, places and backgrounds that the ten hearts of the baseline do not \
show, and check that all are still hearts.

**strength** is the knob: 0 is the baseline again.""",
    "minority_mmdit": """**On a flow-matching transformer**, which draws hearts that are all much alike. Prompt, seed \
and noise are those of *baseline_mmdit*.

Press **Run** and compare. Beside **strength**, *keep_until* in *Minority Prompt Options* is a knob: from there on the \
plain prompt has the last word.""",
    "minority_distilled": """**On a fast model:** four steps at cfg 1. With the preset *few-step model* all is \
learned at the first step.

Press **Run** and compare with *baseline_distilled*.""",
    "minority_keep": f"""**A learned token, saved.** One image; *Minority Prompt Options* saves what it learns as \
**{TOKEN}**, an \
ordinary embedding that every ComfyUI reads, with or without this pack.

Press **Run**. The token is now in *embeddings/diversity*. Then open *baseline_unet* and write the prompt \
**a heart embedding:{TOKEN}**: all ten images get it.""",
}


def with_sampler(model: str, **settings: Any) -> dict[str, Node]:
    """The node in place of the prompt, and between model and sampler."""
    nodes = baseline(model)
    source = nodes["sampler"].inputs["model"]
    del nodes["positive"]
    nodes = moved(nodes, _WIDTH, ("sampler", "vae", "decode", "save", "negative", "latent"))
    nodes["minority"] = Node(
        "DiversityMinorityPrompt",
        (360, 0),
        (320, 330),
        values={"text": PROMPT, **settings},
        inputs={"model": source, "clip": ("world", 1)},
        color=BLUE,
    )
    nodes["negative"] = replace(nodes["negative"], pos=(740, 0))
    nodes["latent"] = replace(nodes["latent"], pos=(740, 150))
    links = {**nodes["sampler"].inputs, "model": ("minority", 0), "positive": ("minority", 1)}
    nodes["sampler"] = replace(nodes["sampler"], inputs=links)
    return nodes


def with_token_kept(model: str) -> dict[str, Node]:
    """One image, whose token is kept."""
    nodes = with_sampler(model)
    nodes["options"] = Node(
        "DiversityMinorityPromptOptions", (360, 400), (320, 400), values={"save_as": TOKEN}, color=BLUE
    )
    own = nodes["minority"]
    nodes["minority"] = replace(own, inputs={**own.inputs, "options": ("options", 0)})
    nodes["latent"] = replace(nodes["latent"], values={**nodes["latent"].values, "batch_size": 1})
    return nodes


MINORITY_TEMPLATES: dict[str, dict[str, Node]] = {
    name: finished(name, nodes, NOTES[name])
    for name, nodes in {
        "minority_unet": with_sampler("unet"),
        "minority_mmdit": with_sampler("mmdit"),
        "minority_distilled": with_sampler("distilled", preset="few-step model"),
        "minority_keep": with_token_kept("unet"),
    }.items()
}
