"""One sampler's run with a token to learn: at which steps it is learned, and with which conditioning they are made."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..hooks.carried import payloads
from ..hooks.chunks import Chunks
from ..hooks.conditioning import in_force
from ..hooks.gradient_check import is_about_gradients
from ..hooks.gradients import gradients
from ..hooks.noise_levels import percent_of, timestep_share, training_steps
from ..hooks.progress import show
from ..hooks.text_estimates import Conds, Passes
from ..hooks.tokens import check_embedding_names, save_embedding
from ..methods.minority import Learned, NoGradientError, Offsets, distances, learn
from ..methods.minority_search import search
from ..methods.schedule import step_position
from .minority_estimates import StepEstimates, mixed
from .minority_learning import KEY, Learning
from .tpso import native_kappa

logger = logging.getLogger("ComfyUI-Diversity")

_SAME = 1e-6


class Run:
    """One sampler's run: when to learn, what was learned, and which conditioning is in force."""

    def __init__(
        self,
        learning: Learning,
        kinds: tuple[str, ...],
        sigmas: Tensor,
        latent_image: Tensor | None,
        denoise_mask: Tensor | None,
        model: Any,
    ) -> None:
        self.learning = learning
        self.kinds = kinds
        self.latent_image, self.denoise_mask = latent_image, denoise_mask
        self.sigmas = sigmas.tolist()
        self.percents = [percent_of(model.model_sampling, sigma) for sigma in self.sigmas]
        shares = self.percents
        if learning.published:
            shares = [timestep_share(model.model_sampling, sigma) for sigma in self.sigmas]
        self.waiting = set(learning.steps.chosen(shares[:-1]))
        self.discrete = training_steps(model.model_sampling) is not None
        self.done: list[int] = []
        self.postponed = False
        self.checkpointing = learning.checkpointing
        self.passes = Passes()
        self.searched = "as chosen" if learning.optimiser == "search" else None
        self._learned: Conds | None = None
        self._scores: list[Tensor] = []

    def predict(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Before every prediction: learns if this is the first one at a chosen step, then has the token in force."""
        guider = executor.class_obj
        model_options = {} if model_options is None else model_options
        # By noise level, never by counting: samplers ask several times for one step, between steps, and go back.
        step = min(int(step_position(self.sigmas, float(timestep[0]))), max(len(self.sigmas) - 2, 0))
        if self._is_due(step, guider, float(timestep[0])):
            self._learn(guider, x, timestep, model_options, seed or 0, step)
            self.done.append(step)
        dropped = self.learning.keep_until < 1 and self.percents[step] >= self.learning.keep_until - _SAME
        if self._learned is None or (dropped and step not in self.done):
            return executor(x, timestep, model_options, seed)
        plain = guider.conds
        guider.conds = {**plain, **self._learned}
        try:
            return executor(x, timestep, model_options, seed)
        finally:
            guider.conds = plain

    def _is_due(self, step: int, guider: Any, sigma: float) -> bool:
        """Whether to learn now. A prompt that is not in force yet is learned at the first step at which it is."""
        late = self.postponed and not self.done
        if step not in self.waiting and not late:
            return False
        self.waiting.discard(step)
        marked = in_force([entry for entry in guider.conds[self.kinds[0]] if KEY in payloads(entry)], sigma)
        self.postponed = self.postponed or not marked
        return bool(marked)

    def _learn(self, guider: Any, x: Tensor, timestep: Tensor, options: dict[str, Any], seed: int, step: int) -> None:
        learning = self.learning
        with gradients():
            if self._learned is None:
                self.chunks = Chunks(len(x), learning.chunk_size)
                self.token = learning.token()
                self.unit = dict.fromkeys(self.token.encoders, 1.0) if learning.absolute else self.token.deviations
                self.start = self.token.start(len(x), mixed(seed, "start"))
                self.offsets = {name: torch.zeros_like(start) for name, start in self.start.items()}
                self._margin = self._similarity_margin() if learning.similarity > 0 else None
            found, estimates = self._round(guider, x, timestep, options, seed, step)
            self.offsets = found.offsets
            self._scores.append(found.scores.cpu())
            with contextlib.ExitStack() as stack:
                if self.searched is None:
                    stack.enter_context(gradients(learning.clip.cond_stage_model))
                    stack.enter_context(torch.no_grad())
                else:
                    stack.enter_context(torch.inference_mode())
                self._learned = estimates.learned_conds()

    def _round(
        self, guider: Any, x: Tensor, timestep: Tensor, options: dict[str, Any], seed: int, step: int
    ) -> tuple[Learned, StepEstimates]:
        """What is learned at one step; starts over with half as many images at once when memory runs out, and for a
        single one with gradient checkpointing."""

        def learned() -> tuple[Learned, StepEstimates]:
            estimates = StepEstimates(self, guider, x, timestep, options, seed, step)
            found = learn(
                self.offsets,
                estimates.clean,
                estimates.renoised,
                self.learning.objective,
                self.learning.settings,
                self._margin,
                lambda: self._after_iteration(step, estimates.iteration),
                step,
            )
            return found, estimates

        def checkpoint() -> bool:
            before, self.checkpointing = self.checkpointing, True
            return not before

        def searched() -> tuple[Learned, StepEstimates]:
            estimates = StepEstimates(self, guider, x, timestep, options, seed, step)
            found = search(
                self.offsets,
                estimates.score,
                self.learning.settings,
                mixed(seed, step, "search"),
                self._margin,
                lambda: self._after_iteration(step, estimates.iteration // 2),
            )
            return found, estimates

        if self.searched is not None:
            return self.chunks.retried(searched)
        try:
            return self.chunks.retried(learned, checkpoint)
        except (RuntimeError, NoGradientError) as error:
            explained = error if isinstance(error, NoGradientError) else _explained(error)
            if explained is None:
                raise
            if self.learning.optimiser != "auto":
                raise explained from error
            self.searched = str(error).splitlines()[0].partition(":")[0]
        logger.warning("Minority Prompt: no gradient passes (%s), so it searches without.", self.searched)
        return self.chunks.retried(searched)

    def _after_iteration(self, step: int, iteration: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        iterations = self.learning.settings.iterations
        show(f"Minority Prompt: learning at step {step + 1} of {len(self.sigmas) - 1}, {iteration} of {iterations}")

    def embeddings(self, offsets: Offsets, rows: slice = slice(None)) -> dict[str, Tensor]:
        """Token embeddings of the images `rows`, whose offsets these are."""
        return {
            name: self.start[name][rows] + self.unit[name] * offset.to(self.start[name])
            for name, offset in offsets.items()
        }

    def _similarity_margin(self) -> Callable[[Offsets], Tensor]:
        reference = self.token.plain_vectors(self.start)
        least = {
            name: native_kappa(self.token.prompt_encoder(name), self.learning.similarity)
            for name in self.token.encoders
        }

        def margin(offsets: Offsets) -> Tensor:
            vectors = self.token.plain_vectors(self.embeddings(offsets))
            over = [(vectors[name] * reference[name]).sum(1) - least[name] for name in vectors]
            return torch.stack([one.cpu() for one in over]).amin(0)

        return margin

    def finish(self) -> None:
        """After a run that was neither cancelled nor failed: says what was done, and keeps the token."""
        if self._learned is None:
            window, text = self.learning.steps, "Minority Prompt: NOTHING was learned. "
            if self.postponed:
                text += "Its prompt was in force at no step of this run (ConditioningSetTimestepRange)."
            else:
                text += (
                    f"No step of this run begins between start_percent {window.start:g} and end_percent "
                    f"{window.end:g} of the noise schedule; its steps begin at "
                    f"{', '.join(f'{percent:.2f}' for percent in self.percents[:-1])}."
                )
            logger.warning(text)
            show(text)
            return
        text = self.report()
        logger.info(text)
        show(text)
        if self.learning.save is not None:
            try:
                self._save(self.learning.save)
            except OSError as error:  # the images are done, and worth more
                logger.warning("Minority Prompt: the learned token is lost. %s", error)
                show(f"{text}\nThe learned token is lost: {error}")

    def report(self) -> str:
        """What was learned and what it cost, in words."""
        first, last = (torch.stack([scores[k].mean() for scores in self._scores]).mean().item() for k in (0, -1))
        unit = "" if self.learning.absolute else " standard deviations of token embeddings"
        moved = distances(self.offsets)
        searched = ""
        if self.searched is not None:
            searched = f" Searched without gradients ({self.searched}): images come out far less rare and diverse."
        return (
            f"Minority Prompt: learned at {len(self.done)} of {len(self.sigmas) - 1} steps with {self.passes.forward} "
            f"more forward and {self.passes.backward} backward passes of the model. Objective {first:.4g} to "
            f"{last:.4g} within a step; tokens moved by {moved.min():.2g} to {moved.max():.2g}{unit}.{searched}"
            f"{self._published_report()}"
        )

    def _published_report(self) -> str:
        """What of a published run is not as published; empty in other modes."""
        if not self.learning.published:
            return ""
        notes = list(self.learning.notes)
        if not self.token.only_clip:
            notes.append("text encoders other than CLIP, which the release does not know")
        if not self.discrete:
            notes.append("a model without discrete timesteps, whose shares of the noise schedule stand for t / T")
        return f" As published{', but for ' if notes else ''}{'; '.join(notes)}."

    def _save(self, path: Path) -> None:
        keys = check_embedding_names(self.learning.clip, self.token.encoders)
        found = self.embeddings(self.offsets)
        count = len(next(iter(found.values())))
        for k in range(count):
            own = path if count == 1 else path.with_name(f"{path.stem}_{k + 1}{path.suffix}")
            save_embedding(own, {name: rows[k] for name, rows in found.items()}, keys)


def _explained(error: RuntimeError) -> ValueError | None:
    """PyTorch's words about a missing gradient, in words that help; None for any other error."""
    if not is_about_gradients(error):
        return None
    return ValueError(
        "The token cannot be learned: a part of the model passes no gradient on. That is so for compiled models, for "
        "quantised ones that also round activations (fp8 matrix products, GGUF), and for some replaced attention "
        f"kernels. Load the model without these. PyTorch says: {error}"
    )
