"""A token learned while sampling, on any sampler node: MinorityPrompt and its relatives (see `core.methods.minority`).

The conditioning carries what is to be learned, and brings its text encoder along; the patched model learns it. All that
belongs to a run (the tokens, which steps are done) lives in the run's own options and ends with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..hooks.carried import Payload, carrying, payloads, unchanged
from ..hooks.denoise import check_falling
from ..hooks.noise_levels import training_steps
from ..hooks.sampling import is_probe
from ..hooks.tokens import check_embedding_names
from .minority_learning import KEY, Learning
from .minority_run import Run

_CHANGED = (
    "The embeddings of Minority Prompt's conditioning were changed on the way to the sampler (by Conditioning Concat "
    "or Average, for instance), which the learned token would undo. Combine them by Conditioning Combine, or write all "
    "in one text."
)


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
    run = Run(learning, kinds, sigmas, latent_image, denoise_mask, guider.inner_model)
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
