"""Workflows that earlier versions of the pack have saved, every node and every option in them, still run.

tests/saved/VERSION holds each as the front end saves it, and as the prompt that the front end made of it then. These
files are never changed: whoever cannot run them any more has broken what users have saved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from devtools.images import decode
from devtools.places import HERE
from devtools.server import Client

SAVED = HERE.root / "tests" / "saved"
PROMPTS = sorted(SAVED.glob("*/*.prompt.json"))


def prompt_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: f"{path.parent.name}-{path.name.split('.')[0]}")
def test_runs_to_the_end(client: Client, path: Path) -> None:
    if "DiversityLoadImageBank" in path.read_text(encoding="utf-8"):
        client.run(prompt_of(path.with_name("vision.prompt.json")))  # saves the bank that this one loads
    images = [decode(file) for file in client.images(client.run(prompt_of(path)))]
    assert len(images) == 2
    assert (images[0] != images[1]).any()
