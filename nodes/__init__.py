"""Gathers the nodes: every module beside this one ends with a list called NODES."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from typing import Any

logger = logging.getLogger("ComfyUI-Diversity")


def gather() -> list[Any]:
    """The node classes of every module in this folder, in alphabetical order of the modules.

    A module that cannot be imported, or whose node has a schema that ComfyUI refuses, is logged with its traceback
    and left out: ComfyUI itself would drop the whole pack for one bad schema.
    """
    gathered: list[Any] = []
    for found in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        if found.name.startswith("_"):
            continue
        try:
            nodes = list(importlib.import_module(f".{found.name}", __name__).NODES)
            for node in nodes:
                node.GET_SCHEMA()
        except Exception:
            logger.exception("nodes/%s.py could not be loaded and is left out; the other nodes work.", found.name)
            continue
        gathered += nodes
    return gathered


NODES = gather()
