"""Makes the pack importable by path, the way ComfyUI does it, under the name `comfyui_diversity`.

The pack's root must not be on `sys.path`: its `nodes` would hide ComfyUI's own.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from .places import HERE

NAME = "comfyui_diversity"


def load_pack() -> ModuleType:
    """The pack as the package `comfyui_diversity`; a second call gives the same module.

    Its pure parts need no ComfyUI: `from comfyui_diversity.core.methods import ...`. For `nodes` and `core.hooks` call
    `load_comfyui` first.
    """
    if NAME not in sys.modules:
        init = HERE.root / "__init__.py"
        spec = importlib.util.spec_from_file_location(NAME, init, submodule_search_locations=[str(HERE.root)])
        if spec is None or spec.loader is None:
            raise ImportError(f"{init} cannot be loaded as a package.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[NAME] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[NAME]
            raise
    return sys.modules[NAME]


def load_comfyui() -> Path:
    """Puts ComfyUI on `sys.path`, set to the CPU and to the development base directory; returns its folder.

    ComfyUI reads its settings at import, so this comes before anything of `comfy`, `nodes` or `folder_paths`.
    """
    comfyui = HERE.comfyui()
    if not (comfyui / "comfy").is_dir():
        raise FileNotFoundError(f"{comfyui} holds no ComfyUI. Run `python dev.py test` once: it sets one up.")
    if str(comfyui) not in sys.path:
        sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu = True
    args.use_pytorch_cross_attention = True  # the only attention kernel that every platform has and gradients pass
    args.base_directory = str(HERE.base)
    return comfyui
