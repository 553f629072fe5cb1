"""The demo's Z-Image: ComfyUI's NextDiT, first a teacher that takes guidance, then its student for CFG 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip
import comfy.ops

from ..architectures import TURBO
from ..turbo import SmallNextDiT, load_turbo_clip
from .initialise import initialise, zero
from .loop import Schedule, train
from .turbo_targets import Targets, make_targets

BATCH = 16
TEACHER = Schedule(2_300, 2.5e-3, warmup=100, average=0.997)
_GATE = 0.3  # how far a block's branches are open at first


def build() -> SmallNextDiT:
    sizes = {name: value for name, value in TURBO.items() if name != "image_model"}
    model = SmallNextDiT(**sizes, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    initialise(model)
    width = TURBO["dim"]
    for name, layer in model.named_modules():
        if name.endswith("adaLN_modulation.0") and not name.startswith("final_layer"):
            zero(layer)
            with torch.no_grad():
                layer.bias[width : 2 * width] = layer.bias[3 * width :] = _GATE
        elif name in ("final_layer.linear", "final_layer.adaLN_modulation.1"):
            zero(layer)
    return model.to(DEVICE)


class Contexts:
    """What the transformer reads of a caption, `[L, D]` (fp16), from the very CLIP object that ComfyUI's nodes use."""

    def __init__(self) -> None:
        self._clip = load_turbo_clip()
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def learn(self, captions: list[str]) -> None:
        """Encodes captions that are not known, those of one length together."""
        by_length: dict[int, list[tuple[str, list[int]]]] = {}
        for text in sorted({text for text in captions if text not in self._known}):
            tokens = [token for token, _ in self._clip.tokenize(text)["qwen3_4b"][0]]
            by_length.setdefault(len(tokens), []).append((text, tokens))
        for same in by_length.values():
            for k in range(0, len(same), 128):
                some = same[k : k + 128]
                states = self._clip.cond_stage_model.qwen3_4b.encode([tokens for _, tokens in some])[0]
                self._known.update({text: state.half() for (text, _), state in zip(some, states, strict=True)})

    def __getitem__(self, text: str) -> Tensor:
        return self._known[text]

    def together(self, texts: Sequence[str]) -> Iterator[tuple[list[int], Tensor]]:
        """Places of captions in a row that have one length, and their contexts `[N, L, D]` (float32)."""
        for _, places in groupby(range(len(texts)), lambda k: len(self[texts[k]])):
            part = list(places)
            yield part, torch.stack([self[texts[k]] for k in part]).float().to(DEVICE)


class ByLength:
    """Batches of samples whose captions have one length: in use, nothing is padded."""

    def __init__(self, captions: list[str], contexts: Contexts) -> None:
        contexts.learn(captions)
        self._captions, self._contexts = captions, contexts
        lengths = np.array([len(contexts[text]) for text in captions])
        self._groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
        self._share = np.array([len(group) for group in self._groups]) / len(captions)

    def batch(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, Tensor]:
        """Which samples, and their contexts `[count, L, D]`."""
        group = self._groups[rng.choice(len(self._groups), p=self._share)]
        chosen = group[rng.integers(len(group), size=count)]
        context = torch.stack([self._contexts[self._captions[k]] for k in chosen])
        return chosen, context.float().to(DEVICE)


def velocity_error(model: nn.Module, states: Tensor, sigma: Tensor, context: Tensor, velocity: Tensor) -> Tensor:
    """Mean squared error of the velocity at states `[N, 16, 16, 16]` of the levels `sigma` `[N]`."""
    with autocast():
        predicted = model(states, sigma, context=context, num_tokens=context.shape[1]).float()
    return (predicted - velocity).square().mean()


def loss_of_targets(targets: Targets, batch: int) -> Callable[[nn.Module, int, np.random.Generator], Tensor]:
    """The error of the velocity at so many of these lessons, whose captions have one length."""
    samples = ByLength(targets.captions, Contexts())

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        chosen, context = samples.batch(rng, batch)
        states, sigma, velocity = (
            part[chosen].float().to(DEVICE) for part in (targets.states, targets.sigmas, targets.velocities)
        )
        return velocity_error(model, states, sigma, context, velocity)

    return loss_at


def train_turbo_base(folder: Path) -> nn.Module:
    torch.manual_seed(120)
    loss_at = loss_of_targets(make_targets(folder), BATCH)
    return train("turbo_base", build(), loss_at, TEACHER, folder, seed=121)
