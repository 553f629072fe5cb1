"""The base directory: links, what happens where links fail, and what must never be removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from devtools.base import mount_folder, prepare_base, remove

PACK_FILES = ("__init__.py", "nodes/__init__.py", "demo/weights/vae/x.safetensors")
DEVELOPMENT_FILES = (
    ".git/config",
    ".dev/base/x",
    "tests/x.py",
    "devtools/x.py",
    "demo/training/x.py",
    "demo/output/x.png",
)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    for name in (*PACK_FILES, *DEVELOPMENT_FILES):
        file = tmp_path / "pack" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name, encoding="utf-8")
    return tmp_path / "pack"


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("A required privilege is not held by the client")  # what Windows says

    monkeypatch.setattr(Path, "symlink_to", refuse)


def test_the_pack_is_mounted(pack: Path):
    """Inside the pack itself, as in development."""
    base = pack / ".dev" / "base"
    for _ in range(2):
        prepare_base(base, pack)
        assert (base / "custom_nodes" / "ComfyUI-Diversity").samefile(pack)


def test_without_links_the_pack_is_copied(pack: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the tools, and without descending into the copy; a changed pack is copied again."""
    no_links(monkeypatch)
    base = pack / ".dev" / "base"
    prepare_base(base, pack)
    mounted = base / "custom_nodes" / "ComfyUI-Diversity"
    assert sorted(str(file.relative_to(mounted).as_posix()) for file in mounted.rglob("*") if file.is_file()) == sorted(
        PACK_FILES
    )
    (pack / "__init__.py").write_text("changed", encoding="utf-8")
    prepare_base(base, pack)
    assert (mounted / "__init__.py").read_text(encoding="utf-8") == "changed"


def test_a_moved_clone_is_mounted_again(pack: Path, tmp_path: Path):
    base = tmp_path / "base"
    prepare_base(base, pack)
    moved = pack.rename(tmp_path / "moved")
    prepare_base(base, moved)
    assert (base / "custom_nodes" / "ComfyUI-Diversity").samefile(moved)


def test_removing_a_mount_keeps_its_source(pack: Path, tmp_path: Path):
    folder = tmp_path / "folder"
    mount_folder(pack, folder)
    remove(folder)
    remove(tmp_path / "nothing")
    assert not folder.exists()
    assert (pack / "__init__.py").read_text(encoding="utf-8") == "__init__.py"
