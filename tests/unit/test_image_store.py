"""Images that a benchmark keeps: made once, never half, never another prompt's."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from benchmarks.image_store import stored
from benchmarks.results import add_row, read, write


def image(value: int) -> np.ndarray:
    return np.full((2, 128, 128, 3), value, np.uint8)


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
    with pytest.raises(ValueError, match=r"has uint8 \[2, .*\] of 'a heart'; it must have 2 images of 'a star'"):
        stored(path, "a star", 2, lambda: image(7))
    with pytest.raises(ValueError, match="it must have 5 images of 'a heart'"):
        stored(path, "a heart", 5, lambda: image(7))
    whole = path.read_bytes()
    torn = [whole[:100], *(whole[:k] + bytes([whole[k] ^ 255]) + whole[k + 1 :] for k in range(40, len(whole), 9))]
    told = []
    for content in torn:
        path.write_bytes(content)
        try:
            kept = stored(path, "a heart", 2, lambda: image(8))
        except ValueError as error:
            told.append(str(error))
        else:  # a byte of a date, say, changes nothing
            assert np.array_equal(kept, image(7))
    assert len(told) > len(torn) / 2
    assert all("is damaged; delete it" in one for one in told)


@pytest.mark.parametrize(
    "other",
    [
        np.zeros((2, 64, 64, 3), np.uint8),
        np.zeros((2, 128, 128), np.uint8),
        np.zeros((2, 128, 128, 4), np.uint8),
        np.zeros((2, 128, 128, 3), np.float32),
    ],
)
def test_images_of_another_size_or_kind_are_refused(other: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "1.npz"
    np.savez_compressed(path, images=other, text=np.array("a heart"))
    had = rf"1\.npz has {other.dtype} {re.escape(str(list(other.shape)))} of 'a heart'"
    with pytest.raises(ValueError, match=rf"{had}; it must have 2 images of 'a heart', uint8 \[2, 128, 128, 3\]"):
        stored(path, "a heart", 2, lambda: image(7))
