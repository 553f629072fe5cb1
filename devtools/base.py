"""ComfyUI's base directory for development: the pack in `custom_nodes`, room for models and images."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from .places import PACK_NAME

FOLDERS = ("custom_nodes", "input", "output", "user")
# a copied pack needs no tools, and must not hold the work folder that it is copied into
NOT_COPIED = (".*", "__pycache__", "devtools", "tests", "benchmarks", "training", "output")


def prepare_base(base: Path, pack: Path) -> None:
    """Makes or mends the base directory. What is right already stays; ComfyUI's own files in it are not touched."""
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    mount_folder(pack, base / "custom_nodes" / PACK_NAME)


def mount_folder(source: Path, target: Path) -> None:
    """Makes `target` the folder `source`: by a link, by a junction (Windows), or else by a fresh copy."""
    if same_place(source, target):
        return
    remove(target)
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        if not _junction(source, target):
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*NOT_COPIED))


def same_place(source: Path, target: Path) -> bool:
    """Whether both are one and the same existing file or folder."""
    try:
        return source.samefile(target)
    except OSError:
        return False


def remove(target: Path) -> None:
    """Removes a file, a folder, a link or a junction; never what a link or a junction points to."""
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.exists() or _is_junction(target):
        if _is_junction(target):
            target.rmdir()
        else:
            shutil.rmtree(target)


def _junction(source: Path, target: Path) -> bool:
    if sys.platform != "win32":
        return False
    import _winapi

    try:
        _winapi.CreateJunction(str(source), str(target))  # pyrefly: ignore[missing-attribute]
    except OSError:
        return False
    return True


def _is_junction(path: Path) -> bool:
    if sys.platform != "win32":
        return False
    try:
        # IO_REPARSE_TAG_MOUNT_POINT; Path.is_junction needs 3.12
        return path.lstat().st_reparse_tag == 0xA0000003  # pyrefly: ignore[missing-attribute]
    except OSError:
        return False
