"""Pictures of earlier runs, for later runs to differ from: explicit, in a file that the user names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..core import memory

CATEGORY = "diversity/memory"
_ALLOWED = re.compile(r"[\w -]{1,64}")


def _path(name: str) -> Path:
    if not _ALLOWED.fullmatch(name):
        raise ValueError(f"name is {name!r}; it must be 1 to 64 letters, digits, spaces, '_' or '-'.")
    return Path(folder_paths.get_output_directory()) / "diversity" / f"{name}.safetensors"


def _name() -> io.Input:
    return io.String.Input(
        "name",
        default="memory",
        tooltip=(
            "Name of the memory, a file in the output folder under diversity. Use one name for each prompt and model; "
            "delete the file to forget."
        ),
    )


class RecallPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityMemoryLoad",
            display_name="Recall Pictures",
            category=CATEGORY,
            description=(
                "Pictures that earlier runs have remembered, for the input avoid of Diverse Noise: this run then "
                "differs from them too. Nothing is remembered without Remember Pictures."
            ),
            inputs=[
                _name(),
                io.Int.Input(
                    "first",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip=(
                        "0: all. To make an earlier run's pictures again, put here how many were remembered before it."
                    ),
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="avoid", tooltip="Small latents, one for each picture; none at first."),
                io.Int.Output(display_name="count", tooltip="How many pictures these are."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str, first: int) -> str:
        """Read again when the file has changed."""
        path = _path(name)
        if not path.is_file():
            return "none"
        status = path.stat()
        return f"{status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, name: str, first: int) -> io.NodeOutput:
        latents = memory.recall(_path(name), first)
        if latents is None:
            latents = torch.zeros(0, 4, memory.GRID, memory.GRID)
        return io.NodeOutput({"samples": latents.float()}, len(latents))


class RememberPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityMemorySave",
            display_name="Remember Pictures",
            category=CATEGORY,
            description="Adds pictures to a memory that later runs can stay away from by Recall Pictures.",
            inputs=[
                io.Latent.Input("latent", tooltip="Finished pictures, from the sampler."),
                _name(),
            ],
            outputs=[io.Int.Output(display_name="count", tooltip="How many pictures the memory holds now.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent: dict[str, Any], name: str) -> io.NodeOutput:
        return io.NodeOutput(memory.remember(_path(name), latent["samples"]))


NODES = [RecallPictures, RememberPictures]
