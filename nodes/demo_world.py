"""The demo world's models, for trying the pack without downloading any."""

from __future__ import annotations

from dataclasses import replace

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io

from ..demo import loader
from ..demo.world.attributes import sample_scene
from ..demo.world.captions import stated_in
from ..demo.world.draw import draw

_Control = getattr(io, "ControlAfterGenerate", None)


class LoadDemoWorld(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityLoadDemoWorld",
            display_name="Load Demo World",
            category="diversity",
            description=(
                "Loads the small models that come with ComfyUI-Diversity: a UNet that draws hearts, stars, fish, "
                "trees, balloons and houses at 128 px, and the CLIP that reads its prompts. For trying the nodes "
                "in seconds, without downloading a model."
            ),
            inputs=[],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="Noise-predicting UNet, 16 latent channels, 128 px."),
                io.Clip.Output(display_name="CLIP", tooltip="Text tower; serves every demo model."),
                io.ClipVision.Output(display_name="CLIP_VISION", tooltip="Vision tower of the same CLIP."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls) -> str:
        """Loaded again only when a weight file changes."""
        return _changes(loader.CLIP_FILE, loader.UNET_FILE)

    @classmethod
    def execute(cls) -> io.NodeOutput:
        embeddings = folder_paths.get_folder_paths("embeddings")
        return io.NodeOutput(loader.load_unet(), loader.load_clip(embeddings), loader.load_clip_vision())


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
    def execute(cls, text: str, count: int, seed: int) -> io.NodeOutput:
        stated, rng = stated_in(text), np.random.default_rng(seed)
        scenes = [replace(sample_scene(rng, stated.get("object")), **stated) for _ in range(count)]
        return io.NodeOutput(torch.from_numpy(np.stack([draw(scene, rng) for scene in scenes])).float() / 255)


def _changes(*files: str) -> str:
    """What tells the versions of these weight files apart."""
    paths = (loader.WEIGHTS / name for name in files)
    return " ".join(f"{path.name}:{path.stat().st_mtime_ns if path.exists() else None}" for path in paths)


NODES = [LoadDemoWorld, LoadDemoUnclip, DemoImages]
