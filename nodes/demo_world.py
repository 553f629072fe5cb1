"""The demo world's models, for trying the pack without downloading any."""

from __future__ import annotations

from dataclasses import replace

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io

from ..demo import loader, turbo
from ..demo.world.attributes import sample_scene
from ..demo.world.captions import stated_in
from ..demo.world.draw import draw
from ._inputs import checked

# What Load Demo World offers, and the weight files of each besides the CLIP's.
_MODELS = {
    "unet": (loader.UNET_FILE,),
    "turbo": (loader.TURBO_FILE, loader.TURBO_TEXT_FILE),
    "turbo_base": (loader.TURBO_BASE_FILE, loader.TURBO_TEXT_FILE),
}
_Control = getattr(io, "ControlAfterGenerate", None)


class LoadDemoWorld(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityLoadDemoWorld",
            display_name="Load Demo World",
            category="diversity",
            description=(
                "Loads the small models that come with ComfyUI-Diversity, which draw hearts, stars, fish, trees, "
                "balloons and houses at 128 px, and the text encoder that reads their prompts. For trying the nodes "
                "in seconds, without downloading a model."
            ),
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(_MODELS),
                    default="unet",
                    optional=True,
                    tooltip=(
                        "unet: a noise-predicting UNet of SD1.5's kind with a CLIP; cfg 2, 20 steps. turbo: a "
                        "transformer of Z-Image Turbo's kind with a language model as its text encoder; cfg 1, 8 "
                        "steps, res_multistep, simple, behind ModelSamplingAuraFlow with shift 3. turbo_base: the "
                        "same before it is made fast; cfg 2, 20 steps, euler, simple."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The chosen model: 16 latent channels, 128 px."),
                io.Clip.Output(
                    display_name="CLIP",
                    tooltip=(
                        "Its text encoder. unet's also serves the two models that Load Diffusion Model reads; turbo's "
                        "also serves turbo_base."
                    ),
                ),
                io.ClipVision.Output(display_name="CLIP_VISION", tooltip="Vision tower of the CLIP, for any of them."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str = "unet") -> str:
        """Loaded again only when a weight file changes."""
        return _changes(loader.CLIP_FILE, *_MODELS.get(model, ()))

    @classmethod
    @checked
    def execute(cls, model: str = "unet") -> io.NodeOutput:
        embeddings = folder_paths.get_folder_paths("embeddings")
        if model == "unet":
            return io.NodeOutput(loader.load_unet(), loader.load_clip(embeddings), loader.load_clip_vision())
        loaded = turbo.load_turbo(_MODELS[model][0])
        return io.NodeOutput(loaded, turbo.load_turbo_clip(embeddings), loader.load_clip_vision())


class LoadDemoUnclip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityLoadDemoUnclip",
            display_name="Load Demo unCLIP",
            category="diversity",
            description=(
                "Loads the demo model that draws what a CLIP vision output shows instead of what a prompt says. Use it "
                "with ComfyUI's unCLIPConditioning node on an empty prompt of Load Demo World."
            ),
            inputs=[],
            outputs=[
                io.Model.Output(
                    display_name="MODEL", tooltip="Noise-predicting UNet led by an image's embedding, 128 px."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls) -> str:
        """Loaded again only when a weight file changes."""
        return _changes(loader.UNET_FILE, loader.UNCLIP_FILE)

    @classmethod
    @checked
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(loader.load_unclip())


class DemoImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityDemoImages",
            display_name="Demo World Images",
            category="diversity",
            description=(
                "Draws images of the demo world, as its models were shown them: what the text says, and everything "
                "else as often as the world has it. Drawn by a program, not by a model: real images to compare with, "
                "or to make an image embedding bank of."
            ),
            inputs=[
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip='What all images show, such as "a heart on the left". Empty: any object.',
                ),
                io.Int.Input("count", default=10, min=1, max=4096, tooltip="How many images."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True if _Control is None else _Control.fixed,
                    tooltip="Which images.",
                ),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="A batch of images, 128 x 128.")],
        )

    @classmethod
    @checked
    def execute(cls, text: str, count: int, seed: int) -> io.NodeOutput:
        stated, rng = stated_in(text), np.random.default_rng(seed)
        scenes = [replace(sample_scene(rng, stated.get("object")), **stated) for _ in range(count)]
        return io.NodeOutput(torch.from_numpy(np.stack([draw(scene, rng) for scene in scenes])).float() / 255)


def _changes(*files: str) -> str:
    """What tells the versions of these weight files apart."""
    paths = (loader.WEIGHTS / name for name in files)
    return " ".join(f"{path.name}:{path.stat().st_mtime_ns if path.exists() else None}" for path in paths)


NODES = [LoadDemoWorld, LoadDemoUnclip, DemoImages]
