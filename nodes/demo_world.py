"""The demo world's models, for trying the pack without downloading any."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..demo import loader


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
                    display_name="MODEL", tooltip="Noise-predicting UNet led by a picture's embedding, 128 px."
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


def _changes(*files: str) -> str:
    """What tells the versions of these weight files apart."""
    paths = (loader.WEIGHTS / name for name in files)
    return " ".join(f"{path.name}:{path.stat().st_mtime_ns if path.exists() else None}" for path in paths)


NODES = [LoadDemoWorld, LoadDemoUnclip]
