"""The CLIP that `benchmarks.released` judges images by: a file of both towers, or the demo world's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Judge(Protocol):
    """A CLIP with both towers."""

    def images(self, images: np.ndarray) -> Any:
        """Features `[N, E]` of `uint8 [N, H, W, 3]`."""
        ...

    def text(self, text: str) -> Any:
        """The text's vector `[E]` in the same space."""
        ...


class ClipFile:
    """A CLIP checkpoint in the layout of transformers. Raises ValueError for a file without both towers."""

    def __init__(self, path: Path) -> None:
        import comfy.clip_vision
        import comfy.sd
        import comfy.utils

        if not path.is_file():
            raise ValueError(f"--clip is {path}; there is no such file.")
        weights = comfy.utils.load_torch_file(str(path), safe_load=True)
        parts = ("vision_model.", "text_model.", "visual_projection.", "text_projection.")
        missing = [part for part in parts if not any(name.startswith(part) for name in weights)]
        if missing:
            raise ValueError(f"--clip is {path}, which has no {missing[0]}*; it must be a CLIP with both towers.")
        vision = comfy.clip_vision.load_clipvision_from_sd(dict(weights))
        if vision is None:
            raise ValueError(f"--clip is {path}, whose vision tower ComfyUI cannot read; it reads ViT-L, H and bigG.")
        text = {name: value for name, value in weights.items() if name.startswith("text_")}
        clip = comfy.sd.load_text_encoder_state_dicts([text], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)
        self._towers = Towers(vision, clip)

    def images(self, images: np.ndarray) -> Any:
        return self._towers.images(images)

    def text(self, text: str) -> Any:
        return self._towers.text(text)


class Towers:
    """A CLIP_VISION and a CLIP of one space."""

    def __init__(self, vision: Any, clip: Any) -> None:
        from comfyui_diversity.core.hooks.vision import VisionTower

        self._vision, self._clip = VisionTower(vision), clip

    def images(self, images: np.ndarray) -> Any:
        import torch

        return self._vision.encode_images(torch.from_numpy(images).float() / 255, crop=True).float()

    def text(self, text: str) -> Any:
        from comfyui_diversity.core.drivers.ovi import text_target

        return text_target(self._clip, text, self._vision.width).vectors[0].float()


def demo_judge() -> Towers:
    """The demo world's own CLIP."""
    from comfyui_diversity.demo import loader

    return Towers(loader.load_clip_vision(), loader.load_clip())
