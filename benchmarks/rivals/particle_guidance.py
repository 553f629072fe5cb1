"""Particle guidance: images of a batch repel each other while they are sampled (Corso et al., ICLR 2024, arXiv
2310.13102)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..job import Change, Job, noise_share


def squared_distances(flat: Tensor) -> Tensor:
    """`[N, N]` of rows `[N, D]`."""
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()


def median_of_pairs(values: Tensor) -> Tensor:
    """Median over the pairs of different rows of a symmetric `[N, N]`."""
    count = len(values)
    return values[~torch.eye(count, dtype=torch.bool)].median()


def repulsion(flat: Tensor) -> Tensor:
    """h/2 times the gradient of log Phi = -1/2 sum_ij k(x_i, x_j) for the kernel exp(-|x_i - x_j|^2 / h) with the
    paper's bandwidth, the median squared distance over log N: sum_j (x_i - x_j) k(x_i, x_j), `[N, D]`."""
    squared = squared_distances(flat)
    width = median_of_pairs(squared) / torch.tensor(float(len(flat))).log()
    kernel = torch.exp(-squared / width)
    return flat * kernel.sum(1, keepdim=True) - kernel @ flat


def particle_guidance(strength: float, pool: int = 1) -> Change:
    """The clean estimates are moved by strength x (share of noise)^2 x the repulsion, as the score would be by the
    gradient of the potential. pool: noisy latents are compared after averaging over squares of so many cells."""

    def move(noisy: Tensor, _clean: Tensor, share: float) -> Tensor:
        pooled = F.avg_pool2d(noisy, pool)
        force = repulsion(pooled.flatten(1)).view_as(pooled)
        return strength * share**2 * F.interpolate(force, scale_factor=float(pool), mode="nearest")

    return lambda job: move_estimates(job, move)


def move_estimates(job: Job, move: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Adds `move(noisy, clean estimate, share of noise)` to the clean estimates of every step."""

    def after_cfg(args: dict[str, Any]) -> Tensor:
        share = noise_share(args["model"].model_sampling, args["sigma"])
        sampling = args["model"].model_sampling
        noisy = args["input"]
        if float(sampling.sigma_max) > 1:  # the same scale for all kinds of models
            noisy = noisy / (1 + float(args["sigma"].max()) ** 2) ** 0.5
        return args["denoised"] + move(noisy, args["denoised"], share)

    job.model = job.model.clone()
    # For CFG 1 ComfyUI leaves the negative out, and still calls this.
    job.model.set_model_sampler_post_cfg_function(after_cfg)
