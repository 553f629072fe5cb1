"""A token learned while sampling, on any sampler node: MinorityPrompt and its relatives (see `core.methods.minority`).

The conditioning carries what is to be learned, and brings its text encoder along; the patched model learns it. All that
belongs to a run (the tokens, which steps are done) lives in the run's own options and ends with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..hooks.carried import Payload, carrying, payloads, unchanged
from ..hooks.chunks import Chunks, check_chunk_size
from ..hooks.conditioning import in_force
from ..hooks.denoise import check_falling
from ..hooks.gradient_check import is_about_gradients
from ..hooks.gradients import gradients
from ..hooks.noise_levels import (
    level_before,
    percent_of,
    read_one_level_late,
    sigma_at,
    sigma_at_timestep,
    timestep_share,
    training_steps,
)
from ..hooks.progress import show
from ..hooks.sampling import is_probe
from ..hooks.text_estimates import Conds, Passes, TextEstimates
from ..hooks.tokens import LearnableToken, check_embedding_names, save_embedding
from ..methods.minority import (
    Estimates,
    Learned,
    NoGradientError,
    Objective,
    Offsets,
    Settings,
    Steps,
    distances,
    learn,
    minority,
    noise_share,
)
from ..methods.minority_search import search
from ..methods.schedule import step_position
from ..require import require
from .tpso import native_kappa

logger = logging.getLogger("ComfyUI-Diversity")

KEY = "diversity_minority"
OPTIMISERS = ("auto", "gradient", "search")
_SAME = 1e-6
_CHANGED = (
    "The embeddings of Minority Prompt's conditioning were changed on the way to the sampler (by Conditioning Concat "
    "or Average, for instance), which the learned token would undo. Combine them by Conditioning Combine, or write all "
    "in one text."
)


@dataclass(frozen=True, eq=False)
class Learning:
    """What is learned, at which steps, and what becomes of it.

    clip, text, word, position, encoders, start, start_scale: see `LearnableToken`.
    settings: the learning rate is in standard deviations of each encoder's token embeddings; with `absolute` it is in
        the embeddings' own unit (as published).
    similarity: lower bound of the cosine of the prompt with the token to the prompt with the word that it starts from,
        in CLIP's projected pooled space, and what means the same in others. 0: none.
    renoise: see `noise_share`.
    keep_until: the share of the model's noise schedule after which the plain prompt takes over.
    chunk_size: images that go through the models at once; -1 is all, and fewer when memory runs out.
    checkpointing: gradient checkpointing of every layer; begins by itself when memory runs out for a single image.
    save: file of the learned token, for several images one each with its number; None for none.
    published: noise levels are shares of the model's training steps (t > 0.9 T, s = 0.75 T), and the token is one in
        every encoder.
    late: clean estimates are read with the alphas of the level one training step below the one that the network is
        told, as in the released code; not where the level that is noised again to is fixed. See `read_one_level_late`.
    notes: what in published settings is not as published, for the report.
    optimiser: "gradient"; "search", without gradients (see `core.methods.minority_search`); "auto", gradients, and a
        search where none pass.

    Raises ValueError for a value that is not allowed.
    """

    clip: Any
    text: str
    settings: Settings = field(default_factory=Settings)
    steps: Steps = field(default_factory=Steps)
    objective: Objective = minority
    word: str = "cool"
    position: str = "end"
    encoders: str = "auto"
    similarity: float = 0.0
    renoise: float | None = None
    keep_until: float = 0.15
    chunk_size: int = -1
    checkpointing: bool = False
    absolute: bool = False
    save: Path | None = None
    published: bool = False
    late: bool = False
    start: str = "auto"
    start_scale: float = 1.0
    notes: tuple[str, ...] = ()
    optimiser: str = "auto"

    def __post_init__(self) -> None:
        require(self.optimiser in OPTIMISERS, "optimiser", self.optimiser, f"one of {', '.join(OPTIMISERS)}")
        noise_share(self.renoise, 0.0)
        for name, value in (("similarity", self.similarity), ("keep_until", self.keep_until)):
            require(0 <= value <= 1, name, value, "from 0 to 1")
        check_chunk_size(self.chunk_size)

    def token(self) -> LearnableToken:
        """The prompt with the token. Its CLIP must be loaded. Raises ValueError for a prompt that cannot have one."""
        if self.clip.patcher.forced_hooks is not None and self.clip.use_clip_schedule:
            raise ValueError(
                "This CLIP has scheduled hooks (Set CLIP Hooks with schedule_clip on); a token would have to be "
                "learned for every keyframe. Switch schedule_clip off."
            )
        token = LearnableToken(
            self.clip, self.text, self.word, self.position, self.encoders, self.start, self.start_scale
        )
        for name, count in token.counts.items():
            if self.published and count != 1:
                raise ValueError(
                    f"initial_word is {self.word!r}, which is {count} tokens in {name}; with mode published it must be "
                    "a word of one token."
                )
        return token


@dataclass(frozen=True, eq=False)
class _Mark(Payload):
    """What a conditioning carries: which part of it is replaced by the prompt with the token."""

    one_embedding_only = (
        "Minority Prompt encodes its prompt anew while the sampler runs, and does not know of an embedding for "
        "each image. Use unCLIPConditioning with it, which gives one to all images."
    )

    learning: Learning
    plain: Tensor

    def started(self, entry: Mapping[str, Any], guider: Any) -> bool:
        """A prompt that was zeroed out for the negative side is no prompt any more; one that was changed is another,
        and a model that is not patched would leave the token out."""
        if not unchanged(entry, self.plain, _CHANGED):
            return False
        wrappers = guider.model_options.get("transformer_options", {}).get("wrappers", {})
        if not wrappers.get(WrappersMP.SAMPLER_SAMPLE, {}).get(KEY):
            raise ValueError(
                "The conditioning of Minority Prompt is used with a model that is not patched, so no token would be "
                "learned. Connect the MODEL output of Minority Prompt to the sampler (or guider), too."
            )
        return True


# --- what the node hands out ------------------------------------------------------------------------------------------


def with_learning(model: ModelPatcher) -> ModelPatcher:
    """A clone of the model with which every sampler learns the tokens of the conditioning from `to_learn`."""
    patched = model.clone()
    patched.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, KEY)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, _go_last)
    return patched


def to_learn(learning: Learning, positive: list | None = None) -> list:
    """CONDITIONING of the plain prompt that carries what is to be learned; nothing given is changed.

    positive: the plain prompt if it is encoded already (with a ControlNet, an area ...); entries of other prompts stay
    as they are. Raises ValueError when none of its entries is this prompt, and for a prompt that cannot have a token.
    """
    learning.clip.load_model()
    token = learning.token()
    if learning.save is not None:
        check_embedding_names(learning.clip, token.encoders)
    plain = learning.clip.encode_from_tokens_scheduled(learning.clip.tokenize(learning.text))
    if positive is None:
        return [_marked(cond, extras, learning) for cond, extras in plain]
    own = [_is_same(cond, plain[0][0]) for cond, _ in positive]
    _check_other_texts([extras for (_, extras), same in zip(positive, own, strict=True) if same], plain[0][1])
    if not any(own):
        raise ValueError(
            "positive is not this text in this CLIP's encoding, so the token would be learned for another prompt. Give "
            "both nodes the same text and the same CLIP (with the same LoRAs and clip skip), or leave positive empty."
        )
    return [
        _marked(cond, extras, learning) if same else [cond, extras]
        for (cond, extras), same in zip(positive, own, strict=True)
    ]


def _is_same(cond: Tensor, plain: Tensor) -> bool:
    if len(cond) != 1 or cond.shape != plain.shape:
        return False
    # Masks are of whole numbers, and some pooled vectors went through memory as it was found.
    cond, plain = cond.float().nan_to_num(), plain.to(cond.device).float().nan_to_num()
    # Two encodings of one text differ at most in the last digits.
    return bool((cond - plain).norm() <= 1e-3 * plain.norm())


def _check_other_texts(own: Sequence[Mapping[str, Any]], plain: Mapping[str, Any]) -> None:
    """Raises ValueError for entries whose embeddings are the prompt's own, but not what other encoders made of it."""
    for name, value in plain.items():
        if isinstance(value, Tensor) and not all(
            isinstance(extras.get(name), Tensor) and _is_same(extras[name], value) for extras in own
        ):
            raise ValueError(
                f"The embeddings of positive are those of this text, but its {name} is of another one (from a node "
                "with a text for each encoder, such as CLIPTextEncodeFlux), which would be lost. Write the same text "
                "for all encoders, or leave positive empty."
            )


