"""The two estimates of MinorityPrompt at one step of a run, and what is derived from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..hooks.noise_levels import level_before, read_one_level_late, sigma_at, sigma_at_timestep
from ..hooks.text_estimates import Conds, TextEstimates
from ..methods.minority import Estimates, Offsets, noise_share
from .minority_learning import KEY

if TYPE_CHECKING:
    from .minority_run import Run


class StepEstimates:
    """The two estimates of the paper at one step of a run: the clean one under the prompt with the token, and that of
    the same image, noised again, under the plain prompt."""

    def __init__(
        self, run: Run, guider: Any, x: Tensor, timestep: Tensor, options: dict[str, Any], seed: int, step: int
    ) -> None:
        self._run, self._seed, self._step = run, seed, step
        self._estimates = TextEstimates(
            guider,
            run.kinds,
            KEY,
            x,
            timestep,
            options,
            seed,
            run.latent_image,
            run.denoise_mask,
            run.learning.clip.cond_stage_model,
            run.chunks,
            run.checkpointing,
            run.passes,
        )
        self.iteration = 0
        after = run.percents[min(step + 1, len(run.percents) - 1)]
        sampling, renoise = guider.inner_model.model_sampling, run.learning.renoise
        if run.learning.published and renoise is not None:
            sigma = sigma_at_timestep(sampling, renoise)
        else:
            sigma = sigma_at(sampling, noise_share(renoise, after))
        self._sigma = torch.tensor(sigma, dtype=timestep.dtype, device=timestep.device)
        # The released code looks its alphas up one level below the timestep, but where it noises again to a fixed one;
        # after the last step it noises again to t = T, and takes the noisiest alpha for it.
        late, last = run.learning.late, run.sigmas[step + 1] == 0
        self._before = level_before(sampling, float(timestep[0])) if late else None
        self._second_before = level_before(sampling, sigma) if late and renoise is None and not last else None

    def clean(self, offsets: Offsets) -> tuple[Tensor, Callable[[Tensor], Offsets]]:
        """Clean estimates under the prompt with the token."""
        self.iteration += 1
        x, timestep = self._estimates.x, self._estimates.timestep

        def estimate(rows: slice, own: Offsets) -> Tensor:
            text = self._run.token.encode(self._run.embeddings(own, rows))
            clean = self._estimates.estimate(rows, x[rows], timestep[rows], text)
            if self._before is None:
                return clean
            return read_one_level_late(clean, x[rows], float(timestep[0]), self._before)

        return self._estimates.differentiable(estimate, offsets)

    def score(self, offsets: Offsets) -> Tensor:
        """The objective `[B]` by forward passes alone; two calls in a row meet the same noise."""
        x, timestep = self._estimates.x, self._estimates.timestep
        self.iteration += 1
        noise, sigmas = self._noise((self.iteration + 1) // 2), self._sigma * torch.ones_like(timestep)
        sampling = self._estimates.model.model_sampling

        def clean(rows: slice, own: Offsets) -> Tensor:
            text = self._run.token.encode(self._run.embeddings(own, rows))
            return self._estimates.estimate(rows, x[rows], timestep[rows], text)

        def renoised(rows: slice, own: Tensor) -> Tensor:
            noisy = sampling.noise_scaling(self._sigma, noise[rows].clone(), own, False)
            return self._estimates.estimate(rows, noisy, sigmas[rows])

        def again(found: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            return self._estimates.forward_only(renoised, found), lambda gradient: gradient

        return self._run.learning.objective(Estimates(self._estimates.forward_only(clean, offsets), again)).detach()

    def renoised(self, clean: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Noised again, with other noise every time, and estimated under the plain prompt."""
        noise = self._noise(self.iteration)
        sigmas = self._sigma * torch.ones_like(self._estimates.timestep)
        sampling = self._estimates.model.model_sampling

        def estimate(rows: slice, own: Tensor) -> Tensor:
            # A copy, to which the models' own code adds in place.
            if self._second_before is None:
                noisy = sampling.noise_scaling(self._sigma, noise[rows].clone(), own, False)
                return self._estimates.estimate(rows, noisy, sigmas[rows])
            sigma, before = float(self._sigma), self._second_before
            noisy = sampling.noise_scaling(torch.full_like(self._sigma, before), noise[rows].clone(), own, False)
            told = noisy * ((1 + sigma**2) / (1 + before**2)) ** 0.5
            return read_one_level_late(self._estimates.estimate(rows, told, sigmas[rows]), told, sigma, before)

        return self._estimates.differentiable(estimate, clean)

    def learned_conds(self) -> Conds:
        """The conditioning with the tokens as the run has learned them so far."""
        embeddings = self._run.embeddings(self._run.offsets)
        return self._estimates.conds(
            lambda rows: self._run.token.encode({name: own[rows] for name, own in embeddings.items()})
        )

    def _noise(self, iteration: int) -> Tensor:
        """Of this step and iteration alone, and for an image the same in every batch that holds it."""
        x = self._estimates.x
        generator = torch.Generator().manual_seed(mixed(self._seed, self._step, iteration))
        return torch.stack([torch.randn(x.shape[1:], generator=generator) for _ in range(len(x))]).to(x)


def mixed(*numbers: object) -> int:
    """A seed of its own for every combination."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")
