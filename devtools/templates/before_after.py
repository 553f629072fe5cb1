"""A workflow that shows what Diversify does: one prompt and one seed, sampled without it and with it.

Two bands, one above the other, with the same nodes in them; to the left what they share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..frontend import App, Graph, Group, Node
from .baseline import GREEN, RED, SEED, YELLOW

BATCH = 4
STRENGTH = 0.75  # at 0.5, which next to no image pays for, there is too little to see for a first look
WITHOUT, WITH = "Without Diversify", "With Diversify"
TEAL = ("#233", "#355")
_BAND = 620  # pixels from one band to the other
_NOTE, _SHARED, _PROMPT, _SAMPLER, _IMAGES = -400, 0, 400, 800, 1180  # left edges of the columns
_GRAY, _GREEN = "#999", "#7ab88a"

Link = tuple[str, int]


@dataclass(frozen=True)
class Source:
    """What the bands start from: nodes that load, in the leftmost column, and their outputs."""

    nodes: dict[str, Node]
    height: int  # of the column so far
    model: Link
    clip: Link
    vae: Link


@dataclass(frozen=True)
class Sampling:
    """How the images are made; as in `released.Released`."""

    prompt: str
    negative: str | None
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    size: int
    latent: str
    batch: int = BATCH
    guidance: float | None = None
    custom: bool = False


def before_after(name: str, source: Source, sampling: Sampling, note: str) -> Graph:
    """The workflow. name: of the files that it saves."""
    nodes = {**source.nodes, **_shared(source, sampling, note)}
    nodes["encode"] = Node(
        "CLIPTextEncode",
        (_PROMPT, 0),
        (340, 120),
        inputs={"clip": source.clip, "text": ("prompt", 0)},
        color=GREEN,
    )
    nodes["diversify"] = Node(
        "DiversityDiversify",
        (_PROMPT, _BAND),
        (340, 440),
        values={"seed": 0, "control_after_generate": "fixed", "strength": STRENGTH},
        inputs={"model": source.model, "clip": source.clip, "text": ("prompt", 0)},
        color=TEAL,
    )
    nodes |= _negative(source, sampling)
    for band, top, model, positive in (
        ("without", 0, source.model, ("encode", 0)),
        ("with", _BAND, ("diversify", 0), ("diversify", 1)),
    ):
        nodes |= _band(band, top, model, positive, source, sampling)
    nodes["without_images"] = Node(
        "PreviewImage", (_IMAGES, 0), (500, 540), WITHOUT, inputs={"images": ("without_decode", 0)}
    )
    nodes["with_images"] = Node(
        "SaveImage",
        (_IMAGES, _BAND),
        (500, 540),
        WITH,
        {"filename_prefix": f"diversity/{name}"},
        {"images": ("with_decode", 0)},
    )
    frames = [(WITHOUT, 0, _GRAY), (WITH, _BAND, _GREEN)]
    width = _IMAGES + 500 - _PROMPT + 40
    groups = tuple(Group(title, (_PROMPT - 20, top - 80), (width, 660 - 40), color) for title, top, color in frames)
    seed = "noise_seed" if sampling.custom else "value"
    inputs = (("prompt", "value", "Prompt"), ("diversify", "strength", "strength"), ("seed", seed, "Seed"))
    return Graph(nodes, groups, App(inputs, ("without_images", "with_images")))


def _shared(source: Source, sampling: Sampling, note: str) -> dict[str, Node]:
    """The note beside the loaders; prompt, seed, size and what else the bands share below them."""
    top, gap = source.height, 50
    size = {"width": sampling.size, "height": sampling.size, "batch_size": sampling.batch}
    if sampling.custom:
        seed = Node("RandomNoise", values={"noise_seed": SEED, "control_after_generate": "fixed"})
    else:
        seed = Node("PrimitiveInt", title="Seed", values={"value": SEED, "control_after_generate": "fixed"})
    column = {
        "prompt": (
            Node("PrimitiveStringMultiline", title="Prompt", values={"value": sampling.prompt}, color=GREEN),
            120,
        ),
        "seed": (seed, 82),
        "latent": (Node(sampling.latent, values=size), 106),
    }
    if sampling.custom:
        column["select"] = (Node("KSamplerSelect", values={"sampler_name": sampling.sampler}), 58)
        column["sigmas"] = (_sigmas(source.model, sampling), 106)
    placed = {"note": Node("MarkdownNote", (_NOTE, 0), (360, 620), "What to turn", {"text": note}, color=YELLOW)}
    for name, (node, height) in column.items():
        placed[name] = replace(node, pos=(_SHARED, top), size=(340, height))
        top += height + gap
    return placed


def _negative(source: Source, sampling: Sampling) -> dict[str, Node]:
    place = (_PROMPT, 200)
    if sampling.guidance is not None:
        return {}
    if sampling.negative is None:
        return {"negative": Node("ConditioningZeroOut", place, (340, 26), inputs={"conditioning": ("encode", 0)})}
    return {
        "negative": Node(
            "CLIPTextEncode",
            place,
            (340, 120),
            "Negative prompt",
            {"text": sampling.negative},
            {"clip": source.clip},
            color=RED,
        )
    }


def _band(band: str, top: int, model: Link, positive: Link, source: Source, sampling: Sampling) -> dict[str, Node]:
    """Sampler and decoder of one band."""
    nodes = (_custom if sampling.custom else _plain)(band, top, model, positive, sampling)
    samples = {"samples": (f"{band}_sampler", 0), "vae": source.vae}
    nodes[f"{band}_decode"] = Node("VAEDecode", (_SAMPLER, top + 480), (300, 46), inputs=samples)
    return nodes


def _plain(band: str, top: int, model: Link, positive: Link, sampling: Sampling) -> dict[str, Node]:
    return {
        f"{band}_sampler": Node(
            "KSampler",
            (_SAMPLER, top),
            (300, 262),
            values={
                "control_after_generate": "fixed",
                "steps": sampling.steps,
                "cfg": sampling.cfg,
                "sampler_name": sampling.sampler,
                "scheduler": sampling.scheduler,
                "denoise": 1.0,
            },
            inputs={
                "model": model,
                "positive": positive,
                "negative": ("negative", 0),
                "latent_image": ("latent", 0),
                "seed": ("seed", 0),
            },
        )
    }


def _custom(band: str, top: int, model: Link, positive: Link, sampling: Sampling) -> dict[str, Node]:
    nodes = {}
    if sampling.guidance is not None:
        nodes[f"{band}_guidance"] = Node(
            "FluxGuidance",
            (_SAMPLER, top),
            (300, 58),
            values={"guidance": sampling.guidance},
            inputs={"conditioning": positive},
        )
        guider = Node("BasicGuider", inputs={"model": model, "conditioning": (f"{band}_guidance", 0)})
    else:
        both = {"positive": positive, "negative": ("negative", 0)}
        guider = Node("CFGGuider", values={"cfg": sampling.cfg}, inputs={"model": model, **both})
    nodes[f"{band}_guider"] = replace(guider, pos=(_SAMPLER, top + 120), size=(300, 98))
    nodes[f"{band}_sampler"] = Node(
        "SamplerCustomAdvanced",
        (_SAMPLER, top + 290),
        (300, 106),
        inputs={
            "noise": ("seed", 0),
            "guider": (f"{band}_guider", 0),
            "sampler": ("select", 0),
            "sigmas": ("sigmas", 0),
            "latent_image": ("latent", 0),
        },
    )
    return nodes


def _sigmas(model: Link, sampling: Sampling) -> Node:
    if sampling.scheduler == "flux2":
        size = {"width": sampling.size, "height": sampling.size}
        return Node("Flux2Scheduler", values={"steps": sampling.steps, **size})
    values = {"steps": sampling.steps, "scheduler": sampling.scheduler, "denoise": 1.0}
    return Node("BasicScheduler", values=values, inputs={"model": model})
