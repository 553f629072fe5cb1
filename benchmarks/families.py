"""Which method works with which kind of model and set-up: every cell is run, none is reasoned about.

    python -m benchmarks.families
    COMFYUI_PATH=FOLDER python -m benchmarks.families

Small models of ComfyUI's own classes with random weights (tests/small), with the ComfyUI at hand, whose version is in
the name of the file of results. "works": the images are finite and differ from the plain ones, all of them, weights are
bitwise as before, and so is the next plain run. "by search": works without gradients, with less effect. "refused" and
"fails" say why; a set-up that this ComfyUI does not have is named as such.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devtools.comfy_source import version
from devtools.places import HERE

from . import world as _demo  # noqa: F401 # isort: skip - this makes ComfyUI and the pack importable

import comfy.sample
import torch
from torch import Tensor

from .results import SCRATCH, PrintedTable

BATCH, STEPS, TEXT = 2, 3, "a red fish in deep water"
FLOAT32, HALF, PACKED = "float32", "encoder fp16", "encoder GGUF"
QUANTISED = {"float8_e4m3fn": "fp8 scaled", "int8_tensorwise": "int8", "asym_w4a8_int8": "w4a8"}
SETUPS = (
    FLOAT32,
    HALF,
    PACKED,
    *(f"{part} {name}" for part in ("encoder", "model") for name in QUANTISED.values()),
)


@dataclass(frozen=True)
class Kind:
    """A row's models of tests/small: diffusion model and text encoder; `setups` are the set-ups that it is run in."""

    model: str
    encoder: str
    setups: tuple[str, ...] = (FLOAT32,)


KINDS = {
    "SD1.5": Kind("eps", "sd1", SETUPS),
    "SD2 (v-prediction)": Kind("v", "sd2"),
    "SDXL": Kind("sdxl", "sdxl"),
    "FLUX.1": Kind("flux", "flux", SETUPS),
    "AuraFlow (T5)": Kind("auraflow", "t5"),
    "a language model as encoder (Qwen3)": Kind("auraflow", "qwen3", SETUPS),
    "Wan 2.1 (video)": Kind("wan", "t5"),
}


def _load_small() -> None:
    folder = HERE.root / "tests" / "small"
    spec = importlib.util.spec_from_file_location(
        "small", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} cannot be loaded as a package.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["small"] = module
    spec.loader.exec_module(module)


