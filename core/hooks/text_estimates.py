"""Clean estimates at one step of a run under another text, differentiable through model and text encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.conds
import comfy.samplers
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .caches import without_caches
from .carried import payloads
from .chunks import Chunks, rows_of
from .conditioning import at_all_times, conditioning_rows, in_force
from .gradient_check import backward_pass
from .gradients import checkpointed, gradients, with_differentiable_attention

Conds = dict[str, list[dict[str, Any]]]
Encoded = dict[str, Any]  # what a text encoder gives: `cond`, and what goes with it


@dataclass
class Passes:
    """How often images went through the model, forward and backward."""

    forward: int = 0
    backward: int = 0


class TextEstimates:
    """Clean estimates `[B, C, ...]` of a run's images at one step, without guidance, under the first kind of
    conditioning; its entries that carry something under `key` can be given another text. What is in force at this step
    is also the text of estimates at other noise levels.

    x, timestep: the noisy images `[B, C, ...]` and their noise levels `[B]`.
    encoder: the module of the text encoder that gradients go through besides the model.
    chunks, checkpointing: see `Chunks` and `checkpointed`.
    """

    def __init__(
        self,
        guider: comfy.samplers.CFGGuider,
        kinds: tuple[str, ...],
        key: str,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        seed: int,
        latent_image: Tensor | None,
        denoise_mask: Tensor | None,
        encoder: nn.Module,
        chunks: Chunks,
        checkpointing: bool,
        passes: Passes,
    ) -> None:
        self.model: Any = guider.inner_model
        self.x, self.timestep = x.clone(), timestep.clone()
        self._conds, self._kinds, self._key = guider.conds, kinds, key
        now = in_force(self._conds[kinds[0]], float(self.timestep[0]))
        self._now = [at_all_times(entry) for entry in now]
        self._options = with_differentiable_attention(without_caches(model_options))
        self._seed = seed
        self._latent_image, self._denoise_mask = latent_image, denoise_mask
        self._modules = (self.model, encoder)
        self._chunks, self._checkpointing, self._passes = chunks, checkpointing, passes

    def estimate(self, rows: slice, x: Tensor, sigma: Tensor, text: Encoded | None = None) -> Tensor:
        """Clean estimate of the images `rows`, which are `x` at the levels `sigma`: under another text, or under the
        conditioning as it is. The kept part of a masked image is the image itself."""
        entries = self._entries(rows, text)
        self._passes.forward += 1
        [clean] = comfy.samplers.calc_cond_batch(self.model, [entries], x, sigma, self._options)
        mask, image = self._rows(self._denoise_mask, rows), self._rows(self._latent_image, rows)
        if mask is None or image is None:
            return clean
        return clean * mask + image * (1 - mask)

    def differentiable(
        self, function: Callable[[slice, Any], Tensor], inputs: Any
    ) -> tuple[Tensor, Callable[[Tensor], Any]]:
        """`function(rows, inputs[rows])` of all images, and its pullback: from a gradient with respect to the result
        to one with respect to `inputs`, a tensor or a container of tensors."""

        def plain(rows: slice) -> Tensor:
            with gradients(*self._modules), torch.no_grad():
                return function(rows, _part(inputs, rows))

        return self._chunks.differentiable(partial(self._with_graph, function, inputs), plain)

    def forward_only(self, function: Callable[[slice, Any], Tensor], inputs: Any) -> Tensor:
        """`function(rows, inputs[rows])` of all images in ComfyUI's own mode, where no gradient is wanted."""

        def plain(rows: slice) -> Tensor:
            with torch.inference_mode():
                return function(rows, _part(inputs, rows))

        with torch.inference_mode():
            found = self._chunks.joined(plain)
        return found.clone()

    def conds(self, encode: Callable[[slice], Encoded]) -> Conds:
        """The conditioning of all images under the texts of `encode(rows)`, of every kind."""
        parts = [encode(rows) for rows in self._chunks.slices()]
        whole = {
            name: torch.cat([part[name] for part in parts])
            if isinstance(value, Tensor) and value.ndim > 1 and "mask" not in name
            else value
            for name, value in parts[0].items()
        }
        return {kind: self._with_text(kind, self._conds[kind], whole, slice(None)) for kind in self._kinds}

    def _with_graph(
        self, function: Callable[[slice, Any], Tensor], inputs: Any, rows: slice
    ) -> tuple[Tensor, Callable[[Tensor], Any]]:
        values, structure = tree_flatten(_part(inputs, rows))
        leaves = [value.detach().clone().requires_grad_() for value in values]
        with contextlib.ExitStack() as stack:
            stack.enter_context(gradients(*self._modules))
            if self._checkpointing:
                stack.enter_context(checkpointed(*self._modules))
            result = function(rows, tree_unflatten(leaves, structure))

        def pull_back(gradient: Tensor) -> Any:
            self._passes.backward += 1
            with gradients(*self._modules), backward_pass():
                found = torch.autograd.grad(result, leaves, gradient.to(result), allow_unused=True)
            pairs = zip(found, leaves, strict=True)
            filled = [torch.zeros_like(leaf) if one is None else one.detach() for one, leaf in pairs]
            return tree_unflatten(filled, structure)

        return result.detach(), pull_back

    def _entries(self, rows: slice, text: Encoded | None) -> list[dict[str, Any]]:
        kind = self._kinds[0]
        conds = {kind: self._now}
        if not self._chunks.whole:
            conds = conditioning_rows(conds, range(len(self.x))[rows])
        return conds[kind] if text is None else self._with_text(kind, conds[kind], text, rows)

    def _with_text(self, kind: str, entries: list[dict[str, Any]], text: Encoded, rows: slice) -> list[dict[str, Any]]:
        return [self._replaced(kind, entry, text, rows) if self._key in payloads(entry) else entry for entry in entries]

    def _replaced(self, kind: str, entry: dict[str, Any], encoded: Encoded, rows: slice) -> dict[str, Any]:
        """The entry with another text, read by the model's own preparation."""
        x = self.x[rows]
        texts = {name: value for name, value in encoded.items() if name not in ("cond", "hooks")}
        prepared = comfy.samplers.encode_model_conds(
            self.model.extra_conds,
            [{**entry, **texts, "cross_attn": encoded["cond"], "model_conds": {}}],
            x,
            x.device,
            kind,
            latent_image=self._rows(self._latent_image, rows),
            denoise_mask=self._rows(self._denoise_mask, rows),
            seed=self._seed,
            latent_shapes=[x.shape],
        )
        # What has the image's shape (a masked image, a hint) is not of the text, and its rows are chosen already.
        found = {
            name: cond
            for name, cond in prepared[0]["model_conds"].items()
            if not isinstance(cond, comfy.conds.CONDNoiseShape) or name not in entry["model_conds"]
        }
        return {**entry, "model_conds": {**entry["model_conds"], **found}}

    def _rows(self, tensor: Tensor | None, rows: slice) -> Tensor | None:
        return rows_of(tensor, rows, len(self.x))


def _part(inputs: Any, rows: slice) -> Any:
    return tree_map(lambda value: value[rows], inputs)
