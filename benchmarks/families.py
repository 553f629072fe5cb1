"""Which method works with which family of models and which set-up: every cell is run, none is reasoned about.

    python -m benchmarks.families
    COMFYUI_PATH=FOLDER python -m benchmarks.families

Small models of ComfyUI's own classes with random weights (tests/small), with the ComfyUI at hand, whose version is in
the name of the file of results. `benchmarks.families_page` says what the words in a cell mean.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from devtools.comfy_source import release
from devtools.places import HERE

from . import world as _demo  # noqa: F401 # isort: skip - this makes ComfyUI and the pack importable

import comfy.hooks
import comfy.sample
import comfy.samplers
import torch
from comfy.supported_models_base import BASE
from torch import Tensor

from .results import SCRATCH, add_row, read, write

COMMAND = "python -m benchmarks.families"
FEW = 4  # steps of the optimisation of prompts: enough to leave them
INTERVAL_STEPS = 10  # of which CFG is off at the first and the last two
STEPS, TEXT, OTHER = 3, "a red fish in deep water", "a wooden boat"
SWAPPED = "a deep fish in red water"  # as many tokens as TEXT
FORMATS = {"fp8 scaled": "float8_e4m3fn", "int8": "int8_tensorwise", "w4a8": "asym_w4a8_int8"}
PLAIN = "plain"
PACK_LOG = logging.getLogger("ComfyUI-Diversity")


@dataclass(frozen=True)
class Setup:
    """encoder, model: how its weights are kept ("" is float32). attach: what is attached to a prompt."""

    cfg: float = 2.0
    batch: int = 2
    encoder: str = ""
    model: str = ""
    attach: Callable[[World, list], list] = lambda _, positive: positive
    only: tuple[str, ...] = ()


def _area_and_mask(world: World, positive: list) -> list:
    """The prompt in the left half, another one behind a mask on the right."""
    side = 8 * world.shape[-1]
    mask = torch.zeros(1, side, side)
    mask[..., side // 2 :] = 1.0
    [area] = world.stock.ConditioningSetArea().append(positive, side // 2, side, 0, 0, 1.0)
    [masked] = world.stock.ConditioningSetMask().append(world.encode(OTHER), mask, "default", 1.0)
    return area + masked


def _two_controlnets(world: World, positive: list) -> list:
    from small.attached import small_controlnet

    side = 8 * world.shape[-1]
    for seed in range(2):
        hint = torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(seed))
        apply = world.stock.ControlNetApplyAdvanced()
        positive, _ = apply.apply_controlnet(positive, [], small_controlnet(seed), hint, 1.0, 0.0, 1.0)
    return positive


def _hook_lora(world: World, positive: list) -> list:
    from small.attached import hook_lora

    return comfy.hooks.set_hooks_for_conditioning(positive, hook_lora(world.model, 0))


# One family of each kind is run in other set-ups: a UNet with CLIP, transformers with T5 or with a language model.
_KINDS = ("SD1.5", "FLUX.1 dev", "Z-Image")
_LANGUAGE = ("Qwen-Image", "Krea 2", "FLUX.2 Klein")  # of the last two, twelve and three layers are read
_COMMON = ("GGUF", "fp8 scaled", "int8")  # what most people have
SETUPS: dict[str, Setup] = {
    PLAIN: Setup(),
    "CFG 1": Setup(cfg=1.0, only=_KINDS),
    "one image": Setup(batch=1, only=_KINDS),
    "area and mask": Setup(attach=_area_and_mask, only=_KINDS),
    "two ControlNets": Setup(attach=_two_controlnets, only=("SD1.5",)),
    "LoRA by a hook": Setup(attach=_hook_lora, only=_KINDS),
    **{f"encoder {form}": Setup(encoder=form, only=("SD1.5", "Z-Image")) for form in ("fp16", "bf16")},
    **{f"encoder {form}": Setup(encoder=form, only=(*_KINDS, *_LANGUAGE)) for form in _COMMON},
    "encoder w4a8": Setup(encoder="w4a8", only=("SD1.5", "Z-Image")),
    **{f"model {form}": Setup(model=form, only=("SD1.5", "Z-Image")) for form in ("fp16", "bf16")},
    **{f"model {form}": Setup(model=form, only=(*_KINDS, "Qwen-Image")) for form in _COMMON},
    "model w4a8": Setup(model="w4a8", only=_KINDS),
}


class NotThere(Exception):
    """This ComfyUI has no such thing."""


class World:
    """The stock side of a cell: model, encoder, plain conditionings and the sampler."""

    def __init__(self, family: str, setup: str = PLAIN) -> None:
        from small.families import WHOLE, latent_shape, small_whole

        self.stock: Any = importlib.import_module("nodes")  # ComfyUI's
        self.setup = SETUPS[setup]
        if release(HERE.comfyui()) in WHOLE[family].missing_in:
            raise NotThere(f"ComfyUI {release(HERE.comfyui())} does not know this family")
        with _dtype(self.setup.model), _encoders(self.setup.encoder):
            self.model, self.clip = small_whole(family)
        if self.setup.model == "GGUF":
            _packed(self.model.model.diffusion_model)
        elif self.setup.model in FORMATS:
            self.model = _quantised(self.setup.model, lambda form: _quantised_model(family, form))
        if self.setup.encoder == "GGUF":
            _packed(self.clip.cond_stage_model)
        elif self.setup.encoder in FORMATS:
            _quantised(self.setup.encoder, lambda form: _quantise(self.clip.cond_stage_model, form))
        self.shape = latent_shape(family, self.model)
        self.steps_done = 0
        self.negative, self.positive = self.encode(""), self.encode(TEXT)
        self._weights = self._checksums()
        # The first run of a model may differ from all later ones by rounding (HiDream-O1), with ComfyUI alone too.
        self.sample(self.model, self.positive)
        self.plain = self.sample(self.model, self.positive)

    @property
    def batch(self) -> int:
        return self.setup.batch

    def encode(self, text: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def noise(self, batch: int = 0) -> Tensor:
        """As a sampler with the seed 0 draws it; batch 0: that of the set-up."""
        return comfy.sample.prepare_noise(torch.zeros(batch or self.batch, *self.shape), 0)

    def sample(
        self, model: Any, positive: list, negative: list | None = None, batch: int = 0, steps: int = STEPS
    ) -> Tensor:
        """What KSampler computes."""
        noise = self.noise(batch)
        return comfy.sample.sample(
            model,
            noise,
            steps,
            self.setup.cfg,
            "euler",
            "simple",
            self.setup.attach(self, positive),
            self.negative if negative is None else negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            callback=self._step,
            seed=0,
        )

    def custom(self) -> tuple[Any, Any, Tensor]:
        """Random Noise, guider and sigmas for the same images."""
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(self.setup.attach(self, self.positive), self.negative)
        guider.set_cfg(self.setup.cfg)
        sigmas = comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "simple", STEPS)
        return Noise_RandomNoise(0), guider, sigmas

    def empty(self) -> dict[str, Tensor]:
        return {"samples": torch.zeros(self.batch, *self.shape)}

    def sample_custom(self, noise: Any, guider: Any, sigmas: Tensor) -> Tensor:
        """What SamplerCustomAdvanced computes."""
        latent, sampler = self.empty(), comfy.samplers.sampler_object("euler")
        started = noise.generate_noise(latent)
        return guider.sample(started, latent["samples"], sampler, sigmas, None, self._step, True, seed=noise.seed)

    def _step(self, *_: Any) -> None:
        self.steps_done += 1

    def _checksums(self) -> list[int]:
        modules = (self.model.model, self.clip.cond_stage_model)
        return [_checksum(weight) for module in modules for weight in module.parameters()]

    def judged(self, images: Tensor | None) -> str:
        """What a cell says of the images that came out; None: there are none to compare."""
        if images is not None:
            if not torch.isfinite(images).all():
                return "fails: not finite"
            same = [k for k in range(self.batch) if float((images[k] - self.plain[k]).abs().max()) < 1e-6]
            if same:
                return f"fails: {len(same)} of {self.batch} images are the plain ones"
        if self._checksums() != self._weights:
            return "fails: weights were changed"
        return "works"


@contextmanager
def _dtype(form: str) -> Iterator[None]:
    """Models made inside keep their weights so: bf16 computes in it, fp16 is cast to float32 layer by layer."""
    kinds = {"bf16": (torch.bfloat16, None), "fp16": (torch.float16, torch.float32)}
    if form not in kinds:
        yield
        return
    real = BASE.set_inference_dtype

    def chosen(self: Any, *_: Any, **__: Any) -> None:
        real(self, *kinds[form])

    with mock.patch.object(BASE, "set_inference_dtype", chosen):
        yield


def _quantised(form: str, make: Callable[[str], Any]) -> Any:
    from small.quantised import FORMATS as KNOWN

    if FORMATS[form] not in KNOWN:
        raise NotThere(f"ComfyUI {release(HERE.comfyui())} has no {form} of this kind")
    return make(FORMATS[form])


def _quantised_model(family: str, form: str) -> Any:
    from small.families import small_whole
    from small.quantised import quantised_model

    return quantised_model(lambda: small_whole(family)[0], form)


def _packed(network: Any) -> None:
    from small.quantised import pack

    pack(network)


def _encoders(form: str) -> AbstractContextManager[None]:
    """Text encoders made inside are kept so, or can be quantised so."""
    from small.quantised import encoders_kept

    return encoders_kept(FORMATS.get(form, form))


def _quantise(network: Any, form: str) -> None:
    from small.quantised import quantise

    if quantise(network, form) == 0:
        raise AssertionError(f"No layer was quantised to {form}.")


def _checksum(weight: Tensor) -> int:
    quantised = getattr(weight, "dequantize", None)
    own = quantised() if type(weight.data) not in (Tensor, torch.nn.Parameter) and quantised else weight.data
    return zlib.crc32(own.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


# --- the methods ------------------------------------------------------------------------------------------------------


def _node(name: str) -> Any:
    """One of the pack's nodes, by the name of its class."""
    from comfyui_diversity.nodes import NODES

    return next(node for node in NODES if node.__name__ == name)


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
    node, options = (
        _node("DiverseConditioning"),
        _options("DiversePromptsOptions", steps=FEW),
    )
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
        for family in (*_KINDS, *_LANGUAGE)
        for name, setup in SETUPS.items()
        if name != PLAIN and (not setup.only or family in setup.only)
    ]
    return [*((family, PLAIN) for family in WHOLE), *other]


