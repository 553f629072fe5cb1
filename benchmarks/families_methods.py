"""What a cell of `benchmarks.families` runs: every method by its nodes, and which rows have which."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from .families_world import KINDS, LANGUAGE, OTHER, PLAIN, SETUPS, TEXT, World

FEW = 4  # steps of the optimisation of prompts: enough to leave them
INTERVAL_STEPS = 10  # of which CFG is off at the first and the last two
SWAPPED = "a deep fish in red water"  # as many tokens as TEXT
PACK_LOG = logging.getLogger("ComfyUI-Diversity")


def _node(name: str) -> Any:
    """One of the pack's nodes, by the name of its class."""
    from comfyui_diversity.nodes import NODES

    found = next((node for node in NODES if node.__name__ == name), None)
    if found is None:
        raise ImportError(f"The pack has no node class {name}: its file could not be loaded.")
    return found


def _options(name: str, **chosen: Any) -> Any:
    node, read = _node(name), importlib.import_module("comfyui_diversity.nodes._inputs").read_options
    return node.execute(**{**read(node, None), **chosen}).args[0]


def _diversify(world: World, batch: int = 0) -> None:
    """Noise that is moved apart and CFG in an interval; one image has wider noise and a variant of the prompt."""
    driver = importlib.import_module("comfyui_diversity.core.drivers.diversify")
    with mock.patch.object(driver, "recommended", partial(driver.recommended, steps=FEW)):
        model, positive = _node("Diversify").execute(world.model, world.clip, TEXT, 0, 1.0).args
        _all_differ(world, model, positive, batch)


def _diversify_model(world: World) -> None:
    model = _node("DiversifyModel").execute(world.model, 1.0).args[0]
    _all_differ(world, model, world.positive, world.batch)


def _all_differ(world: World, model: Any, positive: list, batch: int) -> None:
    """From the plain images, in steps enough for Diversify to switch CFG off at some."""
    found, plain = (
        world.sample(*nodes, batch=batch, steps=INTERVAL_STEPS)
        for nodes in ((model, positive), (world.model, world.positive))
    )
    if not torch.isfinite(found).all():
        raise AssertionError("not finite")
    same = [k for k in range(len(found)) if float((found[k] - plain[k]).abs().max()) < 1e-6]
    if same:
        raise AssertionError(f"{len(same)} of {len(found)} images are the plain ones")


def _noise(world: World, gradient: str = "stop") -> Tensor:
    options = _options("DiverseNoiseOptions", gradient=gradient)
    model = _node("DiverseNoise").execute(world.model, 0.5, 2, "recommended", options).args[0]
    return world.sample(model, world.positive)


def _custom_noise(world: World) -> Tensor:
    noise, guider, sigmas = world.custom()
    node = _node("DiverseNoiseForCustomSampler")
    return world.sample_custom(node.execute(noise, guider, sigmas, 0.5, 2, -1, "recommended").args[0], guider, sigmas)


def _kept_noise(world: World) -> Tensor:
    """Through both nodes that use it: the same images."""
    noise, guider, sigmas = world.custom()
    node = _node("DiverseNoiseToLatent")
    kept = node.execute(noise, guider, sigmas, world.empty(), 0.5, 2, "recommended").args[0]
    stored = _node("KeptNoiseForCustomSampler").execute(kept, 0).args[0]
    images = world.sample_custom(stored, guider, sigmas)
    again = world.sample(_node("UseKeptNoise").execute(world.model, kept).args[0], world.positive)
    _same(again, images, "both nodes for kept noise give the same images")
    return images


def _prompts(world: World) -> Tensor:
    options = _options("DiversePromptsOptions", steps=FEW)
    found = _node("DiversePrompts").execute(world.clip, TEXT, "", world.batch, 0.8, 0.4, 0, "recommended", options)
    PACK_LOG.info("%s", found.args[-1])
    return world.sample(world.model, found.args[0], found.args[1])


def _conditioning(world: World) -> Tensor:
    node, options = _node("DiverseConditioning"), _options("DiversePromptsOptions", steps=FEW)
    found = node.execute(world.positive, world.clip, TEXT, world.batch, 0.8, 0.4, 0, options)
    PACK_LOG.info("%s", found.args[-1])
    return world.sample(world.model, found.args[0])


def _schedule(world: World, other: str) -> Tensor:
    found = _node("ScheduleConditioning").execute(world.encode(other), world.positive, 0.5, 0.0, "linear", 0, "steps")
    return world.sample(world.model, found.args[0])


def _minority(world: World) -> Tensor:
    options = _options("MinorityPromptOptions", iterations=2)
    arguments = (world.model, world.clip, TEXT, "base model", 1.0, "cool", "minority", "recommended")
    return world.sample(*_node("MinorityPrompt").execute(*arguments, options=options).args)


def _rarest(world: World) -> None:
    latent = {"samples": world.plain}
    positive = world.setup.attach(world, world.positive)
    found = _node("RarestFirst").execute(world.model, positive, latent, 0, 0, 0.5, 2, -1).args[0]
    for k, place in enumerate(found["batch_index"]):
        _same(found["samples"][k], world.plain[place], "each image is one of the batch")


def _keep_best(world: World) -> None:
    latent = {"samples": world.plain}
    positive = world.setup.attach(world, world.positive)
    found = _node("KeepBest").execute(world.model, positive, latent, 1, 0.5, 0, 0.3, 2, -1).args[0]
    [place] = found["batch_index"]
    _same(found["samples"][0], world.plain[place], "the image is one of the batch")


