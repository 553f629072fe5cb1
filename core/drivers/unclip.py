"""An image embedding of its own for every picture of a batch, on any sampler node and any model that reads them.

Stock unCLIPConditioning sums the embeddings that it is given (Stable Cascade reads them side by side), for all pictures
alike. Here the model's own preparation runs once for each embedding, and what it makes of them becomes the rows of what
the model reads. The conditioning brings its wrappers along, so that it needs no patched model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.clip_vision
import comfy.hooks
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..hooks.carried import with_hook, without_hook
from .minority import KEY as MINORITY
from .schedule import PAYLOAD as SCHEDULE
from .schedule import _prepared as schedule_prepared

logger = logging.getLogger("ComfyUI-Diversity")

KEY = "diversity_unclip"
_STOCK = "unclip_conditioning"


@dataclass(frozen=True, eq=False)
class PerPicture:
    """What a conditioning carries: embedding k `[1, E]` for picture k, and what unCLIPConditioning takes besides."""

    embeddings: tuple[Tensor, ...]
    strength: float
    noise_augmentation: float

    def stock(self, picture: int) -> dict[str, Any]:
        """What unCLIPConditioning would attach for this picture alone; embeddings are used again from the first."""
        output = comfy.clip_vision.Output()
        output["image_embeds"] = self.embeddings[picture % len(self.embeddings)]
        return {
            "clip_vision_output": output,
            "strength": self.strength,
            "noise_augmentation": self.noise_augmentation,
        }


def per_picture(
    conditioning: list, outputs: Sequence[Any], strength: float = 1.0, noise_augmentation: float = 0.0
) -> list:
    """CONDITIONING with which picture k of a batch gets embedding k; nothing given is changed.

    outputs: CLIP vision outputs; one with several pictures gives as many embeddings.

    Raises ValueError for no outputs, embeddings of different width or of no fixed shape, and no conditioning.
    """
    if not conditioning:
        raise ValueError("conditioning is empty; there is nothing to attach an embedding to.")
    if not 0 <= noise_augmentation <= 1:
        raise ValueError(f"noise_augmentation is {noise_augmentation}; it must be from 0 to 1.")
    embeddings = tuple(row[None] for output in outputs for row in _embeddings(output))
    if not embeddings:
        raise ValueError("clip_vision_output is empty; it must hold one embedding or more.")
    widths = sorted({embedding.shape[1] for embedding in embeddings})
    if len(widths) > 1:
        raise ValueError(f"The embeddings are {' and '.join(map(str, widths))} wide; they must be of one vision tower.")
    if strength == 0:
        return conditioning  # as unCLIPConditioning
    carried = PerPicture(embeddings, strength, noise_augmentation)
    return [
        [
            cond,
            {
                **extras,
                KEY: (*extras.get(KEY, ()), carried),
                "hooks": with_hook(extras, PerPictureHook.with_wrappers()),
            },
        ]
        for cond, extras in conditioning
    ]


def _embeddings(output: Any) -> Tensor:
    found = output.image_embeds
    if not isinstance(found, Tensor) or found.ndim != 2:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"A clip_vision_output has embeddings of shape {shape}; they must be [pictures, width]. SigLIP's are of "
            "each patch, which unCLIP models do not read."
        )
    return found


class PerPictureHook(comfy.hooks.TransformerOptionsHook):
    """Registers the wrappers below for every run whose conditioning carries it."""

    @classmethod
    def with_wrappers(cls) -> PerPictureHook:
        hook = cls()
        hook.transformers_dict = {
            "wrappers": {
                WrappersMP.OUTER_SAMPLE: {KEY: [_take_hooks_off]},
                WrappersMP.SAMPLER_SAMPLE: {KEY: [_encode_embeddings]},
            }
        }
        return hook


def _take_hooks_off(executor: Any, *args: Any, **named: Any) -> Any:
    """The guider's conditioning and its options are this run's own copies."""
    guider = executor.class_obj
    for name, entries in guider.conds.items():
        if any(KEY in entry and MINORITY in entry for entry in entries):
            raise ValueError(
                "Minority Prompt encodes its prompt anew while the sampler runs, and does not know of an embedding for "
                "each picture. Use unCLIPConditioning with it, which gives one to all pictures."
            )
        guider.conds[name] = [without_hook(entry, PerPictureHook) for entry in entries]
    wrappers = guider.model_options["transformer_options"]["wrappers"]
    # First of all, so that whoever asks the model before the run begins (noise optimisation) finds the embeddings.
    ours = wrappers[WrappersMP.SAMPLER_SAMPLE]
    wrappers[WrappersMP.SAMPLER_SAMPLE] = {KEY: ours[KEY], **{key: own for key, own in ours.items() if key != KEY}}
    return executor(*args, **named)


def _encode_embeddings(
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
    """Every embedding goes through the model's own preparation, once for the run."""
    for kind, entries in guider.conds.items():

        def encode(entry: dict[str, Any], kind: str = kind) -> Mapping[str, Any]:
            encoded = comfy.samplers.encode_model_conds(
                guider.inner_model.extra_conds,
                [{**entry, "model_conds": {}}],
                noise,
                noise.device,
                kind,
                latent_image=latent_image,
                denoise_mask=denoise_mask,
                seed=extra_args.get("seed"),
            )
            return encoded[0]["model_conds"]

        def with_schedule(entry: dict[str, Any], kind: str = kind) -> dict[str, Any]:
            model, seed = guider.inner_model, extra_args.get("seed")
            return schedule_prepared(entry, kind, model, noise, latent_image, denoise_mask, seed)

        guider.conds[kind] = [
            _with_rows(with_schedule(entry), encode, len(noise)) if KEY in entry else entry for entry in entries
        ]
    return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *rest, **named)


