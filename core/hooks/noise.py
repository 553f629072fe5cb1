"""NOISE objects: what SamplerCustomAdvanced takes its initial noise from. They hold no state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ..require import require
from .sampling import NoiseChange, changed_noise


class Noise(Protocol):
    """ComfyUI's NOISE: a seed, and noise for a LATENT on the CPU."""

    seed: int

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor: ...


class OptimisedNoise:
    """The noise of another NOISE after `change`, as a sampler with this guider and these sigmas would have it.

    batch_size: with -1 the noises of the latent's own images are changed together. Otherwise those of images
        0..batch_size-1 are changed together, and the latent gets the ones that its `batch_index` names: image k of the
        latent is then image k of the whole batch.
    whole_batch: the LATENT of all images that are changed together, where these start from images or masks of their
        own; the latent gets the noises of its images. Gives the batch_size.
    """

    def __init__(
        self,
        noise: Noise,
        guider: comfy.samplers.CFGGuider,
        sigmas: Tensor,
        change: NoiseChange,
        batch_size: int = -1,
        whole_batch: dict[str, Any] | None = None,
    ) -> None:
        require(batch_size == -1 or batch_size >= 1, "batch_size", batch_size, "1 or more, or -1 (auto)")
        self.seed = noise.seed
        self._noise = noise
        self._guider = guider
        self._sigmas = sigmas
        self._change = change
        self._batch_size = batch_size
        self._whole = whole_batch
        if whole_batch is not None:
            images = len(whole_batch["samples"])
            require(batch_size in (-1, images), "batch_size", batch_size, f"-1 (auto), or the {images} of whole_batch")

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Noise of the latent's shape. Raises ValueError for an image outside the batch, and for a batch whose other
        images are not known."""
        if self._whole is not None:
            return self._of_whole(input_latent, self._whole)
        if self._batch_size == -1:
            return self._changed(input_latent)
        wanted = _indices(input_latent)
        if max(wanted) >= self._batch_size:
            raise ValueError(
                f"batch_size is {self._batch_size}, but the latent holds image {max(wanted)} (counted from 0)."
            )
        if sorted(wanted) == list(range(self._batch_size)):
            return self._of_whole(input_latent, _sorted(input_latent, wanted))
        samples: Tensor = input_latent["samples"]
        if torch.count_nonzero(samples) > 0 or input_latent.get("noise_mask") is not None:
            raise ValueError(
                f"batch_size is {self._batch_size}, but the latent holds {len(samples)} of these images, and starts "
                "from images or has a mask. The noise of one image depends on what the others start from: connect the "
                "latent of the whole batch to whole_batch."
            )
        whole = {name: value for name, value in input_latent.items() if name != "batch_index"}
        whole["samples"] = comfy.utils.repeat_to_batch_size(samples, self._batch_size)
        return self._changed(whole)[wanted]

    def _of_whole(self, latent: dict[str, Any], whole: dict[str, Any]) -> Tensor:
        """The noises of the latent's images, changed together with all of `whole`."""
        known, wanted = _indices(whole), _indices(latent)
        missing = [index for index in wanted if index not in known]
        if missing:
            raise ValueError(
                f"The latent holds image {missing[0]} (counted from 0); whole_batch holds {sorted(set(known))}."
            )
        samples = comfy.sample.fix_empty_latent_channels(self._guider.model_patcher, whole["samples"])
        if samples.shape[1:] != latent["samples"].shape[1:]:
            raise ValueError(
                f"whole_batch holds images of shape {list(samples.shape[1:])}, and the sampler's latent "
                f"{list(latent['samples'].shape[1:])}; they must be the same."
            )
        changed = self._changed({**whole, "samples": samples})
        return changed[[known.index(index) for index in wanted]]

    def _changed(self, latent: dict[str, Any]) -> Tensor:
        noise = self._noise.generate_noise(latent)
        return changed_noise(self._guider, self._sigmas, noise, latent, self.seed, self._change)


class StoredNoise:
    """Noise that was kept as a LATENT.

    A latent with a `batch_index` gets the noises of those images; one without gets as many as it holds images, from the
    first on.
    """

    def __init__(self, noise_latent: dict[str, Any], seed: int) -> None:
        self.seed = seed
        self._samples: Tensor = noise_latent["samples"]
        self._indices = _indices(noise_latent)

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Noise of the latent's shape. Raises ValueError for an image without kept noise, and for another shape."""
        like = input_latent["samples"]
        if "batch_index" in input_latent:
            wanted = _indices(input_latent)
            missing = [index for index in wanted if index not in self._indices]
            if missing:
                raise ValueError(
                    f"The latent holds image {missing[0]} (counted from 0); noise was kept for "
                    f"{sorted(set(self._indices))}."
                )
            rows = [self._indices.index(index) for index in wanted]
        else:
            rows = list(range(min(len(like), len(self._indices))))
        return stored_noise(self._samples[rows], like).to("cpu")


def stored_noise(kept: Tensor, like: Tensor) -> Tensor:
    """A copy of the kept noise on the device and of the type of `like`. Raises ValueError when the shapes differ, and
    for values that are not finite."""
    if kept.shape != like.shape:
        raise ValueError(
            f"The kept noise has shape {list(kept.shape)}, but the sampler needs {list(like.shape)}: the latent must "
            "have the size, channels and number of images that the noise was made for (Latent From Batch picks some)."
        )
    if not bool(kept.isfinite().all()):
        raise ValueError(
            "The kept noise has values that are not finite (NaN or infinite): it is damaged. Make it again."
        )
    return kept.to(device=like.device, dtype=like.dtype, copy=True)


def _sorted(latent: dict[str, Any], places: Sequence[int]) -> dict[str, Any]:
    """The latent of a whole batch with its images in their order."""
    order = sorted(range(len(places)), key=places.__getitem__)
    found = {name: value for name, value in latent.items() if name != "batch_index"}
    for name in ("samples", "noise_mask"):
        if found.get(name) is not None:
            found[name] = comfy.utils.repeat_to_batch_size(found[name], len(places))[order]
    return found


def _indices(latent: dict[str, Any]) -> list[int]:
    indices: Sequence[int] | None = latent.get("batch_index")
    return list(range(len(latent["samples"]))) if indices is None else [int(index) for index in indices]
