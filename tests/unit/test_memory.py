"""Pictures remembered in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comfyui_diversity.core.memory import recall, remember


def pictures(count: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_appends_in_order(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "memory.safetensors"
    first, second = pictures(3, 4, 32, 32), pictures(2, 4, 64, 32, seed=1)
    assert remember(path, first) == 3
    assert remember(path, second) == 5
    latents = recall(path)
    assert latents is not None
    assert torch.equal(latents[:3], first.half())
    halves = second.reshape(2, 4, 32, 2, 32).mean(3)
    assert torch.allclose(latents[3:].float(), halves, atol=2e-3)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_recalls_the_first_so_many(tmp_path: Path) -> None:
    path = tmp_path / "memory.safetensors"
    remember(path, pictures(5, 4, 32, 32))
    latents = recall(path, first=2)
    assert latents is not None
    assert torch.equal(latents, pictures(5, 4, 32, 32)[:2].half())


def test_no_file_is_no_memory(tmp_path: Path) -> None:
    assert recall(tmp_path / "memory.safetensors") is None


def test_video_keeps_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "memory.safetensors"
    remember(path, pictures(1, 16, 3, 8, 8))
    latents = recall(path)
    assert latents is not None
    assert latents.shape == (1, 16, 3, 32, 32)


def test_another_kind_of_model_is_refused_and_the_memory_stays(tmp_path: Path) -> None:
    path = tmp_path / "memory.safetensors"
    remember(path, pictures(2, 4, 8, 8))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="another kind of model"):
        remember(path, pictures(2, 16, 8, 8))
    assert path.read_bytes() == before


def test_empty_pictures_and_other_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        remember(tmp_path / "memory.safetensors", torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match="must be"):
        remember(tmp_path / "memory.safetensors", pictures(2, 4, 8))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "memory.safetensors"
    path.write_bytes(b"not a memory")
    with pytest.raises(ValueError, match="cannot be read"):
        recall(path)
