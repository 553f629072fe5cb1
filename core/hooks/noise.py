"""NOISE objects: what SamplerCustomAdvanced takes its initial noise from. They hold no state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import comfy.samplers
import comfy.utils
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
    """

    def __init__(
        self,
        noise: Noise,
        guider: comfy.samplers.CFGGuider,
        sigmas: Tensor,
        change: NoiseChange,
        batch_size: int = -1,
    ) -> None:
        require(batch_size == -1 or batch_size >= 1, "batch_size", batch_size, "1 or more, or -1 (auto)")
        self.seed = noise.seed
        self._noise = noise
        self._guider = guider
        self._sigmas = sigmas
        self._change = change
        self._batch_size = batch_size

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Noise of the latent's shape. Raises ValueError for an image outside the batch."""
        if self._batch_size == -1:
            return self._changed(input_latent)
        wanted = _indices(input_latent)
        if max(wanted) >= self._batch_size:
            raise ValueError(
                f"batch_size is {self._batch_size}, but the latent holds image {max(wanted)} (counted from 0)."
            )
        whole = {name: value for name, value in input_latent.items() if name != "batch_index"}
        for name in ("samples", "noise_mask"):
            if name in whole:
                whole[name] = comfy.utils.repeat_to_batch_size(whole[name], self._batch_size)
        return self._changed(whole)[wanted]

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
    """A copy of the kept noise on the device and of the type of `like`. Raises ValueError when the shapes differ."""
    if kept.shape != like.shape:
        raise ValueError(
            f"The kept noise has shape {list(kept.shape)}, but the sampler needs {list(like.shape)}: the latent must "
            "have the size, channels and number of images that the noise was made for (Latent From Batch picks some)."
        )
    return kept.to(device=like.device, dtype=like.dtype, copy=True)


def _indices(latent: dict[str, Any]) -> list[int]:
    indices: Sequence[int] | None = latent.get("batch_index")
    return list(range(len(latent["samples"]))) if indices is None else [int(index) for index in indices]
