"""The demo world inside this process: images from ComfyUI's own sampling, with any noise and any patch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from devtools.pack import load_comfyui, load_pack
from devtools.places import HERE

# `python -m` puts the pack's root on the path, where its `nodes` would hide ComfyUI's.
sys.path[:] = [entry for entry in sys.path if entry not in ("", str(HERE.root))]
load_pack()
load_comfyui()

import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
from comfyui_diversity.demo import loader, turbo  # noqa: E402

from benchmarks.measure import Group  # noqa: E402

NoiseMaker = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a demo model is sampled."""

    cfg: float
    steps: int
    scheduler: str
    sampler: str = "euler"


RECIPES = {
    "unet": Recipe(2.0, 20, "normal"),
    "mmdit": Recipe(2.0, 20, "simple"),
    "distilled": Recipe(1.0, 4, "simple"),
    "unclip": Recipe(3.0, 20, "normal"),
    "turbo": Recipe(1.0, 8, "simple", "res_multistep"),
    "turbo_base": Recipe(2.0, 20, "simple"),
}


class World:
    """One demo model with its CLIP and VAE; `steps` 0 is the model's own. Raises ValueError for an unknown model."""

    def __init__(self, model: str, steps: int = 0) -> None:
        if model not in RECIPES:
            raise ValueError(f"model is {model!r}; it must be one of {', '.join(RECIPES)}.")
        self.name = model
        self.recipe = RECIPES[model] if steps == 0 else replace(RECIPES[model], steps=steps)
        with torch.inference_mode():
            if model == "unet":
                self.model: Any = loader.load_unet()
            elif model == "unclip":
                self.model = loader.load_unclip()
            elif model in ("turbo", "turbo_base"):
                # What ModelSamplingAuraFlow at shift 3 makes of the model is what it is already.
                self.model = turbo.load_turbo(loader.TURBO_FILE if model == "turbo" else loader.TURBO_BASE_FILE)
            else:
                file = {"mmdit": loader.MMDIT_FILE, "distilled": loader.DISTILLED_FILE}[model]
                self.model = comfy.sd.load_diffusion_model(str(loader.WEIGHTS / file))
            self.clip = turbo.load_turbo_clip() if model in ("turbo", "turbo_base") else loader.load_clip()
            weights = comfy.utils.load_torch_file(str(loader.WEIGHTS / loader.VAE_FILE))
            self._vae = comfy.sd.VAE(sd=weights)
            self._vae.throw_exception_if_invalid()

    @torch.inference_mode()
    def conditioning(self, text: str) -> list:
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    @torch.inference_mode()
    def latents(
        self,
        text: str,
        seed: int,
        batch: int,
        patched: Any = None,
        noise: NoiseMaker | None = None,
        positive: list | None = None,
        negative: list | None = None,
    ) -> Tensor:
        """Finished latents `[batch, 16, 16, 16]` as KSampler gives them.

        patched: a patched clone of `model`; noise: what becomes of KSampler's own noise; positive, negative:
        conditioning in place of the text's own and of the empty prompt's.
        """
        empty = torch.zeros(batch, 16, 16, 16)
        start = comfy.sample.prepare_noise(empty, seed)
        return comfy.sample.sample(
            self.model if patched is None else patched,
            start if noise is None else noise(start),
            self.recipe.steps,
            self.recipe.cfg,
            self.recipe.sampler,
            self.recipe.scheduler,
            self.conditioning(text) if positive is None else positive,
            self.conditioning("") if negative is None else negative,
            empty,
            seed=seed,
            disable_pbar=True,
        )

    @torch.inference_mode()
    def images(self, latents: Tensor) -> Any:
        """`uint8 [N, 128, 128, 3]`, rounded as SaveImage does."""
        return (255.0 * self._vae.decode(latents)).clamp(0, 255).numpy().astype("uint8")

    def group(self, prompt: Any, latents: Sequence[Tensor]) -> Group:
        return Group(prompt, self.images(torch.cat(list(latents))))
