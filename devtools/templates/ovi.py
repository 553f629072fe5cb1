"""Templates that draw from CLIP's image embeddings: optimised from text, the text's own, and those of real images."""

from __future__ import annotations

from dataclasses import replace

from ..frontend import Node
from .baseline import IMAGES, PROMPT, baseline, finished, moved

BLUE = ("#223", "#335")
UNCLIP_CFG = 3.0
_BANK = 1000  # images
_STEPS = 10
# Seconds in place of a minute on a CPU. In fewer steps a constraint counts for more: with a quarter of it the cosine to
# the text is again the paper's 0.88.
_QUICK = {"steps": 150, "learning_rate": 0.1, "weight": 0.25}
_WIDTH = 380  # a column

NOTES = {
    "ovi": """**Images from text, by way of an image embedding.** The model here is led by what CLIP's vision tower \
makes of an image, and there is no image: *Text to Vision Embedding (OVI)* optimises ten embeddings until they say \
what the text says, each near to one of 1,000 real images.

Press **Run** and look at the **plot**: how near each one gets. Then set **constraint** to *off*: nearer to the text, \
and worse images.

The **options** make it quick: fewer and larger steps, and less weight. *unCLIP per Image* gives each image of the \
batch its own embedding.""",
    "ovi_text_directly": """**The same without any optimisation:** the text's own vector in place of an image \
embedding. It costs nothing, and all ten images have the same one.

Press **Run** and compare with *ovi*.""",
    "ovi_real_images": """**The mark for *ovi*:** the embeddings of ten real images of a heart. *Demo World \
Images* draws them by a program; *CLIP Vision Encode* reads them.

Press **Run**: each image below is made after one of those.""",
}


def drawn(embeddings: tuple[str, int], negative: tuple[str, int] | None) -> dict[str, Node]:
    """An empty prompt with an embedding for each image; the negative has its own, or none."""
    nodes = moved(baseline("unet"), 2 * _WIDTH, ("sampler", "vae", "decode", "save"))
    del nodes["positive"]
    nodes["model"] = Node("DiversityLoadDemoUnclip", (0, 0), (300, 46))
    nodes["world"] = replace(nodes["world"], pos=(0, 120))
    nodes["empty"] = replace(nodes.pop("negative"), pos=(740, 0), title="Empty prompt")
    nodes["latent"] = replace(nodes["latent"], pos=(1120, 330))
    nodes["unclip"] = Node(
        "DiversityUnclipPerImage",
        (1120, 0),
        (320, 102),
        inputs={"conditioning": ("empty", 0), "clip_vision_output": embeddings},
        color=BLUE,
    )
    links = {**nodes["sampler"].inputs, "model": ("model", 0), "positive": ("unclip", 0), "negative": ("empty", 0)}
    if negative:
        nodes["unclip_negative"] = Node(
            "unCLIPConditioning",
            (1120, 160),
            (320, 102),
            inputs={"conditioning": ("empty", 0), "clip_vision_output": negative},
        )
        links["negative"] = ("unclip_negative", 0)
    values = {**nodes["sampler"].values, "cfg": UNCLIP_CFG, "steps": _STEPS}
    nodes["sampler"] = replace(nodes["sampler"], values=values, inputs=links)
    return nodes


def from_text() -> dict[str, Node]:
    nodes = drawn(("ovi", 0), ("ovi", 1))
    nodes["images"] = _images((0, 580), "", _BANK, "Real images")
    nodes["options"] = Node("DiversityOVIOptions", (0, 800), (300, 180), values=_QUICK, color=BLUE)
    nodes["bank"] = Node(
        "DiversityImageBank",
        (360, 420),
        (320, 102),
        inputs={"images": ("images", 0), "clip_vision": ("world", 2)},
        color=BLUE,
    )
    nodes["ovi"] = Node(
        "DiversityOVI",
        (360, 0),
        (340, 330),
        values={
            "text": PROMPT,
            "variants": IMAGES,
            "constraint": "nearest neighbour",
            "control_after_generate": "fixed",
        },
        inputs={"clip": ("world", 1), "clip_vision": ("world", 2), "bank": ("bank", 0), "options": ("options", 0)},
        color=BLUE,
    )
    nodes["plot"] = Node("PreviewImage", (740, 150), (340, 300), "How near to the text", inputs={"images": ("ovi", 2)})
    return nodes


def from_text_directly() -> dict[str, Node]:
    nodes = drawn(("direct", 0), ("direct", 1))
    nodes["direct"] = Node(
        "DiversityTextAsVision",
        (360, 0),
        (340, 150),
        values={"text": PROMPT},
        inputs={"clip": ("world", 1), "clip_vision": ("world", 2)},
        color=BLUE,
    )
    return nodes


def from_real_images() -> dict[str, Node]:
    nodes = drawn(("seen", 0), None)
    nodes["images"] = _images((360, 0), PROMPT, IMAGES, "Real images of the prompt")
    nodes["seen"] = Node(
        "CLIPVisionEncode",
        (360, 240),
        (320, 78),
        values={"crop": "center"},
        inputs={"clip_vision": ("world", 2), "image": ("images", 0)},
    )
    nodes["shown"] = Node("PreviewImage", (740, 150), (340, 300), "Real ones", inputs={"images": ("images", 0)})
    return nodes


def _images(pos: tuple[int, int], text: str, count: int, title: str) -> Node:
    values = {"text": text, "count": count, "control_after_generate": "fixed"}
    return Node("DiversityDemoImages", pos, (320, 180), title, values)


OVI_TEMPLATES: dict[str, dict[str, Node]] = {
    name: finished(name, nodes, NOTES[name])
    for name, nodes in {
        "ovi": from_text(),
        "ovi_text_directly": from_text_directly(),
        "ovi_real_images": from_real_images(),
    }.items()
}
