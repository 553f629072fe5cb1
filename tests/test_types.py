"""The types of all code. A test, so that it runs beside those that wait for a browser."""

from __future__ import annotations

import subprocess

from devtools.places import HERE


def test_types() -> None:
    command = [str(HERE.program("basedpyright")), "--level", "error"]
    found = subprocess.run(command, cwd=HERE.root, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
