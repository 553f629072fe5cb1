"""The stock side of a cell of `benchmarks.families`: a small model of a family in a set-up, and its sampler."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
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

STEPS, TEXT, OTHER = 3, "a red fish in deep water", "a wooden boat"
FORMATS = {"fp8 scaled": "float8_e4m3fn", "int8": "int8_tensorwise", "w4a8": "asym_w4a8_int8"}
PLAIN = "plain"


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
KINDS = ("SD1.5", "FLUX.1 dev", "Z-Image")
LANGUAGE = ("Qwen-Image", "Krea 2", "FLUX.2 Klein")  # of the last two, twelve and three layers are read
_COMMON = ("GGUF", "fp8 scaled", "int8")  # what most people have
SETUPS: dict[str, Setup] = {
    PLAIN: Setup(),
    "CFG 1": Setup(cfg=1.0, only=KINDS),
    "one image": Setup(batch=1, only=KINDS),
    "area and mask": Setup(attach=_area_and_mask, only=KINDS),
    "two ControlNets": Setup(attach=_two_controlnets, only=("SD1.5",)),
    "LoRA by a hook": Setup(attach=_hook_lora, only=KINDS),
    **{f"encoder {form}": Setup(encoder=form, only=("SD1.5", "Z-Image")) for form in ("fp16", "bf16")},
    **{f"encoder {form}": Setup(encoder=form, only=(*KINDS, *LANGUAGE)) for form in _COMMON},
    "encoder w4a8": Setup(encoder="w4a8", only=("SD1.5", "Z-Image")),
    **{f"model {form}": Setup(model=form, only=("SD1.5", "Z-Image")) for form in ("fp16", "bf16")},
    **{f"model {form}": Setup(model=form, only=(*KINDS, "Qwen-Image")) for form in _COMMON},
    "model w4a8": Setup(model="w4a8", only=KINDS),
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
