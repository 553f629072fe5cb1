"""Images that a benchmark keeps: made once, never half, never another prompt's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from benchmarks.image_store import stored
from benchmarks.results import add_row, read, write


def image(value: int) -> np.ndarray:
    return np.full((2, 4, 4, 3), value, np.uint8)


def test_images_are_made_once(tmp_path: Path) -> None:
    path = tmp_path / "a" / "1.npz"
    first = stored(path, "a heart", 2, lambda: image(7))
    again = stored(path, "a heart", 2, lambda: pytest.fail("made twice"))
    assert np.array_equal(first, image(7))
    assert np.array_equal(again, first)


def test_what_was_stopped_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "1.npz"

    def stopped() -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(path, "a heart", 2, stopped)
    assert list(tmp_path.iterdir()) == []
    assert np.array_equal(stored(path, "a heart", 2, lambda: image(3)), image(3))


def test_results_survive_a_full_disk(tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]) -> None:
    path = tmp_path / "rows.json"
    for k in range(2):
        add_row(path, "python -m benchmarks.x", {"row": f"row {k}", "mean": 0.5})
    before = path.read_text()
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write(path, "python -m benchmarks.x", read(path)["rows"][:1])
    with full_disk(), pytest.raises(OSError, match="File too large"):
        stored(tmp_path / "1.npz", "a heart", 2, lambda: image(7))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == before


def test_other_images_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "1.npz"
    stored(path, "a heart", 2, lambda: image(7))
    with pytest.raises(ValueError, match=r"has uint8 \[2, 4, 4, 3\] of 'a heart'; it must have 2 images of 'a star'"):
        stored(path, "a star", 2, lambda: image(7))
    with pytest.raises(ValueError, match="it must have 5 images of 'a heart'"):
        stored(path, "a heart", 5, lambda: image(7))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged; delete it"):
        stored(path, "a heart", 2, lambda: image(7))
