"""Which part of the pack may import which: the contracts in pyproject.toml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.pack import NAME
from devtools.places import HERE

PARTS = ("core", "demo", "nodes")
BROKEN = {
    "core.methods is pure": ("core/methods/broken.py", "import comfy.samplers\n"),
    "core.hooks adapts": ("core/hooks/broken.py", "from ..drivers import cno\n"),
    "core.drivers knows no node": ("core/drivers/broken.py", "def later():\n    from ...nodes import NODES\n"),
    "what ships needs no tools": ("nodes/broken.py", "import devtools\n"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The pack's folder under the name by which it is imported."""
    pack = tmp_path / NAME
    pack.mkdir()
    shutil.copy(HERE.root / "__init__.py", pack)
    for part in PARTS:
        ignored = shutil.ignore_patterns("*.pt", "*.npz", "*.safetensors", "__pycache__", "output")
        shutil.copytree(HERE.root / part, pack / part, ignore=ignored)
    return pack


def judged(pack: Path) -> tuple[int, str]:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--config",
        str(HERE.root / "pyproject.toml"),
        "--no-cache",
    ]
    done = subprocess.run(
        command,
        cwd=pack.parent,
        env={**os.environ, "PYTHONPATH": str(pack.parent)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_layers(copy: Path) -> None:
    code, said = judged(copy)
    assert code == 0, said


def test_a_broken_rule_is_noticed(copy: Path) -> None:
    for place, line in BROKEN.values():
        (copy / place).write_text(line, encoding="utf-8")
    code, said = judged(copy)
    assert code == 1, said
    assert all(name in said for name in BROKEN), said
    assert f"{len(BROKEN)} broken" in said, said
