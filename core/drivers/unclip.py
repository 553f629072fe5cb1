"""An image embedding of its own for every image of a batch, on any sampler node and any model that reads them.

Stock unCLIPConditioning sums the embeddings that it is given (Stable Cascade reads them side by side), for all images
alike. Here the model's own preparation runs once for each embedding, and what it makes of them becomes the rows of what
the model reads. The conditioning carries them (see `core.hooks.carried`), so that it needs no patched model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.clip_vision
import torch
from torch import Tensor

from ..hooks.carried import Payload, Preparation, carrying, payloads, prepared, with_payload, without_payload
from ..require import require

logger = logging.getLogger("ComfyUI-Diversity")

KEY = "diversity_unclip"
_STOCK = "unclip_conditioning"


@dataclass(frozen=True, eq=False)
class _Attached:
    """Embedding k `[1, E]` for image k, and what unCLIPConditioning takes besides."""

    embeddings: tuple[Tensor, ...]
    strength: float
    noise_augmentation: float

    def stock(self, image: int) -> dict[str, Any]:
        """What unCLIPConditioning would attach for this image alone; embeddings are used again from the first."""
        output = comfy.clip_vision.Output()
        output["image_embeds"] = self.embeddings[image % len(self.embeddings)]
        return {
            "clip_vision_output": output,
            "strength": self.strength,
            "noise_augmentation": self.noise_augmentation,
        }


@dataclass(frozen=True, eq=False)
class PerImage(Payload):
    """What a conditioning carries: image embeddings, as often as they were attached."""

    attached: tuple[_Attached, ...]

    def for_rows(self, rows: Sequence[int]) -> PerImage:
        """The embeddings of the images at positions `rows` of the batch."""
        return PerImage(
            tuple(
                replace(one, embeddings=tuple(one.embeddings[row % len(one.embeddings)] for row in rows))
                for one in self.attached
            )
        )

    def started(self, entry: Mapping[str, Any], guider: Any) -> bool:
        """Raises ValueError where another payload cannot be combined with an embedding for each image."""
        for other in payloads(entry).values():
            if other.one_embedding_only:
                raise ValueError(other.one_embedding_only)
        return True

    def prepared(self, entry: dict[str, Any], key: str, prepare: Preparation) -> dict[str, Any]:
        """The entry with a row for each embedding in what the model reads of them."""
        batch = len(prepare.noise)
        count = max(len(one.embeddings) for one in self.attached)
        if count != batch:
            logger.warning(
                "There are %d image embeddings and the batch has %d images: %s.",
                count, batch, "only the first are used" if batch < count else "they are used again from the first",
            )  # fmt: skip
        bare = prepared(without_payload(entry, key), prepare)
        stock = entry.get(_STOCK, [])
        [plain] = prepare([bare])
        # One at a time: the model's own preparation is made for the embeddings of one image.
        encoded = [
            prepare([{**bare, _STOCK: [*stock, *(one.stock(k) for one in self.attached)]}])[0]
            for k in range(min(count, batch))
        ]
        rows = _rows(plain, encoded)
        if not rows:
            raise ValueError(
                "This model reads no image embeddings, so the images would not differ by them. unCLIP conditioning "
                "is for SD2.1 unCLIP, Stable Cascade (stage C) and others that are made for it."
            )
        bare = {**bare, "model_conds": {**bare["model_conds"], **rows}}
        for name, payload in payloads(bare).items():
            bare = with_payload(bare, name, payload.with_model_conds(rows))
        return bare


def per_image(
    conditioning: list, outputs: Sequence[Any], strength: float = 1.0, noise_augmentation: float = 0.0
) -> list:
    """CONDITIONING with which image k of a batch gets embedding k; nothing given is changed.

    outputs: CLIP vision outputs; one with several images gives as many embeddings.

    Raises ValueError for no outputs, embeddings of different width or of no fixed shape, and no conditioning.
    """
    if not conditioning:
        raise ValueError("conditioning is empty; there is nothing to attach an embedding to.")
    require(0 <= noise_augmentation <= 1, "noise_augmentation", noise_augmentation, "from 0 to 1")
    embeddings = tuple(row[None] for output in outputs for row in _embeddings(output))
    if not embeddings:
        raise ValueError("clip_vision_output is empty; it must hold one embedding or more.")
    widths = sorted({embedding.shape[1] for embedding in embeddings})
    if len(widths) > 1:
        raise ValueError(f"The embeddings are {' and '.join(map(str, widths))} wide; they must be of one vision tower.")
    if strength == 0:
        return conditioning  # as unCLIPConditioning
    attached = _Attached(embeddings, strength, noise_augmentation)
    found = []
    for cond, extras in conditioning:
        earlier = payloads(extras).get(KEY)
        before = earlier.attached if isinstance(earlier, PerImage) else ()
        found.append(carrying(cond, extras, KEY, PerImage((*before, attached))))
    return found


def _embeddings(output: Any) -> Tensor:
    found = output.image_embeds
    if not isinstance(found, Tensor) or found.ndim != 2:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"A clip_vision_output has embeddings of shape {shape}; they must be [images, width]. SigLIP's are of "
            "each patch, which unCLIP models do not read."
        )
    if not bool(found.isfinite().all()):
        raise ValueError("A clip_vision_output has embeddings that are not finite (NaN or infinite). Make it again.")
    return found


def _rows(plain: Mapping[str, Any], encoded: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of what the model reads, that which embeddings change: row k from `encoded[k]`."""
    found = {}
    for name, cond in encoded[0].items():
        values = [one[name].cond for one in encoded]
        before = plain[name].cond if name in plain else None
        if not isinstance(values[0], Tensor) or all(_equal(value, before) for value in values):
            continue
        # A prompt's own variants may be rows already: image k reads the k-th.
        found[name] = cond._copy_with(torch.cat([value[k % len(value)][None] for k, value in enumerate(values)]))
    return found


def _equal(value: Tensor, before: Any) -> bool:
    return isinstance(before, Tensor) and value.shape == before.shape and torch.equal(value, before)
