"""DiverseFlow: a determinantal point process over the clean estimates of a batch (Morshed and Boddeti, CVPR 2025,
arXiv 2504.07894)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..job import Change, Job
from .particle_guidance import median_of_pairs, move_estimates, squared_distances


def log_likelihood(flat: Tensor, spread: float = 1.0) -> Tensor:
    """log det(L) - log det(L + I) of rows `[N, D]` for L_ij = exp(-spread |x_i - x_j|^2 / (2 median)); a scalar."""
    squared = squared_distances(flat)
    kernel = torch.exp(-spread * squared / (2 * median_of_pairs(squared).detach()))
    identity = torch.eye(len(flat), dtype=flat.dtype)
    return torch.logdet(kernel + 1e-6 * identity) - torch.logdet(kernel + identity)


def gradient(flat: Tensor) -> Tensor:
    """Of `log_likelihood` with respect to the rows, `[N, D]`."""
    with torch.inference_mode(False), torch.enable_grad():
        rows = flat.detach().clone().double().requires_grad_()
        return torch.autograd.grad(log_likelihood(rows), rows)[0].to(flat)


def dpp(strength: float, pool: int = 1) -> Change:
    """The velocity of each image gets the gradient, brought to `strength` times the velocity's own length and fading
    with the noise. Estimates are compared in the latent space (the paper: a vision model's features), averaged over
    squares of `pool` cells; the gradient stops at the network (the paper's goes through it)."""

    def move(noisy: Tensor, clean: Tensor, share: float) -> Tensor:
        pooled = F.avg_pool2d(clean, pool)
        force = F.interpolate(gradient(pooled.flatten(1)).view_as(pooled), scale_factor=float(pool), mode="nearest")
        lengths = [x.flatten(1).norm(dim=1)[:, None, None, None] for x in (noisy - clean, force)]
        return strength * share * force * lengths[0] / lengths[1].clamp(min=1e-12)

    def change(job: Job) -> None:
        if job.images > 1:
            move_estimates(job, move)

    return change
