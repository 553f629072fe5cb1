"""Contrastive Noise Optimization (CNO): initial noises whose one-step clean estimates repel each other.

Kim et al., "Diverse Text-to-Image Generation via Contrastive Noise Optimization", ICLR 2026, arXiv 2510.03813.

What is recommended differs from the paper in three things (docs/measurements/frontier.md): the steps are larger, each
noise keeps its length, and nothing but its coarse structure moves. Fine detail that is moved, too, adds a little to the
difference between images, and much more to the share of them that are broken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import einsum
from torch import Tensor
from torch.nn import functional as F

from ..require import require
from .coarse import Coarse

# Noise [B, C, ...] to its clean estimate [B, C, ...] and the pullback of that estimate: a function that takes a
# gradient with respect to the clean estimate to one with respect to the noise.
Estimate = Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]]

DENOMINATORS = ("all", "positive", "others")
PROJECTIONS = ("spectrum", "norm", "off")
TERMS = ("both", "no attraction", "no repulsion")
FORMS = ("paper", "release")
PUBLISHED_RATE, PUBLISHED_ITERATIONS = 0.01, 3


@dataclass(frozen=True)
class Settings:
    """How noise is optimised. `RECOMMENDED` has what the nodes do by default; `published` gives the paper's.

    strength: how far the steps of Adam together may move a noise value, in standard deviations of the noise; the
        learning rate is strength / iterations, so that more iterations refine the path without lengthening it. The
        projection moves values too, so that some end up further away (at 0.5 up to 0.7).
    iterations: gradient steps; each needs one clean estimate.
    temperature: tau of the InfoNCE loss.
    window: clean estimates are averaged to a window x window grid before they are compared.
    gamma: temperature of the attraction is gamma * tau; None is the closed form, see `closed_form_gamma`.
    denominator: see `contrastive_loss`.
    projection: what each noise keeps after every step: "spectrum" its energy in every frequency band, "norm" its
        length, "off" nothing.
    terms: see `contrastive_loss`.
    cells: above 0, nothing but the coarse structure of each noise moves, the means of cells x cells blocks (each
        scaled to unit variance, which is what strength and projection then mean); 0 moves every value.
    scaled: gradients are divided by the root mean square of the first one, so that Adam's constant, 1e-8, does not
        decide where they are tiny. As published they are not.

    Raises ValueError for a value that is not allowed.
    """

    strength: float = 0.5
    iterations: int = 10
    temperature: float = 0.1
    window: int = 16
    gamma: float | None = None
    denominator: str = "all"
    projection: str = "spectrum"
    terms: str = "both"
    scaled: bool = True
    cells: int = 0

    def __post_init__(self) -> None:
        require(math.isfinite(self.strength) and self.strength >= 0, "strength", self.strength, "0 or more")
        require(self.iterations >= 0, "iterations", self.iterations, "0 or more")
        require(math.isfinite(self.temperature) and self.temperature > 0, "temperature", self.temperature, "above 0")
        require(self.window >= 1, "window", self.window, "1 or more")
        good_gamma = self.gamma is None or (math.isfinite(self.gamma) and self.gamma > 0)
        require(good_gamma, "gamma", self.gamma, "above 0, or auto for the closed form")
        require(self.denominator in DENOMINATORS, "denominator", self.denominator, f"one of {', '.join(DENOMINATORS)}")
        require(self.projection in PROJECTIONS, "projection", self.projection, f"one of {', '.join(PROJECTIONS)}")
        require(self.terms in TERMS, "terms", self.terms, f"one of {', '.join(TERMS)}")
        require(self.cells >= 0, "cells", self.cells, "1 or more, or 0 for every value")

    @property
    def active(self) -> bool:
        """Whether these settings change a noise at all."""
        return self.iterations > 0 and self.strength > 0


RECOMMENDED = Settings(strength=0.5, iterations=3, projection="norm", cells=4)


def published(
    form: str = "paper", strength: float | None = None, iterations: int = PUBLISHED_ITERATIONS, **chosen: Any
) -> Settings:
    """The settings of the paper, or of its released code.

    form: "paper" has every sample in the denominator and gamma in closed form; "release" has the positive in the
        denominator and gamma 1. Neither has a projection, nor scales its gradients.
    strength: None is the published learning rate, 0.01 an iteration.
    chosen: temperature, window and terms, which the paper varies; and what the form has anyway.

    Raises ValueError for an unknown form, and for a value that the form does not have.
    """
    require(form in FORMS, "form", form, f"one of {', '.join(FORMS)}")
    where = f'or auto in published mode with form "{form}"'
    fixed = {"denominator": "all" if form == "paper" else "positive", "projection": "off"}
    for name, value in fixed.items():
        given = chosen.setdefault(name, value)
        require(given == value, name, given, f"{value} {where}")
    require(chosen.get("cells", 0) == 0, "cells", chosen.get("cells"), f"0 {where}")
    gamma = chosen.pop("gamma", None)
    if form == "paper":
        require(gamma is None, "gamma", gamma, 'auto in published mode with form "paper", which has its closed form')
    else:
        require(gamma in (None, 1.0), "gamma", gamma, f"1 {where}")
        gamma = 1.0
    strength = PUBLISHED_RATE * iterations if strength is None else strength
    return Settings(strength=strength, iterations=iterations, gamma=gamma, scaled=False, **chosen)


def closed_form_gamma(negatives: int, temperature: float) -> float:
    """gamma = 1 / (tau ln(n) + 1) for n negatives (n = B - 1 in a batch of B): attraction balances n full repulsions.

    Raises ValueError for no negatives or a temperature of 0 or less.
    """
    require(negatives >= 1, "negatives", negatives, "1 or more")
    require(temperature > 0, "temperature", temperature, "above 0")
    return 1 / (temperature * math.log(negatives) + 1)


def pool(latent: Tensor, window: int) -> Tensor:
    """Latent `[B, C, H, W]` or `[B, C, T, H, W]` averaged to a window x window grid, frames apart: `[B, C, cells]`.

    A side shorter than the window keeps its own length: a finer grid would only repeat cells.
    """
    *frames, height, width = latent.shape[2:]
    grid = (min(window, height), min(window, width))
    # Apple's devices pool only where the grid divides the sides.
    own = latent.cpu() if latent.device.type == "mps" else latent
    pooled = F.adaptive_avg_pool3d(own, (frames[0], *grid)) if frames else F.adaptive_avg_pool2d(own, grid)
    return pooled.flatten(2).to(latent.device)


def contrastive_loss(
    clean: Tensor,
    reference: Tensor,
    *,
    temperature: float,
    gamma: float,
    denominator: str = "all",
    terms: str = "both",
) -> Tensor:
    """InfoNCE of pooled clean estimates `[B, C, P]` against where they started, reference `[B, C, P]`; a scalar.

    Similarity is the cosine over the channels, cell by cell; the loss is the mean over cells and batch of

        -cos(clean_i, reference_i) / (gamma tau) + log sum_j exp(cos(clean_i, clean_j) / tau)

    where the sum runs over the other estimates and a term for i itself:
    "all" (the paper's formula): its similarity with itself, 1 / tau;
    "positive" (the paper's released code): the first term's exponent;
    "others" (decoupled contrastive learning, arXiv 2110.06848): none.

    terms: "no attraction" and "no repulsion" leave out the first or the second term (the paper's ablations). Without
    attraction there is no positive, so that "positive" then is "others".
    """
    unit = F.normalize(clean, dim=1)
    attraction = einsum(unit, F.normalize(reference, dim=1), "i c p, i c p -> i p") / (gamma * temperature)
    if terms == "no repulsion":
        return -attraction.mean()
    logits = einsum(unit, unit, "i c p, j c p -> i j p") / temperature
    own = torch.eye(len(clean), dtype=torch.bool, device=clean.device)[:, :, None]
    if denominator == "positive" and terms == "both":
        logits = torch.where(own, attraction[:, None], logits)
    elif denominator != "all":
        logits = logits.masked_fill(own, -torch.inf)
    repulsion = logits.logsumexp(1)
    return repulsion.mean() if terms == "no attraction" else (repulsion - attraction).mean()


def optimise_noise(
    noise: Tensor,
    estimate: Estimate,
    settings: Settings,
    *,
    movable: Tensor | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Noise `[B, C, H, W]` or `[B, C, T, H, W]` moved so that its clean estimates differ; same shape, type and device.

    estimate: clean estimate and pullback of a noise, called once for each iteration; its first result is the reference.
    movable: boolean, broadcastable to the noise; values where it is False stay as they are (the kept part of an
    image).
    after_step: called after every iteration.

    Must run where gradients can be taken (not under `torch.inference_mode`). Settings that are not active give the
    noise itself, and so does attraction without repulsion, which is at its maximum from the start. Raises ValueError
    for a noise of another rank, for a batch of one, for images that cannot be moved
    apart since their noises and estimates are the same, and for a gradient that is zero everywhere or not finite.
    """
    if noise.ndim not in (4, 5):
        raise ValueError(f"noise has shape {list(noise.shape)}; it must be [B, C, H, W] or [B, C, T, H, W].")
    if not settings.active:
        return noise
    require_several(noise)
    if settings.terms == "no repulsion":
        # Every cosine to the reference is 1, its maximum: the gradient is zero, and what a computer finds is rounding.
        return noise
    if settings.cells:
        return _optimise_coarse(noise, estimate, settings, movable, after_step)
    gamma = closed_form_gamma(len(noise) - 1, settings.temperature) if settings.gamma is None else settings.gamma
    start = noise.detach().float()
    current = start.clone()
    optimiser = torch.optim.Adam([current], lr=settings.strength / settings.iterations)
    reference: Tensor | None = None
    scale: float | None = None
    working = _working_type(start, settings)
    for _ in range(settings.iterations):
        clean, pullback = estimate(current.detach())
        clean = clean.detach().to(working).requires_grad_()
        with torch.enable_grad():
            pooled = pool(clean, settings.window)
            if reference is None:
                _check_different(start, clean.detach())
                reference = pooled.detach()
            loss = contrastive_loss(
                pooled,
                reference,
                temperature=settings.temperature,
                gamma=gamma,
                denominator=settings.denominator,
                terms=settings.terms,
            )
        gradient = pullback(torch.autograd.grad(loss, clean)[0].float()).float()
        if movable is not None:
            gradient = gradient.masked_fill(~movable, 0)
        scale = _checked_scale(gradient) if scale is None else scale
        # Adam is scale-free except for its epsilon, which would dominate where gradients are tiny.
        current.grad = gradient / scale if settings.scaled else gradient
        optimiser.step()
        if settings.projection == "spectrum":
            white = _with_spectrum_of(start, current)
            current.copy_(white if movable is None else torch.where(movable, white, current))
        if settings.projection != "off":
            current.copy_(_with_length_of(start, current, movable))
        after_step()
    return current.detach().to(noise.dtype)


def require_several(noise: Tensor) -> None:
    """Raises ValueError for a batch of one."""
    if len(noise) < 2:
        raise ValueError("The batch holds 1 image: there is nothing to be different from. Make a batch of 2 or more.")


def _optimise_coarse(
    noise: Tensor, estimate: Estimate, settings: Settings, movable: Tensor | None, after_step: Callable[[], None]
) -> Tensor:
    """`optimise_noise` of the coarse part alone; all else of the noise stays as it is."""
    start = noise.detach().float()
    coarse = Coarse(start, settings.cells)
    fine = start - coarse.spread(coarse.of(start))

    def whole(part: Tensor) -> Tensor:
        moved = fine + coarse.spread(part)
        return moved if movable is None else torch.where(movable, moved, start)

    def of_coarse(part: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        clean, pullback = estimate(whole(part))

        def back(gradient: Tensor) -> Tensor:
            found = pullback(gradient).float()
            return coarse.of(found if movable is None else found.masked_fill(~movable, 0))

        return clean, back

    found = whole(optimise_noise(coarse.of(start), of_coarse, replace(settings, cells=0), after_step=after_step))
    if movable is not None and settings.projection != "off":
        # Fine and coarse part are orthogonal, but not where a mask cuts through a block.
        found = _with_length_of(start, found, movable)
    return found.to(noise.dtype)


_HAVE_FLOAT64 = ("cpu", "cuda")


def _working_type(noise: Tensor, settings: Settings) -> torch.dtype:
    """Of the loss. Where an estimate is much like itself and little like the others, as at the start, its gradient is
    below what single precision leaves of terms that cancel; Adam without scaled gradients would make steps of that."""
    return torch.float64 if not settings.scaled and noise.device.type in _HAVE_FLOAT64 else torch.float32


def _with_length_of(start: Tensor, moved: Tensor, movable: Tensor | None) -> Tensor:
    """Each `moved[i]` rescaled to the length of `start[i]`, both measured over the movable part; the rest untouched."""
    if movable is None:
        return moved * (_lengths(start) / _lengths(moved))
    ratio = _lengths(start * movable) / _lengths(moved * movable)
    # An image of which nothing may move has no length here.
    return torch.where(movable, moved * ratio.nan_to_num(1.0, 1.0, 1.0), moved)


def _with_spectrum_of(start: Tensor, moved: Tensor) -> Tensor:
    """Each `moved[i]` with the energy that `start[i]` has in every frequency band, summed over channels."""
    height, width = start.shape[-2:]
    rows, columns = (torch.fft.fftfreq(side, 1 / side, device=start.device) for side in (height, width))
    band = torch.hypot(rows[:, None], columns[None]).round().long().flatten()
    before, after = (torch.fft.fft2(noise).flatten(-2) for noise in (start, moved))

    def energies(spectrum: Tensor) -> Tensor:
        power = spectrum.abs().square().flatten(1, -2).sum(1)
        return torch.zeros(len(power), int(band.max()) + 1, device=power.device).index_add_(1, band, power)

    gain = (energies(before) / energies(after)).sqrt()[:, band]
    gain = gain.reshape(len(start), *(1,) * (start.ndim - 3), height * width)
    return torch.fft.ifft2((after * gain).unflatten(-1, (height, width))).real


def _lengths(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)


def _check_different(noise: Tensor, clean: Tensor) -> None:
    """Raises ValueError for two images that are alike from the start: all that is done to the one is done to the other,
    so that they would stay alike."""
    first: dict[tuple[float, ...], list[int]] = {}
    for k, row in enumerate(noise.flatten(1)):
        for other in first.setdefault(tuple(row[:8].tolist()), []):
            apart = torch.linalg.vector_norm(clean[k] - clean[other])
            # Rows of one batch may differ in the last digits.
            if torch.equal(noise[k], noise[other]) and bool(apart <= 1e-4 * torch.linalg.vector_norm(clean[k])):
                raise ValueError(
                    f"Images {other} and {k} of the batch (counted from 0) start from the same noise, so they would "
                    'come out alike. Set Latent Batch Seed Behavior to "random", and leave out Shared Noise, or give '
                    "each image a prompt of its own."
                )
        first[tuple(row[:8].tolist())].append(k)


def _checked_scale(gradient: Tensor) -> float:
    """Root mean square of the first gradient. Raises ValueError when it is zero or not finite."""
    scale = gradient.square().mean().sqrt().item()
    if not math.isfinite(scale):
        raise ValueError("The gradient of the noise is not finite: the model gives NaN or infinity at the first step.")
    if scale == 0:
        raise ValueError(
            "The gradient of the noise is zero. Either the mask lets nothing change, or the model's estimate depends "
            'on the noise through the network alone; in that case set gradient to "full" in Diverse Noise Options.'
        )
    return scale
