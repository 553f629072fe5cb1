"""Pseudo-tokens in, image embeddings out, through ComfyUI's own CLIP vision tower."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.ops
import torch
from comfy.clip_model import CLIPVisionModelProjection
from torch import Tensor
from torch.nn import functional as F

from ..methods.image_bank import ImageBank
from .chunks import InChunks, load_for_gradients
from .gradients import checkpointed
from .text import is_trained

PAIRS = (
    "Pairs that work: a stand-alone clip_l file with CLIP ViT-L (768 wide), the text encoder of SD2.1 with CLIP ViT-H "
    "(1024), clip_g of SDXL with CLIP ViT-bigG (1280), and the demo world's own two."
)
_BATCH = 16  # images that are encoded at once for a bank
_SAME_TOWER = 0.99
_LARGE = 2**28  # bytes of what one variant would keep


class VisionTower(InChunks):
    """The vision tower of a CLIP_VISION: tokens `[N, P, D]` to embeddings `[N, E]`.

    The P tokens are repeated (nearest) to the tower's patch count and stand where the patches do: the class token goes
    in front, the position embeddings are added, and the whole tower runs.

    Raises ValueError for a vision encoder that is not CLIP's, or has no projection to the space of texts.
    """

    def __init__(self, clip_vision: Any) -> None:
        if clip_vision is None:
            raise ValueError("clip_vision is empty: this checkpoint holds no vision tower. Use Load CLIP Vision.")
        module = clip_vision.model
        if not isinstance(module, CLIPVisionModelProjection):
            raise ValueError(
                f"clip_vision is {type(module).__name__} (DINO?), which knows no texts: only a CLIP's vision tower can "
                f"be led by one. {PAIRS}"
            )
        if module.vision_model.embeddings.class_embedding is None:
            raise ValueError(
                "clip_vision is SigLIP's, whose text tower ComfyUI does not have, and which gives one vector for each "
                f"patch in place of one for the image: it has no text to be led by. {PAIRS}"
            )
        weight = getattr(module.visual_projection, "weight", None)
        if weight is None:
            raise ValueError(f"clip_vision has no projection to the space of texts (visual_projection). {PAIRS}")
        if not is_trained(weight):
            raise ValueError(
                "The projection of clip_vision (visual_projection) was never loaded: its file holds none. Use a "
                f"complete CLIP vision file. {PAIRS}"
            )
        self.clip_vision, self.module, self.patcher = clip_vision, module, clip_vision.patcher
        self.width = int(weight.shape[0])
        self.token_width = int(weight.shape[1])
        self.patches = int(self._embeddings.position_embedding.weight.shape[0]) - 1

    @property
    def _embeddings(self) -> Any:
        return self.module.vision_model.embeddings

    @property
    def device(self) -> torch.device:
        return self.clip_vision.load_device

    def load(self, variants: int) -> None:
        """Makes room for a gradient of so many variants, and loads the tower."""
        load_for_gradients(self.patcher, [self], variants)

    def output(self, tokens: Tensor) -> comfy.clip_vision.Output:
        """What encode_image would give if an image's patches were these tokens `[P, D]`: a batch of one."""
        with torch.no_grad():
            embedded = self._embedded(tokens[None])
        return self._encode(lambda _: embedded)

    @cached_property
    def negative(self) -> comfy.clip_vision.Output:
        """What encode_image would give for an all-zero input: zeros where the tower takes the normalised image, as
        diffusers' Kandinsky prior makes its negative (an image of the colour that normalisation subtracts, a mid
        grey), and not a black one."""
        forward = type(self._embeddings).forward
        return self._encode(lambda pixels: forward(self._embeddings, torch.zeros_like(pixels)))

    def encode_images(self, images: Tensor, crop: bool, after: Callable[[int], None] | None = None) -> Tensor:
        """Embeddings `[B, E]` of IMAGE `[B, H, W, C]`; `after(images)` is called after every few."""
        found = []
        for at in range(0, len(images), _BATCH):
            some = images[at : at + _BATCH]
            with torch.no_grad():
                found.append(self.clip_vision.encode_image(some, crop=crop).image_embeds.float().cpu())
            if after is not None:
                after(len(some))
        return torch.cat(found)

    def check_bank(self, bank: ImageBank) -> None:
        """Raises ValueError for a bank of another tower's embeddings."""
        if bank.width != self.width:
            raise ValueError(
                f"The bank's embeddings are {bank.width} wide, those of clip_vision {self.width}: it was made with "
                "another vision tower. Make one with this."
            )
        cosine = F.cosine_similarity(bank.origin.float(), self.negative.image_embeds[0].float().cpu(), dim=0).item()
        if cosine < _SAME_TOWER:
            raise ValueError(
                f"The bank was made with another vision tower of the same width (cosine {cosine:.2f} between what the "
                "two give for an all-zero input; it must be 0.99 or more). Make one with this tower."
            )

    def _encode(self, embed: Callable[[Tensor], Tensor]) -> comfy.clip_vision.Output:
        """ComfyUI's own encode_image with something else in place of the image's embedded patches."""
        size = self.clip_vision.image_size
        blank = torch.zeros(1, size, size, 3)
        with torch.no_grad(), _embedding(self._embeddings, embed):
            return self.clip_vision.encode_image(blank)

    def _embedded(self, tokens: Tensor) -> Tensor:
        """What the tower's first part would give: `[N, 1 + patches, D]`."""
        repeated = F.interpolate(tokens.transpose(1, 2), size=self.patches, mode="nearest").transpose(1, 2)
        first = comfy.ops.cast_to_input(self._embeddings.class_embedding, repeated).expand(len(tokens), 1, -1)
        position = comfy.ops.cast_to_input(self._embeddings.position_embedding.weight, repeated)
        return torch.cat([first, repeated], dim=1) + position

    def _vectors(self, tokens: Tensor, /) -> Tensor:
        embedded = self._embedded(tokens)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_embedding(self._embeddings, lambda _: embedded))
            if self._is_large():
                stack.enter_context(checkpointed(self.module))
            return self.module(pixel_values=tokens, intermediate_output=-2)[2].float()

    def _bytes_per_row(self) -> int:
        """As for text encoders: about 34 activations of the width in each layer, float32, and the attention. Of a large
        tower what goes into each layer, and the activations of one."""
        layers = len(self.module.vision_model.encoder.layers)
        if self._is_large():
            return layers * (self.patches + 1) * self.token_width * 4 + self._bytes_per_layer()
        return layers * self._bytes_per_layer()

    def _bytes_per_layer(self) -> int:
        length = self.patches + 1
        return length * (34 * self.token_width + 16 * length) * 4

    def _is_large(self) -> bool:
        """Whether layers are computed again in the pass back: what it takes in memory counts for more than the time.
        CLIP ViT-L and larger are."""
        return len(self.module.vision_model.encoder.layers) * self._bytes_per_layer() > _LARGE


@contextlib.contextmanager
def _embedding(embeddings: torch.nn.Module, embed: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the tower's first part gives `embed(pixels)`; afterwards, also after an error, all is as it was."""
    before = embeddings.__dict__.get("forward")
    embeddings.__dict__["forward"] = embed
    try:
        yield
    finally:
        del embeddings.__dict__["forward"]
        if before is not None:
            embeddings.__dict__["forward"] = before
