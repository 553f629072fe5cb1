"""What a result was made by and on, so that results of two revisions are never taken for one.

A revision is one model's and one role's: another model's new weights change nothing in it, nor does a change of ours in
what a rival is made by.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from devtools.comfy_source import release
from devtools.places import HERE

from .imported import imported

# The weights that a model's images depend on, and those of the teacher by which a rival takes its first step.
_CLIP, _VAE = "diversity_demo_clip", "vae/diversity_demo_vae"
_MMDIT, _DISTILLED = "diffusion_models/diversity_demo_mmdit", "diffusion_models/diversity_demo_distilled"
_TEXT, _TURBO_BASE = "diversity_demo_turbo_text", "diversity_demo_turbo_base"
_WEIGHTS = {
    "unet": (_CLIP, _VAE, "diversity_demo_unet"),
    "unclip": (_CLIP, _VAE, "diversity_demo_unet", "diversity_demo_unclip"),
    "mmdit": (_CLIP, _VAE, _MMDIT),
    "distilled": (_CLIP, _VAE, _DISTILLED),
    "turbo_base": (_TEXT, _VAE, _TURBO_BASE),
    "turbo": (_TEXT, _VAE, "diversity_demo_turbo"),
}
_TEACHERS = {"distilled": _MMDIT, "turbo": _TURBO_BASE}
# What decides how images come out: of the plain model, with a rival, and with one of our methods.
_PLAIN = ("demo/loader.py", "demo/architectures.py", "benchmarks/job.py", "benchmarks/world.py")
_RIVAL = (*_PLAIN, "benchmarks/rivals/*.py", "benchmarks/peers.py")
_METHOD = (*_RIVAL, "core/**/*.py", "benchmarks/ours.py")
_MAKING = {"baseline": _PLAIN, "rival": _RIVAL, "teacher's rival": _RIVAL, "method": _METHOD}
ROLES = tuple(_MAKING)
# What decides how they are judged.
_JUDGING = ("demo/scorer.py", "demo/fidelity.py", "demo/fidelity.json", "demo/world/*.py", "benchmarks/measure*.py",
            "benchmarks/frontier_score.py")  # fmt: skip


def _files(patterns: Iterable[str], root: Path) -> set[Path]:
    return {path for pattern in patterns for path in root.glob(pattern)}


def _made_by(role: str, model: str, root: Path) -> set[Path]:
    """All files that decide how images come out; of the pack's own, for a rival, what it imports."""
    files = _files((*_MAKING[role], *_weights(model, role)), root)
    if _MAKING[role] is _RIVAL:
        core = root / "core"
        files |= {path for path in imported(_files(_RIVAL, root), root) if path.is_relative_to(core)}
    return files


def _digest(files: Iterable[Path], root: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(files):
        found.update(path.relative_to(root).as_posix().encode() + b"\0")
        # Line endings differ between systems, and say nothing.
        content = path.read_bytes()
        found.update(content if path.suffix == ".safetensors" else content.replace(b"\r\n", b"\n"))
    return found.hexdigest()[:10]


def _weights(model: str, role: str = "baseline") -> list[str]:
    teacher = [_TEACHERS[model]] if role == "teacher's rival" and model in _TEACHERS else []
    return [f"demo/weights/{name}.safetensors" for name in (*_WEIGHTS[model], *teacher)]


@cache
def making(role: str, model: str, root: Path = HERE.root) -> str:
    """Ten digits that stand for all that the images of a role are made by: one of ROLES."""
    return _digest(_made_by(role, model, root), root)


@cache
def revision(role: str, model: str, root: Path = HERE.root) -> str:
    """Ten digits that stand for all that figures depend on: what images are made by, and how they are judged."""
    return _digest(_made_by(role, model, root) | _files(_JUDGING, root), root)


def revisions(model: str) -> set[str]:
    """Of all roles."""
    return {revision(role, model) for role in ROLES}


def machine() -> str:
    """Processor and system, in words."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, one thread, {platform.system()}"


def versions() -> dict[str, str]:
    """Of Python, ComfyUI and what both computes."""
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    found["comfyui"] = release(HERE.comfyui())
    return found
