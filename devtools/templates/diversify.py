"""Templates of Diversify on the demo world's models: the images without it and with it."""

from __future__ import annotations

from ..frontend import Graph, Node
from .baseline import IMAGES, MODELS, PROMPT
from .before_after import Sampling, Source, before_after

NOTES = {
    "unet": """**Ten hearts, and the same ten made to differ.** Above: the model as it is. Below: one node more, \
*Diversify*. Prompt and seed are the same.

Press **Run** and compare: count colours, sizes, places and backgrounds, and see whether all are hearts still.

**strength** is the knob: 0 gives the images above again, 1 is the most. What was done stands on the node.

The models are small ones that come with the pack and need no download. Then take the template of your own model.""",
    "mmdit": """**The same on a flow-matching transformer** of the kind of SD3, FLUX and Qwen-Image.

Press **Run** and compare, then turn **strength**.

Type another prompt, such as *a small fish* or *a tree on a navy background*.""",
    "distilled": """**On a fast model:** four steps at cfg 1, as Lightning, Turbo and schnell run. Fast models are the \
ones that people find monotonous.

Press **Run** and compare, then turn **strength**. *Diversify* sees that there are few steps and no cfg, and \
goes more gently than in *diversify_mmdit*: the node tells how far.""",
    "turbo": """**On a model like Z-Image Turbo:** a language model reads the prompt, a single-stream transformer \
draws it in eight steps at cfg 1. Above: ten images, nearly one.

Press **Run** and compare, then turn **strength**. With no cfg to switch off, *Diversify* moves the noises apart and \
does nothing else: the node tells how far.

For Z-Image Turbo itself take the template of its name.""",
}


def _source(model: str) -> Source:
    """The demo world's loader, and stock loaders for what it does not give."""
    file, turbo = MODELS[model][0], model == "turbo"
    world = {"model": "turbo" if turbo else "unet"}
    nodes, source = {"world": Node("DiversityLoadDemoWorld", (0, 0), (340, 98), values=world)}, "world"
    if file:
        nodes["unet"] = Node("UNETLoader", (0, 150), (340, 82), values={"unet_name": file, "weight_dtype": "default"})
        source = "unet"
    if turbo:  # as the official template of Z-Image Turbo has it
        nodes["shift"] = Node(
            "ModelSamplingAuraFlow", (0, 150), (340, 58), values={"shift": 3.0}, inputs={"model": ("world", 0)}
        )
        source = "shift"
    below = 150 if source == "world" else 280
    vae = {"vae_name": "diversity_demo_vae.safetensors"}
    nodes["vae"] = Node("VAELoader", (0, below), (340, 58), values=vae)
    return Source(nodes, below + 110, (source, 0), ("world", 1), ("vae", 0))


def _template(model: str) -> Graph:
    _, sampler, scheduler, cfg, steps = MODELS[model]
    sampling = Sampling(PROMPT, "", steps, cfg, sampler, scheduler, 128, "EmptySD3LatentImage", batch=IMAGES)
    return before_after(f"diversify_{model}", _source(model), sampling, NOTES[model])


DIVERSIFY_TEMPLATES: dict[str, Graph] = {f"diversify_{model}": _template(model) for model in NOTES}
