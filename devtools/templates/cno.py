"""Templates of diverse noise: with KSampler, with SamplerCustomAdvanced, and on a fast model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..frontend import Node
from .baseline import MODELS, SEED, baseline, finished, moved

BLUE = ("#223", "#335")
_WIDTH = 360  # a column, by which everything after the new node moves to the right

NOTES = {
    "cno_unet": """**The same ten hearts as *baseline_unet*, made to differ.** One node more: *Diverse Noise (CNO)* \
between the model and the sampler. Prompt and seed are the same.

Press **Run** and compare: count colours, sizes, places and backgrounds, and see whether all are hearts still.

**strength** is the knob: 0 is the baseline again.""",
    "cno_mmdit": """**With SamplerCustomAdvanced:** *Diverse Noise for Custom Sampler* goes between *RandomNoise* and \
the sampler, and reads model, prompts and cfg from the sampler's own guider. Here on a flow-matching transformer.

Press **Run** and compare with *baseline_mmdit*: the same prompt and seed.""",
    "cno_distilled": """**On a fast model:** four steps at cfg 1. Each **iteration** costs as much as a step of the \
sampler.

Press **Run** and compare with *baseline_distilled*.""",
    "cno_turbo": """**On a model like Z-Image Turbo**, eight steps at cfg 1: *Diverse Noise* goes between \
*ModelSamplingAuraFlow* and the sampler. Half of the usual **strength** is enough for images that are as alike as these.

Press **Run** and compare with *baseline_turbo*: the same prompt and seed.""",
}


def with_sampler(model: str, options: dict[str, Any] | None = None, **settings: Any) -> dict[str, Node]:
    """KSampler with a patched model. options: what is set in an options node, if there is one."""
    nodes = moved(baseline(model), _WIDTH, ("sampler", "vae", "decode", "save"))
    source = nodes["sampler"].inputs["model"]
    nodes["cno"] = Node("DiversityCNO", (740, 0), (300, 126), values=settings, inputs={"model": source}, color=BLUE)
    if options:
        nodes["options"] = Node("DiversityCNOOptions", (740, 180), (300, 340), values=options, color=BLUE)
        nodes["cno"] = replace(nodes["cno"], inputs={**nodes["cno"].inputs, "options": ("options", 0)})
    nodes["sampler"] = replace(nodes["sampler"], inputs={**nodes["sampler"].inputs, "model": ("cno", 0)})
    return nodes


def with_guider(model: str, **settings: Any) -> dict[str, Node]:
    """SamplerCustomAdvanced with changed noise."""
    nodes = moved(baseline(model), 2 * _WIDTH, ("vae", "decode", "save"))
    _, sampler, scheduler, cfg, steps = MODELS[model]
    source = nodes.pop("sampler").inputs["model"]
    prompts = {"positive": ("positive", 0), "negative": ("negative", 0)}
    nodes["random"] = Node(
        "RandomNoise", (740, 0), (300, 82), values={"noise_seed": SEED, "control_after_generate": "fixed"}
    )
    nodes["guider"] = Node("CFGGuider", (740, 130), (300, 98), values={"cfg": cfg}, inputs={"model": source, **prompts})
    nodes["scheduler"] = Node(
        "BasicScheduler",
        (740, 280),
        (300, 106),
        values={"scheduler": scheduler, "steps": steps, "denoise": 1.0},
        inputs={"model": source},
    )
    nodes["select"] = Node("KSamplerSelect", (740, 440), (300, 58), values={"sampler_name": sampler})
    nodes["cno"] = Node(
        "DiversityCNONoise",
        (1100, 0),
        (300, 190),
        values=settings,
        inputs={"noise": ("random", 0), "guider": ("guider", 0), "sigmas": ("scheduler", 0)},
        color=BLUE,
    )
    nodes["sampler"] = Node(
        "SamplerCustomAdvanced",
        (1460, 130),
        (290, 106),
        inputs={
            "noise": ("cno", 0),
            "guider": ("guider", 0),
            "sampler": ("select", 0),
            "sigmas": ("scheduler", 0),
            "latent_image": ("latent", 0),
        },
    )
    nodes["decode"] = replace(nodes["decode"], inputs={"samples": ("sampler", 0), "vae": ("vae", 0)})
    return nodes


CNO_TEMPLATES: dict[str, dict[str, Node]] = {
    name: finished(name, nodes, NOTES[name])
    for name, nodes in {
        "cno_unet": with_sampler("unet"),
        "cno_mmdit": with_guider("mmdit"),
        "cno_distilled": with_sampler("distilled"),
        "cno_turbo": with_sampler("turbo", strength=0.25),
    }.items()
}
