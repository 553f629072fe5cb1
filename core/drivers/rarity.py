"""How rare finished pictures are to the model that made them: the minority objective, by forward passes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..hooks.chunks import Batch
from ..hooks.noise_levels import sigma_at
from ..hooks.sampling import SamplerRun, at_start, check_shape
from ..methods.minority import noise_share, rarity


def rarity_of(
    model: ModelPatcher,
    positive: list,
    latent: dict[str, Any],
    seed: int,
    renoise: float = 0.5,
    looks: int = 4,
    chunk: int = 0,
    after_look: Callable[[], None] = lambda: None,
) -> Tensor:
    """How far denoising under the plain prompt leads away from each picture that was noised again, `[B]` on the CPU.

    latent: finished pictures, `samples`, and `noise_mask` if it has one: only the masked part counts.
    renoise: how noisy, as a share of all timesteps, above 0.
    looks: the value is the mean over so many noises; each is the same for all pictures, so that chance moves all alike.
    chunk: see `Batch`. after_look: called after each of the looks.

    Loads the model and reads the conditioning the way a sampler does, without guidance; nothing given is changed.
    Raises ValueError for a value that is not allowed, a latent without pictures, and a model that gives NaN.
    """
    samples = latent["samples"]
    check_shape(samples)
    if torch.count_nonzero(samples) == 0:
        raise ValueError("latent is empty (zero everywhere): give the finished pictures, from the sampler.")
    if not 0 < renoise <= 1:
        raise ValueError(f"renoise is {renoise}; it must be above 0, to 1.")
    if looks < 1:
        raise ValueError(f"looks is {looks}; it must be 1 or more.")
    sigma = sigma_at(model.get_model_object("model_sampling"), noise_share(renoise, 0.0))

    def look(run: SamplerRun) -> Tensor:
        values = torch.zeros(len(samples), dtype=torch.float64)
        for number in range(looks):
            values += _second_look(run, seed + number, chunk).double().cpu()
            after_look()
        return values / looks

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    # The noise here gives no more than its shape.
    values = at_start(guider, torch.tensor([sigma, 0.0]), torch.zeros_like(samples), latent, seed, look)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("The model gives NaN or infinity for these pictures, so they cannot be compared.")
    return values


def _second_look(run: SamplerRun, seed: int, chunk: int) -> Tensor:
    pictures, sigma = run.latent_image, run.sigmas[0]
    generator = torch.Generator().manual_seed(seed % 2**63)
    noise = torch.randn(pictures.shape[1:], generator=generator).to(pictures)
    batch = Batch(run.guider, len(pictures), chunk)

    def length(rows: slice) -> Tensor:
        own = pictures[rows]
        # A copy, to which the models' own code adds in place.
        noisy = run.model.model_sampling.noise_scaling(sigma, noise.expand_as(own).clone(), own, False)
        entries = batch.guider(rows).conds["positive"]
        options = run.extra_args["model_options"]
        [again] = comfy.samplers.calc_cond_batch(run.model, [entries], noisy, sigma.expand(len(own)), options)
        mask = batch.rows(run.denoise_mask, rows)
        return rarity(own, again if mask is None else again * mask + own * (1 - mask))

    with torch.no_grad():
        return batch.each(length)
