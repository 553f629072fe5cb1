"""How rare finished images are to the model that made them: the minority objective, by forward passes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..hooks.caches import without_caches
from ..hooks.chunks import Batch, check_chunk_size
from ..hooks.denoise import check_in_force
from ..hooks.noise_levels import sigma_at
from ..hooks.sampling import SamplerRun, at_start, check_shape
from ..methods.minority import noise_share, rarity
from ..require import require


def rarity_of(
    model: ModelPatcher,
    positive: list,
    latent: dict[str, Any],
    seed: int,
    renoise: float = 0.75,
    noises: int = 4,
    chunk_size: int = -1,
    after_noise: Callable[[], None] = lambda: None,
) -> Tensor:
    """How far denoising under the plain prompt leads away from each image that was noised again, `[B]` on the CPU.

    latent: finished images, `samples`, and `noise_mask` if it has one: only the masked part counts.
    renoise: how noisy, as a share of all timesteps, above 0.
    noises: the value is the mean over so many; each is the same for all images, so that chance moves all alike.
    chunk_size: images that go through the model at once; -1 is all, and fewer when memory runs out.
    after_noise: called after each of the noises.

    Loads the model and reads the conditioning the way a sampler does, without guidance; nothing given is changed.
    Raises ValueError for a value that is not allowed, a latent without images, and a model that gives NaN.
    """
    samples = latent["samples"]
    check_shape(samples)
    if torch.count_nonzero(samples) == 0:
        raise ValueError("latent is empty (zero everywhere): give the finished images, from the sampler.")
    require(0 < renoise <= 1, "renoise", renoise, "above 0, to 1")
    require(noises >= 1, "noises", noises, "1 or more")
    check_chunk_size(chunk_size)
    sigma = sigma_at(model.get_model_object("model_sampling"), noise_share(renoise, 0.0))

    def mean(run: SamplerRun) -> Tensor:
        check_in_force(run.guider.conds["positive"], sigma, f"where renoise {renoise:g} noises the images")
        values = torch.zeros(len(samples), dtype=torch.float64)
        for number in range(noises):
            values += _lengths(run, seed + number, chunk_size).cpu().double()  # not every device has float64
            after_noise()
        return values / noises

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    # The noise here gives no more than its shape.
    values = at_start(guider, torch.tensor([sigma, 0.0]), torch.zeros_like(samples), latent, seed, mean)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("The model gives NaN or infinity for these images, so they cannot be compared.")
    return values


def in_digits(values: Tensor) -> list[str]:
    """Of each value the five digits that count: more would tell apart what only rounding does."""
    return [f"{value:.5g}" for value in values.tolist()]


def _lengths(run: SamplerRun, seed: int, chunk_size: int) -> Tensor:
    """Distance of each image to its re-noised estimate under one noise, `[B]`."""
    images, sigma = run.latent_image, run.sigmas[0]
    generator = torch.Generator().manual_seed(seed % 2**63)
    noise = torch.randn(images.shape[1:], generator=generator).to(images)
    batch = Batch(run.guider, len(images), chunk_size)

    def length(rows: slice) -> Tensor:
        own = images[rows]
        # A copy, to which the models' own code adds in place.
        noisy = run.model.model_sampling.noise_scaling(sigma, noise.expand_as(own).clone(), own, False)
        entries = batch.guider(rows).conds["positive"]
        options = without_caches(run.extra_args["model_options"])
        [renoised] = comfy.samplers.calc_cond_batch(run.model, [entries], noisy, sigma.expand(len(own)), options)
        mask = batch.rows(run.denoise_mask, rows)
        return rarity(own, renoised if mask is None else renoised * mask + own * (1 - mask))

    with torch.no_grad():
        return batch.each(length)