def _shared_noise(world: World) -> Tensor:
    """Through both nodes: all images are the first one. With variants of the prompt they differ."""
    shared = _node("UseSharedNoise").execute(world.model, 0.0).args[0]
    noise, guider, sigmas = world.custom()
    custom = _node("SharedNoiseForCustomSampler").execute(noise).args[0]
    for images in (world.sample(shared, world.positive), world.sample_custom(custom, guider, sigmas)):
        for image in images:
            _same(image, world.plain[0], "every image is the first one")
    return world.sample(shared, world.encode(OTHER))


def _vision_outputs(world: World) -> list:
    options = _options("TextToVisionOptions", steps=FEW)
    node = _node("TextToVision")
    return node.execute(*_vision_side(world), TEXT, world.batch, "off", 0, "recommended", options=options).args[0]


def _vision_side(world: World) -> tuple[Any, Any]:
    """A CLIP and a vision tower of one space, that of the image embeddings which the model reads."""
    from small.encoders import _CLIP_L, small_encoder
    from small.families import EMBEDDING
    from small.vision import small_vision

    width = EMBEDDING if type(world.model.model).__name__ == "StableCascade_C" else None
    wide = {"clip_l_model_config": {**_CLIP_L, "hidden_size": width}} if width else None
    return small_encoder("sd1", options=wide), small_vision(**({"projection_dim": width} if width else {}))


def _per_image(world: World, outputs: list) -> Tensor:
    found = _node("UnclipPerImage").execute([world.positive], outputs, [1.0], [0.0]).args[0]
    return world.sample(world.model, found)


def _text_as_vision(world: World) -> Tensor:
    output = _node("TextAsVision").execute(*_vision_side(world), TEXT).args[0]
    return _per_image(world, [output])


def _same(found: Tensor, wanted: Tensor, what: str) -> None:
    if not torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max())):
        raise AssertionError(f"not true: {what}")


@dataclass(frozen=True)
class Method:
    """nodes: ids of those that `run` runs. It returns the images, or None where it has checked all by itself."""

    nodes: tuple[str, ...]
    run: Callable[[World], Tensor | None]
    embeddings: bool = False  # for models that read image embeddings, and no others


METHODS: dict[str, Method] = {
    "Diversify": Method(("DiversityDiversify",), _diversify),
    "Diversify, one image": Method(("DiversityDiversify",), lambda world: _diversify(world, 1)),
    "Diversify (Model Only)": Method(("DiversityDiversifyModel",), _diversify_model),
    "Diverse Noise": Method(("DiversityCNO",), _noise),
    "Diverse Noise, full gradient": Method(("DiversityCNO",), lambda world: _noise(world, "full")),
    "Diverse Noise for Custom Sampler": Method(("DiversityCNONoise",), _custom_noise),
    "Diverse Noise to Latent, kept noise": Method(
        ("DiversityCNOLatent", "DiversityNoiseFromLatent", "DiversityUseNoise"), _kept_noise
    ),
    "Diverse Prompts": Method(("DiversityTPSO",), _prompts),
    "Diverse Conditioning": Method(("DiversityTPSOConditioning",), _conditioning),
    "Schedule Conditioning": Method(("DiversityScheduleConditioning",), lambda world: _schedule(world, SWAPPED)),
    "Schedule Conditioning, texts of two lengths": Method(
        ("DiversityScheduleConditioning",), lambda world: _schedule(world, f"{TEXT} at night")
    ),
    "Minority Prompt": Method(("DiversityMinorityPrompt",), _minority),
    "Rarest First": Method(("DiversityRarestFirst",), _rarest),
    "Keep the Best": Method(("DiversityKeepBest",), _keep_best),
    "shared noise": Method(("DiversitySharedNoise", "DiversitySharedNoiseModel"), _shared_noise),
    "Text to Vision Embedding, unCLIP per Image": Method(
        ("DiversityOVI", "DiversityUnclipPerImage"),
        lambda world: _per_image(world, _vision_outputs(world)),
        embeddings=True,
    ),
    "Text Embedding as Vision Embedding": Method(("DiversityTextAsVision",), _text_as_vision, embeddings=True),
}
EMBEDDINGS = ("SD2.1 unCLIP", "Stable Cascade")  # families that read image embeddings
# In other set-ups: nodes for other samplers and for kept noise do what Diverse Noise does. Where only the weights of
# the text encoder, or of the model, are kept otherwise: the methods that run it.
IN_SETUPS = (
    "Diversify",
    "Diversify, one image",
    "Diverse Noise",
    "Diverse Noise, full gradient",
    "Diverse Prompts",
    "Diverse Conditioning",
    "Schedule Conditioning",
    "Minority Prompt",
    "Rarest First",
    "Keep the Best",
)
WITH_ENCODERS = ("Diversify, one image", "Diverse Prompts", "Diverse Conditioning", "Minority Prompt")
WITH_MODELS = (
    "Diversify",
    "Diverse Noise",
    "Diverse Noise, full gradient",
    "Minority Prompt",
    "Rarest First",
    "Keep the Best",
)


def methods_of(family: str, setup: str) -> dict[str, Method]:
    """Those that have a cell in this row."""
    if setup != PLAIN:
        own = SETUPS[setup]
        return {
            name: METHODS[name] for name in (WITH_ENCODERS if own.encoder else WITH_MODELS if own.model else IN_SETUPS)
        }
    return {name: one for name, one in METHODS.items() if not one.embeddings or family in EMBEDDINGS}


def rows() -> list[tuple[str, str]]:
    """Family and set-up of every row."""
    from small.families import WHOLE

    other = [
        (family, name)
        for family in (*KINDS, *LANGUAGE)
        for name, setup in SETUPS.items()
        if name != PLAIN and (not setup.only or family in setup.only)
    ]
    return [*((family, PLAIN) for family in WHOLE), *other]
