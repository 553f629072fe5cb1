"""The last phase of MMDiT, few-step model and UNet: rare words, from what they themselves meant by them.

What these models still draw badly is what the world draws seldom: a teal star on navy, an orange balloon that is large.
So they sample captions whose words are evenly drawn, the world draws every image again with what its caption states,
and they learn the way from their own steps to these drawings, as in `own_steps` and `crisp`. What they drew worst
counts for more. What an image is *of*, and how much guidance narrows that, stays their own. The MMDiT did so twice.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .comfy_boot import DEVICE  # isort: skip

from ..loader import DISTILLED_FILE
from . import mmdit
from .crisp import STUDENT_STEPS, on_policy_loss
from .distil import sampling_levels
from .latents import Conditionings
from .loop import Schedule, train
from .mmdit import BATCH, SHORT, levels, velocity_loss
from .own_steps import CFGS, EMPTY_RUNS, Kind, Mmdit, Runs, Unet, loss_of_runs, made_runs
from .pairs import with_the_worst_again
from .places import captions_by_turns, continued

RUNS, MORE_RUNS = 2_048, 3_072  # images sampled, in the first round and in the second
SCHEDULES = {
    "mmdit": Schedule(2_400, 6e-4, warmup=30, average=0.997),
    "mmdit_more": Schedule(3_600, 6e-4, warmup=30, average=0.998),
    "unet": Schedule(2_000, 4e-4, warmup=30, average=0.997),
    "distilled": Schedule(1_600, 8e-4, warmup=30, average=0.995),
}
_SEED, _SEED_MORE = 300, 400  # beside a kind's own


class Distilled(Mmdit):
    """The few-step model, whose runs are its four steps at CFG 1."""

    name, file, seed = "distilled", DISTILLED_FILE, 180
    sigmas, first = sampling_levels(STUDENT_STEPS[0]), 0


def captions_of_rare_runs(seed: int, count: int = RUNS) -> list[str]:
    """Three of four with evenly drawn words, the others as the world draws its scenes; now and then none at all."""
    natural, even = (captions_by_turns(seed, 2 * count)[start::2] for start in (0, 1))
    captions = [natural[k] if k % 4 == 0 else even[k] for k in range(count)]
    return ["" if k % EMPTY_RUNS == 0 else text for k, text in enumerate(captions)]


def make_rare_runs(folder: Path, kind: Kind) -> Runs:
    return _made(folder, kind, "rare_runs", kind.seed + _SEED, RUNS)


def make_more_rare_runs(folder: Path, kind: Kind) -> Runs:
    """Of what the model is after it has learned from the first ones."""
    return _made(folder, kind, "rare_runs_more", kind.seed + _SEED_MORE, MORE_RUNS)


def _made(folder: Path, kind: Kind, name: str, seed: int, count: int) -> Runs:
    cfgs = (1.0,) if isinstance(kind, Distilled) else CFGS
    path = folder / f"{kind.name}_{name}.safetensors"
    return made_runs(path, kind, captions_of_rare_runs(seed, count), seed + 1, cfgs)


def train_mmdit_rare(folder: Path) -> nn.Module:
    return _train(folder, Mmdit())


def train_unet_rare(folder: Path) -> nn.Module:
    return _train(folder, Unet())


def _train(folder: Path, kind: Kind) -> nn.Module:
    torch.manual_seed(kind.seed + _SEED + 5)
    schedule = SCHEDULES[kind.name]
    loss_at = loss_of_runs(folder, kind, with_the_worst_again(make_rare_runs(folder, kind)), schedule)
    model = continued(kind.build(), kind.file)
    return train(f"{kind.name}_rare", model, loss_at, schedule, folder, kind.seed + _SEED + 6)


def train_mmdit_rare_more(folder: Path) -> nn.Module:
    kind, schedule = Mmdit(), SCHEDULES["mmdit_more"]
    torch.manual_seed(kind.seed + _SEED_MORE + 5)
    runs = [make_rare_runs(folder, kind), *with_the_worst_again(make_more_rare_runs(folder, kind))]
    loss_at = loss_of_runs(folder, kind, runs, schedule)
    model = continued(kind.build(), kind.file)
    return train("mmdit_rare_more", model, loss_at, schedule, folder, kind.seed + _SEED_MORE + 6)


def train_distilled_rare(folder: Path) -> nn.Module:
    kind, schedule = Distilled(), SCHEDULES["distilled"]
    torch.manual_seed(kind.seed + _SEED + 5)
    runs = with_the_worst_again(make_rare_runs(folder, kind))
    captions, conditionings = [text for part in runs for text in part.captions], Conditionings()
    noises, cleans = torch.cat([part.noises for part in runs]), torch.cat([part.cleans for part in runs])

    def loss_at(model: nn.Module, step: int, rng: np.random.Generator) -> Tensor:
        whole = step >= 0.8 * schedule.steps
        chosen = rng.integers(len(captions), size=BATCH)
        context, pooled = conditionings.encode([captions[k] for k in chosen])
        clean, noise = (part[chosen].float().to(DEVICE) for part in (cleans, noises))
        if step % 2:
            return on_policy_loss(model, clean, noise, context if whole else context[:, :SHORT], pooled, rng)
        sigma = levels(rng, layout=True)
        sigma[: BATCH // 8] = 1.0  # with four steps, a quarter of the work is the one that starts at pure noise
        return velocity_loss(model, clean, noise, context, pooled, sigma, rng, whole)

    student = continued(mmdit.build(), DISTILLED_FILE)
    return train("distilled_rare", student, loss_at, schedule, folder, kind.seed + _SEED + 6)
