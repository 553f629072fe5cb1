"""Missing and damaged weight files are found and explained before anything is started."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from devtools.errors import SetupError
from devtools.places import HERE
from devtools.weights import check_weights

CONTENT = {"a.safetensors": b"first weights", "b.safetensors": b"second weights"}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return tmp_path


def test_the_shipped_weights_are_whole():
    check_weights(HERE.weights)


def test_the_shipped_weights_stay_small():
    sizes = {path.name: path.stat().st_size for path in HERE.weights.rglob("*.safetensors")}
    assert len(sizes) >= 10
    assert sum(sizes.values()) <= 40_000_000, sizes


def test_whole_weights_pass(weights: Path):
    check_weights(weights)


def test_missing_weights(weights: Path):
    (weights / "b.safetensors").unlink()
    with pytest.raises(SetupError, match=r"b\.safetensors is missing.*git checkout"):
        check_weights(weights)


@pytest.mark.parametrize(
    "content", [b"", b"first weight", b"First weights", b"version https://git-lfs.github.com/spec/v1"]
)
def test_damaged_weights(weights: Path, content: bytes):
    (weights / "a.safetensors").write_bytes(content)
    with pytest.raises(SetupError, match=rf"a\.safetensors \({len(content)} bytes\) is damaged.*git checkout"):
        check_weights(weights)


def test_a_folder_in_place_of_weights(weights: Path):
    (weights / "a.safetensors").unlink()
    (weights / "a.safetensors").mkdir()
    with pytest.raises(SetupError, match=r"a\.safetensors cannot be read"):
        check_weights(weights)


@pytest.mark.parametrize("text", ["", "{", "[]", "\N{REPLACEMENT CHARACTER}"])
def test_damaged_manifest(weights: Path, text: str):
    (weights / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(SetupError, match=r"manifest\.json, is damaged"):
        check_weights(weights)


def test_empty_manifest(weights: Path):
    (weights / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SetupError, match=r"manifest\.json, is empty"):
        check_weights(weights)


def test_missing_manifest(tmp_path: Path):
    with pytest.raises(SetupError, match=r"manifest\.json, is missing"):
        check_weights(tmp_path)
