"""One batch of images to sample, which rivals and methods change part by part before it is sampled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .world import World

# What a rival or a method does to a job before it is sampled.
Change = Callable[["Job"], None]
Sample = Callable[["Job"], Tensor]


@dataclass
class Job:
    """A batch of `images` for one prompt, as KSampler samples it by the recipe, until something changes it.

    noise: `[B, 16, 16, 16]`, KSampler's own for this seed. model: a patched clone, or the world's own.
    positive, negative: CONDITIONING. sample: what turns the job into finished latents.
    """

    world: World
    text: str
    seed: int
    images: int
    cfg: float
    model: Any
    positive: list
    negative: list
    noise: Tensor
    sample: Sample = field(default=lambda job: job.plain())

    def generator(self, purpose: str) -> torch.Generator:
        """Of its own for each seed and purpose, so that two parts of a job never draw the same noise."""
        digest = hashlib.sha256(f"{self.seed} {purpose}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def plain(self, **named: Any) -> Tensor:
        """Finished latents of this job's noise, model and conditioning; `named` goes to ComfyUI's sampling."""
        import comfy.sample

        recipe = self.world.recipe
        given: dict[str, Any] = {"model": self.model, "noise": self.noise, "latent_image": torch.zeros_like(self.noise)}
        given |= {"seed": self.seed, "disable_pbar": True, **named}
        model, noise, latent = (given.pop(name) for name in ("model", "noise", "latent_image"))
        return comfy.sample.sample(
            model, noise, recipe.steps, self.cfg, recipe.sampler, recipe.scheduler,
            self.positive, self.negative, latent, **given,
        )  # fmt: skip


@torch.inference_mode()
def new_job(world: World, text: str, seed: int, images: int, cfg: float) -> Job:
    """The job of the plain model."""
    import comfy.sample

    noise = comfy.sample.prepare_noise(torch.zeros(images, 16, 16, 16), seed)
    return Job(
        world, text, seed, images, cfg, world.model, world.conditioning(text), world.conditioning(""), noise
    )  # fmt: skip


@torch.inference_mode()
def finished(job: Job) -> Tensor:
    """Finished latents `[images, 16, 16, 16]`."""
    return job.sample(job)


def share_done(options: dict[str, Any], sigma: Tensor) -> float:
    """How far a run is at this sigma, 0..1 of its steps; `options` are its transformer options."""
    from comfyui_diversity.core.methods.schedule import step_position

    sigmas = options["sample_sigmas"].tolist()
    return step_position(sigmas, float(sigma.max())) / max(len(sigmas) - 1, 1)


def noise_share(model_sampling: Any, sigma: Tensor) -> float:
    """How much of a noisy image is noise, 0..1: sigma itself for flows, sigma / sqrt(1 + sigma^2) for others."""
    value = float(sigma.max())
    return value if float(model_sampling.sigma_max) <= 1 else value / (1 + value * value) ** 0.5