def _marked(cond: Tensor, extras: dict[str, Any], learning: Learning) -> list:
    if KEY in payloads(extras):
        raise ValueError("positive carries a token to learn already; give it the plain prompt.")
    # Loaded with the diffusion model: loading it in the middle of a run could push that one out of memory.
    models = [*extras.get("additional_models", []), learning.clip.patcher]
    return carrying(cond, {**extras, "additional_models": models}, KEY, _Mark(learning, cond))


def _marks(conds: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, _Mark]]:
    for kind, entries in conds.items():
        for entry in entries:
            mark = payloads(entry).get(KEY)
            if isinstance(mark, _Mark):
                yield kind, mark


# --- a run ------------------------------------------------------------------------------------------------------------


def _go_last(executor: Any, *args: Any, **named: Any) -> Any:
    """Behind all wrappers of others: what they ask the model before the first step (noise optimisation) is not a step
    to learn at."""
    executor.wrappers.append(_learn_in_run)
    return executor(*args, **named)


def _learn_in_run(
    executor: Any,
    guider: Any,
    sigmas: Tensor,
    extra_args: dict[str, Any],
    callback: Any,
    noise: Tensor,
    latent_image: Tensor | None = None,
    denoise_mask: Tensor | None = None,
    *rest: Any,
    **named: Any,
) -> Any:
    arguments = (guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *rest)
    if is_probe(executor.class_obj):
        return executor(*arguments, **named)
    marks = list(_marks(guider.conds))
    if not marks:
        raise ValueError(
            "The model of Minority Prompt is used without its conditioning, so no token would be learned. Connect the "
            "positive output of Minority Prompt to the sampler (or guider), too."
        )
    if any(mark.learning is not marks[0][1].learning for _, mark in marks):
        raise ValueError("Several Minority Prompts are combined in one conditioning; a run can learn one token only.")
    learning = marks[0][1].learning
    if not learning.settings.active:
        return executor(*arguments, **named)
    check_falling(sigmas, "Minority Prompt learns while an image is made")
    if learning.late and training_steps(guider.inner_model.model_sampling) is None:
        raise ValueError(
            "late_alphas is on, but this model has no discrete timesteps (SD1.5, SD2 and SDXL have; flow-matching "
            "models have not). Switch it off."
        )
    kinds = tuple(dict.fromkeys(kind for kind, _ in marks))
    run = _Run(learning, kinds, sigmas, latent_image, denoise_mask, guider.inner_model)
    # The guider's options are this run's own copy, in which nothing outlives the run.
    wrappers = guider.model_options["transformer_options"].setdefault("wrappers", {})
    own = wrappers.setdefault(WrappersMP.PREDICT_NOISE, {})
    own[KEY] = [run.predict]
    try:
        result = executor(*arguments, **named)
    finally:
        del own[KEY]
    run.finish()
    return result


