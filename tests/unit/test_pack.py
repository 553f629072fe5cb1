"""The pack as a Python package."""

from __future__ import annotations

import os
import subprocess
import sys

from devtools.pack import NAME
from devtools.places import HERE


def test_pure_parts_import_without_comfyui():
    """core.methods is usable where there is no ComfyUI, and drags no ComfyUI in where there is one."""
    code = (
        "import importlib, pkgutil, sys\n"
        "from devtools.pack import load_pack\n"
        "load_pack()\n"
        "import comfyui_diversity.core.methods as methods\n"
        "for module in pkgutil.iter_modules(methods.__path__):\n"
        "    importlib.import_module(f'{methods.__name__}.{module.name}')\n"
        "comfy = [name for name in sys.modules if name.split('.')[0].startswith('comfy') and 'diversity' not in name]\n"
        "assert not comfy, comfy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr


def test_root_is_not_on_the_import_path():
    """Else the pack's `nodes` would hide ComfyUI's."""
    assert str(HERE.root) not in sys.path
    assert "" not in sys.path


def test_the_pack_was_imported_once_and_by_us():
    """Not by pytest, which takes a folder with an __init__.py for a package of tests."""
    init = str(HERE.root / "__init__.py")
    assert [name for name, module in sys.modules.items() if getattr(module, "__file__", None) == init] == [NAME]
