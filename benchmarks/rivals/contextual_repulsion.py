"""Repulsion in the contextual space: text tokens of a batch, inside the transformer (arXiv 2603.28762)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..job import Change, Job, share_done
from .blocks import replace_blocks


def vendi_gradient(features: Tensor) -> Tensor:
    """Gradient `[N, D]` of the log Vendi score of rows `[N, D]` (cosine kernel): the direction in which they become
    more different."""
    with torch.inference_mode(False), torch.enable_grad():
        rows = features.detach().clone().double().requires_grad_()
        unit = F.normalize(rows, dim=1)
        # A little of the identity: the eigenvalues of equal rows are 0, where the entropy has no gradient.
        kernel = unit @ unit.T / len(unit)
        kernel = kernel + 1e-9 * torch.eye(len(unit), dtype=kernel.dtype)
        shares = torch.linalg.eigvalsh(kernel).clamp(min=1e-12)
        entropy = -(shares * shares.log()).sum()
        return torch.autograd.grad(entropy, rows)[0].to(features)


def repelled(tokens: Tensor, strength: float) -> Tensor:
    """Text tokens `[N, T, D]` of a batch moved along that gradient, each image by `strength` times its tokens' mean
    distance from the batch's mean, and all brought back to their lengths."""
    flat = tokens.flatten(1)
    gradient = vendi_gradient(flat)
    apart = (flat - flat.mean(0)).norm(dim=1, keepdim=True)
    step = strength * apart * F.normalize(gradient, dim=1)
    moved = (flat + step).unflatten(1, tokens.shape[1:])
    return F.normalize(moved, dim=-1) * tokens.norm(dim=-1, keepdim=True)


def contextual_repulsion(strength: float, end: float = 0.2) -> Change:
    """Between all blocks, over the share `end` of the steps, on the tokens of the positive prompt."""

    def after(out: dict[str, Tensor | None], options: dict[str, Any]) -> None:
        text = out.get("txt")
        if text is None or share_done(options, options["sigmas"]) >= end - 1e-6:
            return
        kinds = options["cond_or_uncond"]
        parts = list(text.chunk(len(kinds)))
        for k, kind in enumerate(kinds):
            if kind == 0 and len(parts[k]) > 1:
                parts[k] = repelled(parts[k], strength)
        out["txt"] = torch.cat(parts)

    def change(job: Job) -> None:
        replace_blocks(job, range(len(job.model.model.diffusion_model.joint_blocks)), after)

    return change
