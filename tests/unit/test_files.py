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


def test_a_file_that_is_not_there_is_not_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert files.load(tmp_path / "bank.safetensors", SHAPES) is None
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ({"rows": torch.ones(2)}, r"holds .*\(2,\).* in place of .*\(64, 64\)"),
        ({"others": torch.ones(64, 64)}, "holds .*others"),
        ({"rows": torch.full((64, 64), float("nan"))}, "not finite"),
        ({"rows": torch.ones(64, 64).index_fill(0, torch.tensor([5]), float("-inf"))}, "not finite"),
        (b"torn", "header"),
    ],
)
def test_a_damaged_file_is_named_and_not_loaded(
    held: dict[str, torch.Tensor] | bytes, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "bank.safetensors"
    if isinstance(held, bytes):
        path.write_bytes(held)
    else:
        files.store(path, held)
    assert files.load(path, SHAPES) is None
    assert re.search(f"{re.escape(str(path))} is damaged \\(.*{why}.*\\). It is made again.", caplog.text)


def test_a_name_depends_on_tensors_and_settings() -> None:
    tensors = [torch.ones(3)]
    assert files.key(tensors, 1) == files.key([torch.ones(3) + 1e-5], 1)
    assert len({files.key(tensors, 1), files.key(tensors, 2), files.key([torch.zeros(3)], 1)}) == 3


def test_a_value_that_is_not_allowed_is_named() -> None:
    require(True, "steps", 1, "0 or more")
    with pytest.raises(ValueError, match=re.escape("mode is 'fast'; it must be one of a, b.")):
        require(False, "mode", "fast", "one of a, b")
