"""ComfyUI-Diversity: makes the images of one prompt differ from one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> ComfyExtension:
    """The extension whose nodes ComfyUI registers."""
    # ComfyUI is imported here, not above, so that the pure parts (core.methods) can be used where there is no ComfyUI.
    from comfy_api.latest import ComfyExtension, io

    from .demo.loader import list_stock_models
    from .nodes import NODES

    list_stock_models()  # here, not in `on_load`: ComfyUI 0.3.75 does not call that

    class DiversityExtension(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return list(NODES)

    return DiversityExtension()
