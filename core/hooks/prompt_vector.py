"""The vector that stands for a prompt in a text encoder, from its token embeddings.

Rows that share their beginning are read as one sequence (see `packed`) where `shared` says how much of it; 0 reads each
row by itself.
"""

from __future__ import annotations

from typing import Any

import comfy.ops
import torch
from comfy.sd1_clip import SDClipModel
from torch import Tensor

from .packed import Packing
from .prompt import Section


def clip_vector(
    module: SDClipModel, embeds: Tensor, projected: bool, layer: int | None = None, shared: int = 0
) -> Tensor:
    """Pooled vectors `[N, E]` of a CLIP text tower from token embeddings `[N, L, D]` whose last position is EOS, by the
    output of the last layer or of another.

    Attention is causal, so what follows EOS (padding) cannot change the pooled vector and is left out.
    """
    tower = module.transformer.text_model
    count, length = embeds.shape[:2]
    position = tower.embeddings.position_embedding.weight[:length]
    x = embeds + comfy.ops.cast_to(position, dtype=embeds.dtype, device=embeds.device)
    lowest = -torch.finfo(x.dtype).max
    packing = Packing(count, shared, length) if shared else None
    if packing is None:
        mask = torch.full((length, length), lowest, dtype=x.dtype, device=x.device).triu_(1)
    else:
        x, allowed = packing.pack(x), packing.allowed(x.device)
        mask = torch.zeros(allowed.shape, dtype=x.dtype, device=x.device).masked_fill_(~allowed, lowest)
    last, other = tower.encoder(x, mask=mask, intermediate_output=layer)
    output = tower.final_layer_norm(last if layer is None else other)
    pooled = (output if packing is None else packing.unpack(output))[:, -1]
    pooled = module.transformer.text_projection(pooled) if projected else pooled
    return pooled.to(torch.promote_types(pooled.dtype, torch.float32))


def mean_output(
    module: SDClipModel, embeds: Tensor, section: Section, first: int, last: int, shared: int = 0
) -> Tensor:
    """Mean `[N, D]` of the encoder's output over positions from `first` to `last`, exclusive, of `[N, T, D]`.

    section: for the mask. With `shared`, at most `first`, nothing behind `last` is read.
    """
    if shared:
        packing = Packing(len(embeds), shared, last)
        positions, allowed = packing.positions(embeds.device), packing.allowed(embeds.device)
        if module.enable_attention_masks:
            allowed = allowed & section.mask.to(embeds.device)[0, positions].bool()
        embeds, mask = packing.pack(embeds[:, :last]), allowed[None].to(embeds.dtype)
        # The inner model takes positions, which the outer one of some (Qwen2.5-VL) does not pass on.
        z = _output(module, module.transformer.model, embeds, mask, section, position_ids=positions[None])
        return packing.unpack(z)[:, first - shared :].mean(1)
    mask = section.mask.expand(len(embeds), -1) if module.enable_attention_masks else None
    return _output(module, module.transformer, embeds, mask, section)[:, first:last].mean(1)


def _output(module: SDClipModel, model: Any, embeds: Tensor, mask: Any, section: Section, **more: Any) -> Tensor:
    """What the diffusion model reads of an encoder, `[N, T, D]`; of several layers their mean."""
    layer = module.layer if isinstance(module.layer, list) or module.layer == "all" else module.layer_idx
    outputs = model(
        None,
        mask,
        embeds=embeds.clone(),  # Gemma scales it in place
        num_tokens=[section.end + 1] * len(embeds),
        intermediate_output=layer,
        final_layer_norm_intermediate=module.layer_norm_hidden_state,
        dtype=torch.float32,
        embeds_info=[],
        **more,
    )
    z = (outputs[0] if module.layer == "last" else outputs[1]).float()
    return z.mean(1) if z.ndim == 4 else z
