"""The denoisers' last phase: they learn to make good what their own earlier steps have done.

In training, a half-finished image is a drawing under noise; in sampling it is whatever the steps before have left, a
heart half red and half pink, and nothing has taught the model what to do with that. So its own sampling, without and
with guidance, is followed through the levels at which the scene is decided but not yet finished, and from there it
learns the way to the finished image as the world draws it again (as in DAgger: Ross, Gordon and Bagnell 2011). Half of
the batches are drawings under noise as before, and levels above stay as they are: what the images are *of*, and how
much guidance narrows that, is not to change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE, autocast  # isort: skip
from comfy.model_sampling import ModelSamplingDiscrete
from comfy.samplers import calculate_sigmas

from ..loader import MMDIT_FILE, UNET_FILE
from . import mmdit, unet
from .distil import sampling_levels
from .latents import Conditionings
from .loop import Schedule, train
from .mmdit import SHORT
from .pairs import Make, made_pairs
from .places import EvenlyStated, captions_by_turns, continued
from .redraw import Redrawn

STEPS = 12  # of each run
# Once more, by the weights that learned from the first ones: images sampled, and how they are learned from.
AGAIN, AGAIN_SCHEDULE = 768, Schedule(400, 5e-4, warmup=20, average=0.99)
CFGS = (1.0, 1.0, 1.5, 2.0, 3.0)  # of the runs, by turns
EMPTY_RUNS, EMPTY = 16, 0.12  # every so many runs, and the share of steps, that read no caption
NATURAL, UNIFORM = 4_000, 4_000  # drawings of each kind for the other batches
WHOLE = 0.85  # of a schedule: from there on captions are read with all of their padding
_CHUNK = 64


class Kind(ABC):
    """A denoiser that is trained here."""

    name: str
    file: str  # of its weights
    sigmas: list[float]  # of STEPS steps, from the highest to 0
    first: int  # the first step that is learned from
    schedule: Schedule
    runs: int  # images sampled
    rounds: tuple[str, ...]  # of the schedule, one behind the other
    batch: int
    seed: int

    @abstractmethod
    def build(self) -> nn.Module: ...

    @abstractmethod
    def clean(self, model: nn.Module, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        """The model's estimate of the clean latents in `x` `[N, 16, 16, 16]` of noise levels `sigma` `[N]`."""

    @abstractmethod
    def start(self, noise: Tensor) -> Tensor:
        """Where sampling begins."""

    @abstractmethod
    def weight(self, sigma: Tensor) -> Tensor:
        """Of the squared error of the estimate at levels `sigma` `[N]`."""

    @abstractmethod
    def drawing_loss(
        self, model: nn.Module, clean: Tensor, captions: list[str], rng: np.random.Generator, whole: bool
    ) -> Tensor:
        """Loss on drawings under noise, as in the phases before."""


class Mmdit(Kind):
    name, file, seed = "mmdit", MMDIT_FILE, 160
    sigmas, first = sampling_levels(STEPS), 4
    schedule, batch, runs = Schedule(700, 6e-4, warmup=30, average=0.995), mmdit.BATCH, 1_536
    rounds = ("own_steps", "own_steps_more")

    def __init__(self) -> None:
        self._conditionings = Conditionings()

    def build(self) -> nn.Module:
        return mmdit.build()

    def start(self, noise: Tensor) -> Tensor:
        return noise

    def clean(self, model: nn.Module, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        with autocast():
            velocity = model(x, 1000 * sigma, context=context, y=pooled).float()
        return x - sigma.view(-1, 1, 1, 1) * velocity

    def weight(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def drawing_loss(
        self, model: nn.Module, clean: Tensor, captions: list[str], rng: np.random.Generator, whole: bool
    ) -> Tensor:
        context, pooled = self._conditionings.encode(captions)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32)).to(DEVICE)
        levels = mmdit.levels(rng, layout=False)
        return mmdit.velocity_loss(model, clean, noise, context, pooled, levels, rng, whole)