# --- cells ------------------------------------------------------------------------------------------------------------


@contextmanager
def _logged() -> Iterator[list[str]]:
    """What the pack logs inside, line by line."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.extend(record.getMessage().splitlines())

    logger, handler = PACK_LOG, Handler()
    before, logger.propagate = logger.level, False
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = True


def _is_ours(error: BaseException) -> bool:
    """Whether the pack itself raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(last).is_relative_to(HERE.root) and not Path(last).is_relative_to(HERE.root / "benchmarks")


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].strip().rstrip(".")


def cell(world: World, method: Method) -> str:
    """One cell of the table; never empty."""
    world.steps_done = 0
    with _logged() as lines:
        try:
            images = method.run(world)
        except Exception as error:
            why = _first_sentence(str(error)) or "no message"
            if isinstance(error, ValueError) and _is_ours(error) and world.steps_done == 0:
                found = world.judged(None)
                return f"refused: {why}" if found == "works" else found
            logging.getLogger(__name__).exception("%s", why)
            return f"fails: {type(error).__name__}: {why}"
    found = world.judged(images)
    if found != "works":
        return found
    report = "\n".join(lines)
    notes = ["by search"] if "search without gradients" in report or "Searched without" in report else []
    notes += [
        f"without variants: {_first_sentence(line.partition('no variants, ')[2])}"
        for line in lines
        if line.startswith("Prompt: no variants")
    ]
    notes += [
        f"noise unchanged: {_first_sentence(line.removeprefix('Noise: as it is').strip(' .,'))}"
        for line in lines
        if line.startswith("Noise: as it is")
    ]
    return ", ".join(["works", *notes])


