"""The unCLIP-style UNet: the demo UNet, told by the embedding of an image instead of by words.

As in Kandinsky 2.2's decoder, the embedding is added to the time embedding and also read by cross-attention. For the
latter it is turned into what the words of a full caption would have added to the hidden states of an empty prompt.
"""

from __future__ import annotations

from typing import Any

import comfy.model_base
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.modules.encoders.noise_aug_modules import CLIPEmbeddingNoiseAugmentation
from torch import Tensor, nn
from torch.nn import functional as F

from .architectures import TEXT, UNCLIP_NOISE, UNCLIP_UNET, UNCLIP_WORDS


class PictureWords(nn.Module):
    """What an image adds to the hidden states of an empty prompt: `[N, 2 E]` (embedding, noise level) to
    `[N, 77, W]`. The positions behind the longest caption share one vector."""

    def __init__(self, operations: Any, dtype: Any = None, device: Any = None) -> None:
        super().__init__()
        given: dict[str, Any] = {"dtype": dtype, "device": device}
        self.width = TEXT["hidden_size"]
        hidden, rank = UNCLIP_WORDS["hidden"], UNCLIP_WORDS["rank"]
        self.inner = operations.Linear(UNCLIP_UNET["adm_in_channels"], hidden, **given)
        self.outer = operations.Linear(hidden, rank, **given)
        self.basis = operations.Linear(rank, (UNCLIP_WORDS["positions"] + 1) * self.width, bias=False, **given)

    def forward(self, y: Tensor) -> Tensor:
        words = self.basis(self.outer(F.silu(self.inner(y)))).unflatten(1, (-1, self.width))
        behind = TEXT["max_position_embeddings"] - words.shape[1]
        return F.pad(words.transpose(1, 2), (0, behind), mode="replicate").transpose(1, 2)


class PictureUNet(UNetModel):
    """The demo UNet with an embedding `y` `[N, 2 E]` of an image beside the `context` `[N, 77 k, W]` of a prompt."""

    def __init__(self, *args: Any, operations: Any, dtype: Any = None, device: Any = None, **config: Any) -> None:
        super().__init__(*args, operations=operations, dtype=dtype, device=device, **config)
        self.picture_words = PictureWords(operations, dtype, device)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor, *args: Any, **options: Any) -> Tensor:
        words = self.picture_words(y.to(context))
        longer = context.shape[1] - words.shape[1]  # a prompt of several chunks
        return super().forward(x, timesteps, context + F.pad(words, (0, 0, 0, longer)), y, *args, **options)


class Unclip(comfy.model_base.SD21UNCLIP):
    """ComfyUI's unCLIP model around `PictureUNet`, so that the stock unCLIPConditioning node serves it."""

    def __init__(self, model_config: Any, device: Any = None) -> None:
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.EPS, device=device, unet_model=PictureUNet
        )
        self.noise_augmentor = CLIPEmbeddingNoiseAugmentation(**UNCLIP_NOISE)
