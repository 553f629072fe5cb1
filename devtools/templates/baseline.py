"""The templates without a method, and what all templates share.

A template is a dictionary of nodes by a name of our own; positions are in pixels of the front end's canvas.
"""

from __future__ import annotations

from dataclasses import replace

from ..frontend import Node

PROMPT = "a heart"
SEED = 1
IMAGES = 10
# The demo models' own settings: file for stock loaders (None: Load Demo World gives the model), sampler, scheduler,
# CFG, steps.
MODELS: dict[str, tuple[str | None, str, str, float, int]] = {
    "unet": (None, "euler", "normal", 2.0, 20),
    "mmdit": ("diversity_demo_mmdit.safetensors", "euler", "simple", 2.0, 20),
    "distilled": ("diversity_demo_distilled.safetensors", "euler", "simple", 1.0, 4),
    "turbo": (None, "res_multistep", "simple", 1.0, 8),
}
GREEN, RED, YELLOW = ("#232", "#353"), ("#322", "#533"), ("#432", "#653")

BASELINE_NOTE = {
    "unet": """**One prompt, ten images.** The prompt names a heart and nothing else; the model has seen hearts in \
eight colours, three sizes and five places.

Press **Run** and count: most of the ten are alike. Set **cfg** to 1 and run again: more colours, and now and then \
something that is no heart. The nodes of this pack are for having both.

*Load Demo World* gives a small noise-predicting UNet. For a model of your own, put *Load Checkpoint* in its place.""",
    "mmdit": """**The same with a flow-matching transformer** of the SD3 family, read by ComfyUI's own *Load Diffusion \
Model*. *Load Demo World* gives only the CLIP.

Press **Run** and count the colours of the ten hearts; then try **cfg** 1 and 6.

Prompt, seed and size are those of *baseline_unet*.""",
    "distilled": """**A fast model:** the transformer of *baseline_mmdit*, distilled to run in **4 steps** at \
**cfg 1**. Fast models are the ones that people find monotonous.

Press **Run** and compare with *baseline_mmdit*.

Leave cfg at 1: guidance is built into this model.""",
    "turbo": """**A model like Z-Image Turbo:** a language model reads the prompt, a single-stream transformer draws \
it in **8 steps** at **cfg 1**. Nodes and settings are those of the official Z-Image Turbo template.

Press **Run** and count: ten images, nearly one.

For Z-Image Turbo itself, put *Load Diffusion Model* and *Load CLIP* in place of *Load Demo World*.""",
}


def baseline(model: str) -> dict[str, Node]:
    """Prompt to ten images with nothing but ComfyUI's own nodes and the demo world's loader."""
    file, sampler, scheduler, cfg, steps = MODELS[model]
    nodes = {
        "world": Node(
            "DiversityLoadDemoWorld",
            (0, 150 if file else 0),
            (300, 98),
            values={"model": "turbo" if model == "turbo" else "unet"},
        ),
        "positive": Node(
            "CLIPTextEncode", (360, 80), (320, 120), "Prompt", {"text": PROMPT}, {"clip": ("world", 1)}, color=GREEN
        ),
        "negative": Node(
            "CLIPTextEncode", (360, 260), (320, 90), "Negative prompt", {"text": ""}, {"clip": ("world", 1)}, color=RED
        ),
        "latent": Node(
            "EmptySD3LatentImage", (360, 410), (320, 106), values={"width": 128, "height": 128, "batch_size": IMAGES}
        ),
        "sampler": Node(
            "KSampler",
            (740, 0),
            (290, 262),
            values={
                "seed": SEED,
                "control_after_generate": "fixed",
                "steps": steps,
                "cfg": cfg,
                "sampler_name": sampler,
                "scheduler": scheduler,
                "denoise": 1.0,
            },
            inputs={
                "model": ("model" if file else "world", 0),
                "positive": ("positive", 0),
                "negative": ("negative", 0),
                "latent_image": ("latent", 0),
            },
        ),
        "vae": Node("VAELoader", (740, 330), (290, 58), values={"vae_name": "diversity_demo_vae.safetensors"}),
        "decode": Node("VAEDecode", (1090, 0), (180, 46), inputs={"samples": ("sampler", 0), "vae": ("vae", 0)}),
        "save": Node(
            "SaveImage",
            (1330, 0),
            (480, 516),
            values={"filename_prefix": f"diversity/baseline_{model}"},
            inputs={"images": ("decode", 0)},
        ),
        "note": Node(
            "MarkdownNote", (0, 280), (300, 236), "What to look at", {"text": BASELINE_NOTE[model]}, color=YELLOW
        ),
    }
    if file:
        nodes["model"] = Node("UNETLoader", (0, 0), (300, 82), values={"unet_name": file, "weight_dtype": "default"})
    if model == "turbo":
        links = {**nodes["sampler"].inputs, "model": ("shift", 0)}
        nodes["sampler"] = replace(nodes["sampler"], inputs=links)
        nodes["shift"] = Node(
            "ModelSamplingAuraFlow", (0, 150), (300, 58), values={"shift": 3.0}, inputs={"model": ("world", 0)}
        )
        # As the official template has it; at cfg 1 nothing is read of it.
        nodes["negative"] = Node(
            "ConditioningZeroOut", (360, 260), (320, 46), inputs={"conditioning": ("positive", 0)}, color=RED
        )
    return nodes


def moved(nodes: dict[str, Node], right: int, names: tuple[str, ...]) -> dict[str, Node]:
    """The nodes, those of these names so many pixels to the right."""
    return {
        name: replace(node, pos=(node.pos[0] + right, node.pos[1])) if name in names else node
        for name, node in nodes.items()
    }


def finished(name: str, nodes: dict[str, Node], note: str) -> dict[str, Node]:
    """The nodes of the template of this name, with its own note and file names."""
    text = replace(nodes["note"], values={"text": note}, color=YELLOW)
    save = replace(nodes["save"], values={"filename_prefix": f"diversity/{name}"})
    return {**nodes, "note": text, "save": save}


BASELINE_TEMPLATES: dict[str, dict[str, Node]] = {f"baseline_{model}": baseline(model) for model in MODELS}