def _with_rows(entry: dict[str, Any], encode: Any, batch: int) -> dict[str, Any]:
    """The entry with a row for each embedding in what the model reads of them."""
    carried: tuple[PerPicture, ...] = entry[KEY]
    count = max(len(one.embeddings) for one in carried)
    if count != batch:
        logger.warning(
            "There are %d image embeddings and the batch has %d pictures: %s.",
            count, batch, "only the first are used" if batch < count else "they are used again from the first",
        )  # fmt: skip
    bare = {name: value for name, value in entry.items() if name != KEY}
    encoded = [
        encode({**bare, _STOCK: [*entry.get(_STOCK, []), *(one.stock(k) for one in carried)]})
        for k in range(min(count, batch))
    ]
    rows = _rows(encode(bare), encoded)
    if not rows:
        raise ValueError(
            "This model reads no image embeddings, so the pictures would not differ by them. unCLIP conditioning is "
            "for SD2.1 unCLIP, Stable Cascade (stage C) and others that are made for it."
        )
    schedule = bare.get(SCHEDULE)
    if schedule is not None:
        # The embedding is not what a schedule fades out.
        bare[SCHEDULE] = replace(schedule, model_conds={**schedule.model_conds, **rows})
    return {**bare, "model_conds": {**bare["model_conds"], **rows}}


def _rows(plain: Mapping[str, Any], encoded: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of what the model reads, that which embeddings change: row k from `encoded[k]`."""
    found = {}
    for name, cond in encoded[0].items():
        values = [one[name].cond for one in encoded]
        before = plain[name].cond if name in plain else None
        if not isinstance(values[0], Tensor) or all(_equal(value, before) for value in values):
            continue
        # A prompt's own variants may be rows already: picture k reads the k-th.
        found[name] = cond._copy_with(torch.cat([value[k % len(value)][None] for k, value in enumerate(values)]))
    return found


def _equal(value: Tensor, before: Any) -> bool:
    return isinstance(before, Tensor) and value.shape == before.shape and torch.equal(value, before)
