"""The types of all code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from devtools.places import HERE


@pytest.mark.fast
def test_types() -> None:
    command = [str(HERE.program("pyrefly")), "check", "--python-interpreter-path", sys.executable, "--summary=none"]
    found = subprocess.run(command, cwd=HERE.root, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
