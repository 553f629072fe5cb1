"""From noise to the clean estimate of a sampler's first step, and back by its gradient."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ..require import require
from .caches import guider_without_caches, without_caches
from .chunks import Batch, Pullback, check_chunk_size
from .conditioning import in_force
from .gradient_check import BackwardError, backward_pass
from .gradients import checkpointed, gradients, with_differentiable_attention
from .noise_levels import level_before, read_one_level_late
from .sampling import SamplerRun

logger = logging.getLogger("ComfyUI-Diversity")

GRADIENTS = ("stop", "full")


class CleanEstimate:
    """Clean estimates at the first sigma of a run, with its guidance, its mask and every hook of its model.

    Called with noise `[B, C, ...]` it gives the estimate `[B, C, ...]` and its pullback, which takes a gradient with
    respect to the estimate to one with respect to the noise. Call it inside `gradients()`.

    gradient: "stop" holds the network's output fixed, which makes the pullback a product with a constant; "full" goes
        back through the network.
    chunk_size: how many images go through the model at once; -1 is all of them, and fewer when memory runs out.
    late: the estimate is read with the alphas of the noise level one training step below the one that the network is
        told, see `read_one_level_late`; models without discrete levels keep their own.

    Raises ValueError for an unknown gradient, a chunk size below 1, conditioning that cannot be cut into chunks, and a
    prompt that is not in force at the first sigma, and rising sigmas.
    """

    def __init__(self, run: SamplerRun, gradient: str = "stop", chunk_size: int = -1, late: bool = False) -> None:
        require(gradient in GRADIENTS, "gradient", gradient, f"one of {', '.join(GRADIENTS)}")
        check_chunk_size(chunk_size)
        check_falling(run.sigmas, "Diverse noise changes the noise that an image is made from")
        check_in_force(run.guider.conds.get("positive"), float(run.sigmas[0]), "at the first step of this run")
        self._run = run
        self._batch = Batch(guider_without_caches(run.guider), len(run.noise), chunk_size)
        self._gradient = gradient
        self._is_checked = self._checkpointing = False
        self._before = level_before(run.model.model_sampling, float(run.sigmas[0])) if late else None
        # Under the sampler's own inference mode a model computes exactly what it does in the sampler's first step.
        self._inference = torch.is_inference_mode_enabled()
        self._strongest = run.sampler.max_denoise(run.guider, run.sigmas)
        self._options = {**run.extra_args, "model_options": without_caches(run.extra_args.get("model_options", {}))}
        if gradient == "full":
            self._options["model_options"] = with_differentiable_attention(self._options["model_options"])
        with torch.inference_mode(False):
            self._sigma = run.sigmas[0].clone()
            self._latent = run.latent_image.clone()
            self._mask = None if run.denoise_mask is None else run.denoise_mask.clone()

    def __call__(self, noise: Tensor) -> tuple[Tensor, Pullback]:
        def plain(rows: slice) -> Tensor:
            return self._without_graph(noise[rows], rows)

        if self._gradient == "stop":
            clean, slope = self._batch.each(plain), self._slope(noise)
            return clean, lambda gradient: slope * gradient
        graph = partial(self._with_graph, noise)
        clean, pull_back = self._batch.differentiable_retried(graph, plain, self._compute_again)
        return clean, self._checked(noise, pull_back)

    def _compute_again(self) -> bool:
        """Gradient checkpointing, where memory runs out for a single image."""
        before, self._checkpointing = self._checkpointing, True
        return not before

    def _checked(self, noise: Tensor, pull_back: Pullback) -> Pullback:
        """The same, which says so where the network passes no gradient on and raises no error either."""

        def checked(gradient: Tensor) -> Tensor:
            found = pull_back(gradient)
            if not self._is_checked and found.any():  # of nothing there is nothing to tell
                self._is_checked = True
                if torch.allclose(found, self._slope(noise) * gradient, rtol=1e-5, atol=0):
                    logger.warning(
                        'gradient is "full", but the model passes no gradient on, so that it does what "stop" does. '
                        'Set gradient to "stop", which is faster.'
                    )
            return found

        return checked

    def _with_graph(self, noise: Tensor, rows: slice) -> tuple[Tensor, Pullback]:
        variable = noise[rows].detach().clone().requires_grad_()
        with self._gradients():
            graph = [self._first_step(self._batch.guider(rows), variable, rows)]

        def pull_back(gradient: Tensor) -> Tensor:
            with self._gradients():
                return _backward(graph.pop(), variable, gradient)  # kept no longer than it takes

        return graph[0].detach(), pull_back

    @contextlib.contextmanager
    def _gradients(self) -> Iterator[None]:
        again = checkpointed(self._run.model) if self._checkpointing else contextlib.nullcontext()
        with gradients(self._run.model), again:
            yield

    def _without_graph(self, noise: Tensor, rows: slice) -> Tensor:
        with torch.inference_mode(self._inference), torch.no_grad():
            clean = self._first_step(self._batch.guider(rows), noise, rows)
        return clean.clone()

    def _slope(self, noise: Tensor) -> Tensor:
        """d estimate / d noise with the network's output held fixed.

        Scaling to sigma, masking and the step from output to estimate act element by element, so one backward pass
        through them gives the whole derivative, whatever the model.
        """
        variable = noise.detach().clone().requires_grad_()
        with torch.enable_grad():
            clean = self._first_step(_FixedOutput(self._run.model), variable, slice(None))
            if not clean.requires_grad:
                return torch.zeros_like(noise)
            return torch.autograd.grad(clean.sum(), variable)[0]

    def _first_step(self, model: Any, noise: Tensor, rows: slice) -> Tensor:
        """What KSAMPLER.sample does up to its first call of the model, and that call."""
        latent, mask = self._batch.rows(self._latent, rows), self._batch.rows(self._mask, rows)
        x = self._run.model.model_sampling.noise_scaling(self._sigma, noise, latent, self._strongest)
        if self._before is not None:
            model = _Late(model, float(self._sigma), self._before)
        inpaint: Any = comfy.samplers.KSamplerX0Inpaint(model, self._run.sigmas)
        inpaint.latent_image, inpaint.noise = latent, noise
        return inpaint(x, self._sigma * x.new_ones([len(x)]), mask, **self._options)


def _backward(clean: Tensor, variable: Tensor, gradient: Tensor) -> Tensor:
    try:
        with backward_pass():
            return torch.autograd.grad(clean, variable, gradient)[0]
    except BackwardError as error:
        raise ValueError(
            'gradient is "full", but a part of the model passes no gradient on, as in compiled models and quantised '
            'ones that also round activations. Set gradient to "stop". PyTorch says: '
            f"{str(error).splitlines()[0]}"
        ) from error


def check_falling(sigmas: Tensor, why: str) -> None:
    """Raises ValueError for rising noise levels, by which an image is turned into its noise; `why` not, in words."""
    if len(sigmas) > 1 and bool(sigmas[0] < sigmas[-1]):
        raise ValueError(
            f"The sigmas rise from {float(sigmas[0]):.3g} to {float(sigmas[-1]):.3g} (Flip Sigmas). {why}; use the "
            "plain model and prompt to turn an image into noise."
        )


def check_in_force(entries: Sequence[dict[str, Any]] | None, sigma: float, when: str) -> None:
    """Raises ValueError where no entry of the prompt is in force at this noise level; `when` says which that is."""
    if entries and not in_force(entries, sigma):
        raise ValueError(
            f"The positive prompt is not in force {when} (noise level {sigma:.3g}), so the model has no estimate of "
            "the images there. Let it, or a prompt that is combined with it, begin at start 0 in "
            "ConditioningSetTimestepRange."
        )


class _Late:
    """In place of the guider: its clean estimate, read with the alphas of the level before."""

    def __init__(self, model: Any, sigma: float, before: float) -> None:
        self._model, self.inner_model = model, model.inner_model
        self._levels = (sigma, before)

    def __call__(self, x: Tensor, sigma: Tensor, **options: Any) -> Tensor:
        return read_one_level_late(self._model(x, sigma, **options), x, *self._levels)


class _FixedOutput:
    """In place of the guider: the clean estimate for a network output of zero, whatever the noise."""

    def __init__(self, model: Any) -> None:
        self.inner_model = model

    def __call__(self, x: Tensor, sigma: Tensor, **_options: Any) -> Tensor:
        return self.inner_model.model_sampling.calculate_denoised(sigma, torch.zeros_like(x), x)
