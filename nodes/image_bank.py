"""Banks of real image embeddings: what images look like to a CLIP, for OVI to stay near to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..core.hooks.progress import Progress
from ..core.hooks.vision import VisionTower
from ..core.methods import image_bank
from ..core.methods.image_bank import ImageBank
from ._inputs import advanced, checked

CATEGORY = "diversity/vision"
Bank = io.Custom("DIVERSITY_IMAGE_BANK")
CROPS = ("center", "none")
_ALLOWED = re.compile(r"[\w -]{1,64}")


def _folder() -> Path:
    return Path(folder_paths.get_output_directory()) / "diversity" / "banks"


def _path(name: str) -> Path:
    if not _ALLOWED.fullmatch(name):
        raise ValueError(f"name is {name!r}; it must be 1 to 64 letters, digits, spaces, '_' or '-'.")
    return _folder() / f"{name}.safetensors"


def _name() -> io.Input:
    return io.String.Input(
        "name", default="bank", tooltip="Name of the bank, a file in the output folder under diversity/banks."
    )


class MakeImageBank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityImageBank",
            display_name="Image Embedding Bank",
            category=CATEGORY,
            description=(
                "What your own images look like to a CLIP: their embeddings, for Text to Vision Embedding (OVI) to "
                "stay near to. A few hundred images of the kind that you want are a good bank."
            ),
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="Images, as a batch or as a list (then of any sizes)."),
                io.ClipVision.Input("clip_vision", tooltip="The CLIP vision tower that OVI will use."),
                advanced(
                    io.Combo.Input(
                        "crop",
                        options=list(CROPS),
                        default=CROPS[0],
                        tooltip='As in CLIP Vision Encode. "center": the middle square. "none": squeezed to a square.',
                    )
                ),
                Bank.Input("bank", optional=True, tooltip="A bank that these images are added to."),
            ],
            outputs=[
                Bank.Output(display_name="bank", tooltip="For Text to Vision Embedding (OVI), or Save Image Bank."),
                io.Int.Output(display_name="count", tooltip="How many images the bank holds."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, images: list[Tensor], clip_vision: list[Any], crop: list[str], bank: list[ImageBank] | None = None
    ) -> io.NodeOutput:
        tower = VisionTower(clip_vision[0])
        found = bank[0] if bank else None
        if found is not None:
            tower.check_bank(found)
        total = sum(len(batch) for batch in images)
        if total == 0:
            raise ValueError("images is empty; a bank needs one image or more.")
        bar = _Bar(total)
        for batch in images:
            if len(batch) == 0:
                continue
            embeddings = tower.encode_images(batch, crop[0] == CROPS[0], bar)
            origin = tower.negative.image_embeds[0].float().cpu()
            found = ImageBank(embeddings, origin) if found is None else found.extended(embeddings)
        assert found is not None
        return io.NodeOutput(found, len(found))


class _Bar:
    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._progress = Progress(total)

    def __call__(self, images: int) -> None:
        for _ in range(images):
            self._done += 1
            self._progress.step(f"image {self._done} of {self._total}")


class SaveImageBank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversitySaveImageBank",
            display_name="Save Image Bank",
            category=CATEGORY,
            description="Keeps an image embedding bank in a file. One of the same name is replaced.",
            inputs=[Bank.Input("bank", tooltip="From Image Embedding Bank."), _name()],
            outputs=[io.Int.Output(display_name="count", tooltip="How many images the bank holds.")],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, bank: ImageBank, name: str) -> io.NodeOutput:
        bank.save(_path(name))
        return io.NodeOutput(len(bank))


class LoadImageBank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DiversityLoadImageBank",
            display_name="Load Image Bank",
            category=CATEGORY,
            description="An image embedding bank that Save Image Bank has kept.",
            inputs=[_name()],
            outputs=[
                Bank.Output(display_name="bank", tooltip="For Text to Vision Embedding (OVI), or to be extended."),
                io.Int.Output(display_name="count", tooltip="How many images the bank holds."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> str:
        """Read again when the file has changed."""
        path = _path(name)
        if not path.is_file():
            return "none"
        status = path.stat()
        return f"{status.st_mtime_ns} {status.st_size}"

    @classmethod
    @checked
    def execute(cls, name: str) -> io.NodeOutput:
        path = _path(name)
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in _folder().glob("*.safetensors"))) or "none"
            raise ValueError(f"name is {name!r}, but there is no such bank in {_folder()}. There are: {known}.")
        bank = image_bank.load(path)
        return io.NodeOutput(bank, len(bank))


NODES = [MakeImageBank, SaveImageBank, LoadImageBank]