class Unet(Kind):
    name, file, seed = "unet", UNET_FILE, 170
    sigmas, first = calculate_sigmas(ModelSamplingDiscrete(), "normal", STEPS).tolist(), 3
    schedule, batch, runs = Schedule(700, 4e-4, warmup=30, average=0.995), 32, 1_024
    rounds = ("own_steps",)

    def __init__(self) -> None:
        self._sampling, self._loss = ModelSamplingDiscrete().to(DEVICE), unet.NoiseLoss()

    def build(self) -> nn.Module:
        return unet.build()

    def start(self, noise: Tensor) -> Tensor:
        return (1 + self.sigmas[0] ** 2) ** 0.5 * noise

    def clean(self, model: nn.Module, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        level = sigma.view(-1, 1, 1, 1)
        with autocast():
            times = self._sampling.timestep(sigma).float()
            noise = model(x / (1 + level**2).sqrt(), times, context=context).float()
        return x - level * noise

    def weight(self, sigma: Tensor) -> Tensor:
        return (1 + 1 / sigma**2).clamp(max=5.0)

    def drawing_loss(
        self, model: nn.Module, clean: Tensor, captions: list[str], rng: np.random.Generator, whole: bool
    ) -> Tensor:
        return self._loss(model, clean, captions, rng, lowest=None, layout=True)


def captions_of_runs(seed: int, count: int) -> list[str]:
    """By turns of a scene as the world draws it, now and then none, and with evenly drawn words."""
    return ["" if k % EMPTY_RUNS == 0 else text for k, text in enumerate(captions_by_turns(seed, count))]


@dataclass(frozen=True)
class Runs:
    """Noises, half-finished latents `[N, STEPS - first, 16, 16, 16]` and what was meant, `[N, 16, 16, 16]`, fp16.

    error: `[N]`, mean squared difference between what the model made and what it meant.
    """

    captions: list[str]
    noises: Tensor
    states: Tensor
    cleans: Tensor
    error: Tensor


def make_mmdit_runs(folder: Path) -> Runs:
    return make_runs(folder, Mmdit())


def make_mmdit_runs_again(folder: Path) -> Runs:
    return make_runs(folder, Mmdit(), again=True)


def make_unet_runs(folder: Path) -> Runs:
    return make_runs(folder, Unet())


def make_runs(folder: Path, kind: Kind, again: bool = False) -> Runs:
    """By the weights in the file. again: another set, for after they have learned from the first."""
    count, seed = (AGAIN, kind.seed + 50) if again else (kind.runs, kind.seed)
    name = f"{kind.name}_own_steps{'_again' if again else ''}.safetensors"
    return made_runs(folder / name, kind, captions_of_runs(seed, count), seed + 1, CFGS)


def made_runs(path: Path, kind: Kind, captions: list[str], seed: int, cfgs: Sequence[float]) -> Runs:
    """By the weights in the file, at these scales of guidance by turns; from the file at `path` if there is one."""

    def teacher() -> Make:
        model, conditionings, redrawn = continued(kind.build(), kind.file).eval(), Conditionings(), Redrawn()

        def make(noise: Tensor, own: slice) -> dict[str, Tensor]:
            scales = torch.tensor([cfgs[k % len(cfgs)] for k in range(len(captions))[own]], device=DEVICE)
            states, made = followed(kind, model, noise, captions[own], conditionings, scales)
            clean = redrawn(made, captions[own])
            return {"states": states.half(), "clean": clean.half(), "error": (made - clean).square().mean((1, 2, 3))}

        return make

    found = made_pairs(path, len(captions), _CHUNK, seed, teacher)
    return Runs(captions, *(found[name] for name in ("noise", "states", "clean", "error")))


def followed(
    kind: Kind, model: nn.Module, noise: Tensor, captions: list[str], conditionings: Conditionings, cfg: Tensor
) -> tuple[Tensor, Tensor]:
    """The latents before each step that is learned from, `[N, K, 16, 16, 16]`, and the finished ones, by Euler steps
    with guidance of scale `cfg` `[N]`."""
    context, pooled = conditionings.encode(captions)
    empty_context, empty_pooled = conditionings.encode([""])
    guided = cfg != 1
    count, states = int(guided.sum()), []
    contexts = torch.cat([context, empty_context.expand(count, -1, -1)])[:, :SHORT]
    vectors = torch.cat([pooled, empty_pooled.expand(count, -1)])
    scale, x = cfg[guided, None, None, None], kind.start(noise)
    for k, (sigma, following) in enumerate(pairwise(kind.sigmas)):
        if k >= kind.first:
            states.append(x)
        both = torch.cat([x, x[guided]])
        found = kind.clean(model, both, torch.full((len(both),), sigma, device=DEVICE), contexts, vectors)
        clean, empty = found[: len(x)], found[len(x) :]
        clean[guided] = empty + scale * (clean[guided] - empty)
        x = x + (following / sigma - 1) * (x - clean)
    return torch.stack(states, 1), x


def train_mmdit_own_steps(folder: Path) -> nn.Module:
    return train_own_steps(folder, Mmdit())


def train_unet_own_steps(folder: Path) -> nn.Module:
    return train_own_steps(folder, Unet())


def train_own_steps(folder: Path, kind: Kind) -> nn.Module:
    torch.manual_seed(kind.seed + 5)
    loss_at = loss_of_runs(folder, kind, [make_runs(folder, kind)], kind.schedule)
    model = continued(kind.build(), kind.file)
    for k, name in enumerate(kind.rounds):
        model = train(
            f"{kind.name}_{name}", model.requires_grad_(True), loss_at, kind.schedule, folder, kind.seed + 6 + k
        )
    return model


def train_mmdit_own_steps_again(folder: Path) -> nn.Module:
    kind = Mmdit()
    torch.manual_seed(kind.seed + 55)
    runs = [make_runs(folder, kind), make_runs(folder, kind, again=True)]
    loss_at = loss_of_runs(folder, kind, runs, AGAIN_SCHEDULE)
    model = continued(kind.build(), kind.file)
    return train(f"{kind.name}_own_steps_again", model, loss_at, AGAIN_SCHEDULE, folder, kind.seed + 56)


def loss_of_runs(
    folder: Path, kind: Kind, runs: list[Runs], schedule: Schedule
) -> Callable[[nn.Module, int, np.random.Generator], Tensor]:
    """Of a batch of drawings and, by turns, of one along the runs."""
    conditionings, drawings = Conditionings(), EvenlyStated(folder, NATURAL, UNIFORM)
    sigmas = torch.tensor(kind.sigmas[kind.first : STEPS], device=DEVICE)
    captions = [text for part in runs for text in part.captions]
    states, cleans = torch.cat([part.states for part in runs]), torch.cat([part.cleans for part in runs])

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        whole = step >= WHOLE * schedule.steps
        if step % 2:
            return kind.drawing_loss(model, *drawings.batch(rng, kind.batch), rng, whole)
        chosen, at = rng.integers(len(captions), size=kind.batch), rng.integers(len(sigmas), size=kind.batch)
        context, pooled = conditionings.encode(["" if rng.random() < EMPTY else captions[k] for k in chosen])
        state, clean = (part.float().to(DEVICE) for part in (states[chosen, at], cleans[chosen]))
        found = kind.clean(model, state, sigmas[at], context if whole else context[:, :SHORT], pooled)
        return (kind.weight(sigmas[at]).view(-1, 1, 1, 1) * (found - clean).square()).mean()

    return loss_at
