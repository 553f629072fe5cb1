"""Files written in one step, and the one way to require a value."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from comfyui_diversity.core import files
from comfyui_diversity.core.require import require

pytestmark = pytest.mark.fast
SHAPES = {"rows": (64, 64)}
Full = Callable[[], AbstractContextManager[None]]


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "bank.safetensors"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda value: files.store(path, {"rows": torch.full((64, 64), float(value))}), range(64)))
    found = files.load(path, SHAPES)
    assert found is not None
    assert len(found["rows"].unique()) == 1
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    files.store(path, {"rows": torch.ones(64, 64)})
    shared = torch.zeros(64, 64)
    with pytest.raises(RuntimeError):
        files.store(path, {"rows": shared, "same": shared})  # safetensors refuses tensors that share memory
    assert files.load(path, SHAPES) is not None
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_full_disk(tmp_path: Path, full_disk: Full, caplog: pytest.LogCaptureFixture) -> None:
    """The old file survives, no part of the new one stays, and the error says what and why."""
    path = tmp_path / "bank.safetensors"
    for before in ([], [path.name]):
        with full_disk(), pytest.raises(OSError, match=f"{re.escape(str(path))} could not be written .*disk full"):
            files.store(path, {"rows": torch.zeros(64, 64)})
        with full_disk(), caplog.at_level(logging.WARNING):
            files.keep(path, {"rows": torch.zeros(64, 64)})
        assert "It will be made again when it is needed." in caplog.text
        assert [entry.name for entry in tmp_path.iterdir()] == before
        files.store(path, {"rows": torch.ones(64, 64)})
        found = files.load(path, SHAPES)
        assert found is not None
        assert bool((found["rows"] == 1).all())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "bank.safetensors"
    with pytest.raises(OSError, match=f"{re.escape(str(path))} could not be written"):
        files.store(path, {"rows": torch.ones(2)})


def test_a_file_of_another_shape_or_none_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    assert files.load(path, SHAPES) is None
    files.store(path, {"rows": torch.ones(2)})
    assert files.load(path, SHAPES) is None
    path.write_bytes(b"torn")
    assert files.load(path, SHAPES) is None


def test_a_name_depends_on_tensors_and_settings() -> None:
    tensors = [torch.ones(3)]
    assert files.key(tensors, 1) == files.key([torch.ones(3) + 1e-5], 1)
    assert len({files.key(tensors, 1), files.key(tensors, 2), files.key([torch.zeros(3)], 1)}) == 3


def test_a_value_that_is_not_allowed_is_named() -> None:
    require(True, "steps", 1, "0 or more")
    with pytest.raises(ValueError, match=re.escape("mode is 'fast'; it must be one of a, b.")):
        require(False, "mode", "fast", "one of a, b")
