"""Templates of Diversify on the demo world's models: the images without it and with it."""

from __future__ import annotations

from ..frontend import Graph, Node
from .baseline import IMAGES, MODELS, PROMPT
from .before_after import Sampling, Source, before_after

NOTES = {
    "unet": "",
    "mmdit": "",
    "distilled": "",
}


def _source(model: str) -> Source:
    """The demo world's loader, and stock loaders for what it does not give."""
    file = MODELS[model][0]
    nodes = {"world": Node("DiversityLoadDemoWorld", (0, 0), (340, 66))}
    if file:
        nodes["unet"] = Node("UNETLoader", (0, 120), (340, 82), values={"unet_name": file, "weight_dtype": "default"})
    vae = {"vae_name": "diversity_demo_vae.safetensors"}
    nodes["vae"] = Node("VAELoader", (0, 250 if file else 120), (340, 58), values=vae)
    source = ("unet" if file else "world", 0)
    return Source(nodes, 360 if file else 230, source, ("world", 1), ("vae", 0))


def _template(model: str) -> Graph:
    _, scheduler, cfg, steps = MODELS[model]
    sampling = Sampling(PROMPT, "", steps, cfg, "euler", scheduler, 128, "EmptySD3LatentImage", batch=IMAGES)
    return before_after(f"diversify_{model}", _source(model), sampling, NOTES[model])


DIVERSIFY_TEMPLATES: dict[str, Graph] = {f"diversify_{model}": _template(model) for model in MODELS}