class World:
    """The stock side of a cell: model, encoder, plain conditionings and the sampler."""

    def __init__(self, kind: Kind, setup: str) -> None:
        from small.encoders import small_encoder
        from small.models import FAMILIES, small_model, small_sdxl
        from small.quantised import FORMATS, pack, quantised_encoder, quantised_model

        part, _, name = setup.partition(" ")
        form = next((key for key, value in QUANTISED.items() if value == name), None)
        if form is not None and form not in FORMATS:
            raise LookupError(f"this ComfyUI has no {name}")
        if part == "model":
            assert form is not None
            self.model = quantised_model(kind.model, form)
        else:
            self.model = small_sdxl() if kind.model == "sdxl" else small_model(kind.model)
        if part == "encoder" and form is not None:
            self.clip = quantised_encoder(kind.encoder, form)
        else:
            self.clip = small_encoder(kind.encoder, options={"dtype": torch.float16} if setup == HALF else None)
        if setup == PACKED:
            pack(self.clip.cond_stage_model)
        self.shape = FAMILIES[kind.model].latent if kind.model in FAMILIES else (4, 16, 16)
        self.negative, self.positive = self.encode(""), self.encode(TEXT)
        self._before = self._weights()
        self.plain = self.sample(self.model, self.positive)

    def encode(self, text: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def sample(self, model: Any, positive: list, negative: list | None = None) -> Tensor:
        """What KSampler computes."""
        noise = torch.randn(BATCH, *self.shape, generator=torch.Generator().manual_seed(0))
        negative = self.negative if negative is None else negative
        latent = torch.zeros_like(noise)
        return comfy.sample.sample(
            model, noise, STEPS, 2.0, "euler", "simple", positive, negative, latent, disable_pbar=True, seed=0
        )

    def _weights(self) -> list[Tensor]:
        modules = (self.model.model, self.clip.cond_stage_model)
        return [_numbers(weight).clone() for module in modules for weight in module.parameters()]

    def judged(self, images: Tensor) -> str:
        """What a cell says of the images that came out."""
        if not torch.isfinite(images).all():
            return "fails: not finite"
        same = [k for k in range(BATCH) if float((images[k] - self.plain[k]).abs().max()) < 1e-6]
        if same:
            return f"fails: {len(same)} of {BATCH} images are the plain ones"
        if not torch.equal(self.sample(self.model, self.positive), self.plain):
            return "fails: the next plain run differs"
        if not all(torch.equal(a, b) for a, b in zip(self._before, self._weights(), strict=True)):
            return "fails: weights were changed"
        return "works"


def _numbers(weight: Tensor) -> Tensor:
    quantised = getattr(weight, "dequantize", None)
    return quantised() if type(weight.data) not in (Tensor, torch.nn.Parameter) and quantised else weight.data


def _noise(world: World, gradient: str) -> tuple[Tensor, str]:
    from comfyui_diversity.nodes._inputs import read_options
    from comfyui_diversity.nodes.cno import DiverseNoise, DiverseNoiseOptions

    chosen = {**read_options(DiverseNoiseOptions, None), "gradient": gradient}
    options = DiverseNoiseOptions.execute(**chosen).args[0]
    model = DiverseNoise.execute(world.model, 0.5, 2, "recommended", options).args[0]
    return world.sample(model, world.positive), ""


def _prompts(world: World) -> tuple[Tensor, str]:
    from comfyui_diversity.nodes._inputs import read_options
    from comfyui_diversity.nodes.tpso import DiversePrompts, DiversePromptsOptions

    chosen = {**read_options(DiversePromptsOptions, None), "steps": 4}
    options = DiversePromptsOptions.execute(**chosen).args[0]
    found = DiversePrompts.execute(world.clip, TEXT, "", BATCH, 0.8, 0.4, 0, "recommended", options)
    return world.sample(world.model, found.args[0], found.args[1]), str(found.args[-1])


def _schedule(world: World) -> tuple[Tensor, str]:
    from comfyui_diversity.nodes.schedule import ScheduleConditioning

    found = ScheduleConditioning.execute(world.encode(TEXT + " at night"), world.positive, 0.5, 0.0, "hold", 0, "steps")
    return world.sample(world.model, found.args[0]), ""


def _minority(world: World) -> tuple[Tensor, str]:
    from comfyui_diversity.nodes._inputs import read_options
    from comfyui_diversity.nodes.minority import MinorityPrompt, MinorityPromptOptions

    chosen = {**read_options(MinorityPromptOptions, None), "iterations": 2}
    options = MinorityPromptOptions.execute(**chosen).args[0]
    arguments = (world.model, world.clip, TEXT, "base model", 1.0, "cool", "minority", "recommended")
    found = MinorityPrompt.execute(*arguments, options=options)
    with _logged() as lines:
        images = world.sample(*found.args)
    return images, "\n".join(lines)


@contextmanager
def _logged() -> Iterator[list[str]]:
    """What the pack logs inside."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("ComfyUI-Diversity"), Handler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


METHODS: dict[str, Callable[[World], tuple[Tensor, str]]] = {
    "Diverse Noise": lambda world: _noise(world, "stop"),
    "Diverse Noise, full": lambda world: _noise(world, "full"),
    "Diverse Prompts": _prompts,
    "Schedule Conditioning": _schedule,
    "Minority Prompt": _minority,
}


def cell(world: World, method: Callable[[World], tuple[Tensor, str]]) -> str:
    """One cell of the table; never empty."""
    try:
        images, report = method(world)
    except ValueError as error:
        return f"refused: {str(error).split('. ')[0]}"
    except Exception as error:
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0]}"
    found = world.judged(images)
    searched = "search without gradients" in report or "Searched without" in report
    return f"{found}, by search" if found == "works" and searched else found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SCRATCH, help="folder of the results")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    _load_small()
    release = ".".join(map(str, version(HERE.comfyui()) or ("unknown",)))
    file = options.out / f"families_{release}.json"
    table = PrintedTable(file, "python -m benchmarks.families", ["kind of model", "set-up", *METHODS])
    for name, kind in KINDS.items():
        for setup in kind.setups:
            if options.only not in f"{name}, {setup}":
                continue
            with torch.inference_mode():
                try:
                    world = World(kind, setup)
                    cells = [cell(world, method) for method in METHODS.values()]
                except LookupError as error:
                    cells = [f"not there: {error}"] * len(METHODS)
                except Exception as error:
                    cells = [f"fails without us: {type(error).__name__}: {str(error).splitlines()[0]}"] * len(METHODS)
            table.add([name, setup, *cells], f"{name}, {setup}")


if __name__ == "__main__":
    main()
