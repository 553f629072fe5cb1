"""A node pack of the tests: stock loaders that give small random models for the files of released ones, which are those
of `tests/small/released.py`; any other file they load as ever. Beside them loaders of its own for every small family.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nodes

NODE_CLASS_MAPPINGS: dict[str, type] = {}
FEW = 4
_TESTS = Path(__file__).resolve().parents[2]


def _package(folder: Path, name: str) -> Any:
    """By path: neither the tests nor the pack may stand on `sys.path` of a server."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_package(_TESTS.parent / "devtools", "devtools")
_package(_TESTS / "small", "small")

from small.released import SmallDecoder, small_decoder, small_released  # noqa: E402

from devtools.released import MODELS, Released  # noqa: E402

_BY_FILE: dict[str, Released] = {(model.checkpoint or model.unet).name: model for model in MODELS}  # pyrefly: ignore
_BY_ENCODERS = {(model.clip_type, *(file.name for file in model.encoders)): model for model in MODELS}
_BY_DECODER = {model.vae.name: model for model in MODELS if model.vae}


@cache
def _whole(title: str) -> tuple[Any, Any, SmallDecoder]:
    return small_released(title)


def _replace(name: str, small: Callable[..., tuple | None]) -> None:
    """A stock loader that first asks `small`, which gives its outputs or None."""
    known: dict[str, type] = nodes.NODE_CLASS_MAPPINGS  # pyrefly: ignore[missing-attribute]
    stock: Any = known[name]

    class Loader(stock):
        def load(self, **values: Any) -> tuple:
            return small(**values) or getattr(super(), stock.FUNCTION)(**values)

    Loader.FUNCTION = "load"
    known[name] = Loader


def _checkpoint(ckpt_name: str, **_: Any) -> tuple | None:
    return _whole(_BY_FILE[ckpt_name].title) if ckpt_name in _BY_FILE else None


def _diffusion_model(unet_name: str, **_: Any) -> tuple | None:
    return (_whole(_BY_FILE[unet_name].title)[0],) if unet_name in _BY_FILE else None


def _encoder(clip_name: str, type: str, **_: Any) -> tuple | None:
    model = _BY_ENCODERS.get((type, clip_name))
    return (_whole(model.title)[1],) if model else None


def _two_encoders(clip_name1: str, clip_name2: str, type: str, **_: Any) -> tuple | None:
    model = _BY_ENCODERS.get((type, clip_name1, clip_name2))
    return (_whole(model.title)[1],) if model else None


def _decoder(vae_name: str, **_: Any) -> tuple | None:
    return (small_decoder(_BY_DECODER[vae_name].title),) if vae_name in _BY_DECODER else None


for _name, _small in {
    "CheckpointLoaderSimple": _checkpoint,
    "UNETLoader": _diffusion_model,
    "CLIPLoader": _encoder,
    "DualCLIPLoader": _two_encoders,
    "VAELoader": _decoder,
}.items():
    _replace(_name, _small)


# --- loaders of its own -----------------------------------------------------------------------------------------------

from small.attached import small_controlnet  # noqa: E402
from small.families import WHOLE, small_whole  # noqa: E402
from small.vision import small_vision  # noqa: E402


@cache
def _family(name: str) -> tuple[Any, Any, SmallDecoder]:
    model, clip = small_whole(name)
    channels = model.model.latent_format.latent_channels
    # Pixels for each place of the latent: one where the model makes pixels.
    return model, clip, SmallDecoder(channels, {3: 1, 64: 32, 128: 16}.get(channels, 8), steepness=2e4)


def _hurry() -> None:
    """Diversify optimises its prompts in `FEW` steps: the server's nodes are those of the pack under test."""
    for name, module in list(sys.modules.items()):
        if name.endswith("core.drivers.diversify") and not isinstance(module.recommended, functools.partial):
            setattr(module, "recommended", functools.partial(module.recommended, steps=FEW))  # noqa: B010


class _SmallLoader:
    """Gives what `RETURN_TYPES` says of a small model of a family."""

    RETURN_TYPES: tuple[str, ...] = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"family": (list(WHOLE),)}}

    def load(self, family: str) -> tuple:
        _hurry()
        every = dict(zip(_SmallLoader.RETURN_TYPES, _family(family), strict=True))
        return tuple(every[kind] for kind in self.RETURN_TYPES)


class _SmallControlNet:
    RETURN_TYPES = ("CONTROL_NET",)
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seed": ("INT", {"default": 0})}}

    def load(self, seed: int) -> tuple:
        return (small_controlnet(seed),)


class _SmallVision:
    RETURN_TYPES = ("CLIP_VISION",)
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"width": ("INT", {"default": 64, "max": 4096})}}

    def load(self, width: int) -> tuple:
        return (small_vision(projection_dim=width),)


NODE_CLASS_MAPPINGS |= {
    "SmallCheckpoint": _SmallLoader,
    "SmallModel": type("SmallModel", (_SmallLoader,), {"RETURN_TYPES": ("MODEL",)}),
    "SmallEncoder": type("SmallEncoder", (_SmallLoader,), {"RETURN_TYPES": ("CLIP",)}),
    "SmallDecoder": type("SmallDecoder", (_SmallLoader,), {"RETURN_TYPES": ("VAE",)}),
    "SmallControlNet": _SmallControlNet,
    "SmallVision": _SmallVision,
}
