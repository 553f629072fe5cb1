"""A pack in which some node files are broken, loaded as ComfyUI loads it when it starts."""

from __future__ import annotations

import asyncio
import importlib
import logging
import shutil
import sys
from pathlib import Path

import pytest

from devtools.base import NOT_COPIED
from devtools.places import HERE, PACK_NAME

stock = importlib.import_module("nodes")  # ComfyUI's, not the pack's

BROKEN = {
    "broken_import.py": "import no_such_package_anywhere\nNODES = []\n",
    "broken_list.py": "X = 1\n",
    "broken_schema.py": (
        "from comfy_api.latest import io\n"
        "class BrokenSchema(io.ComfyNode):\n"
        "    @classmethod\n"
        "    def define_schema(cls):\n"
        "        return io.Schema(node_id='BrokenSchema', inputs=[io.Int.Input('same'), io.Int.Input('same')])\n"
        "NODES = [BrokenSchema]\n"
    ),
}

REGISTERS = ("NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "EXTENSION_WEB_DIRS", "LOADED_MODULE_DIRS")


def test_broken_node_files_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is logged with its traceback; the rest of the pack, here a copy as some users have it, loads."""
    copy = tmp_path / PACK_NAME
    shutil.copytree(HERE.root, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    for name, source in BROKEN.items():
        (copy / "nodes" / name).write_text(source, encoding="utf-8")
    for name in REGISTERS:
        monkeypatch.setattr(stock, name, {})
    before = set(sys.modules)
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(stock.load_custom_node(str(copy)))
    for name in set(sys.modules) - before:
        if name.startswith(str(tmp_path).replace(".", "_x_")):
            del sys.modules[name]
    whole = importlib.import_module("comfyui_diversity.nodes").NODES
    assert sorted(stock.NODE_CLASS_MAPPINGS) == sorted(node.GET_SCHEMA().node_id for node in whole)
    for name in BROKEN:
        assert f"nodes/{name} could not be loaded and is left out" in caplog.text
    assert "Traceback" in caplog.text
    assert "ModuleNotFoundError: No module named 'no_such_package_anywhere'" in caplog.text