def row(family: str, setup: str, only: Sequence[str] = ()) -> dict[str, str]:
    """Cells by method; of all methods, or of `only` some."""
    names = {name: one for name, one in methods_of(family, setup).items() if not only or name in only}
    with torch.inference_mode():
        try:
            world = World(family, setup)
        except NotThere as error:
            return dict.fromkeys(names, f"not there: {error}")
        cells = {name: cell(world, method) for name, method in names.items()}
        if not torch.equal(world.sample(world.model, world.positive), world.plain):
            raise AssertionError(f"{family}, {setup}: after all methods a plain run gives other images.")
        return cells


def load_small() -> None:
    """Makes tests/small importable as `small`."""
    if "small" in sys.modules:
        return
    folder = HERE.root / "tests" / "small"
    spec = importlib.util.spec_from_file_location(
        "small", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} cannot be loaded as a package.")
    module = sys.modules["small"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    parser.add_argument("--only", default="", help="rows whose name, `family, set-up`, holds this")
    parser.add_argument("--again", action="store_true", help="also rows that the file of results has already")
    parser.add_argument("--methods", nargs="*", default=(), help="only these cells, beside what the file has already")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    load_small()
    file = options.out / f"families_{release(HERE.comfyui())}.json"
    before = {one["row"]: one["cells"] for one in read(file)["rows"]} if file.exists() else {}
    for family, setup in rows():
        name = f"{family}, {setup}"
        if options.only in name and (options.again or options.methods or name not in before):
            made = {**before.get(name, {}), **row(family, setup, options.methods)}
            cells = {method: made[method] for method in methods_of(family, setup) if method in made}
            print(f"{name}: {summary(cells)}", flush=True)
            add_row(file, COMMAND, {"row": name, "family": family, "setup": setup, "cells": cells})
    if file.exists():
        found = {one["row"]: one for one in read(file)["rows"]}
        write(file, COMMAND, [found[name] for name in (f"{a}, {b}" for a, b in rows()) if name in found])


def summary(cells: Mapping[str, str]) -> str:
    other = {name: text for name, text in cells.items() if text != "works"}
    return f"{len(cells) - len(other)} of {len(cells)} work" + "".join(f"\n    {k}: {v}" for k, v in other.items())


if __name__ == "__main__":
    main()