class _Run:
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
                self.start = self.token.start(len(x), _mixed(seed, "start"))
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
    ) -> tuple[Learned, _StepEstimates]:
        """What is learned at one step; starts over with half as many images at once when memory runs out, and for a
        single one with gradient checkpointing."""

        def learned() -> tuple[Learned, _StepEstimates]:
            estimates = _StepEstimates(self, guider, x, timestep, options, seed, step)
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

        def searched() -> tuple[Learned, _StepEstimates]:
            estimates = _StepEstimates(self, guider, x, timestep, options, seed, step)
            found = search(
                self.offsets,
                estimates.score,
                self.learning.settings,
                _mixed(seed, step, "search"),
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


class _StepEstimates:
    """The two estimates of the paper at one step of a run: the clean one under the prompt with the token, and that of
    the same image, noised again, under the plain prompt."""

    def __init__(
        self, run: _Run, guider: Any, x: Tensor, timestep: Tensor, options: dict[str, Any], seed: int, step: int
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
        generator = torch.Generator().manual_seed(_mixed(self._seed, self._step, iteration))
        return torch.stack([torch.randn(x.shape[1:], generator=generator) for _ in range(len(x))]).to(x)


def _mixed(*numbers: object) -> int:
    """A seed of its own for every combination."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


def _explained(error: RuntimeError) -> ValueError | None:
    """PyTorch's words about a missing gradient, in words that help; None for any other error."""
    if not is_about_gradients(error):
        return None
    return ValueError(
        "The token cannot be learned: a part of the model passes no gradient on. That is so for compiled models, for "
        "quantised ones that also round activations (fp8 matrix products, GGUF), and for some replaced attention "
        f"kernels. Load the model without these. PyTorch says: {error}"
    )
