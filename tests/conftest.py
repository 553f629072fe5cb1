"""Shared by all tests: the pack as `comfyui_diversity`, the tools as `devtools` and `benchmarks`, `small` models, a
real server.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them every program that they start.
# SIGTERM ends them as Ctrl-C does, so that no server is left behind.
for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, signal.default_int_handler)

if TYPE_CHECKING:
    from devtools.server import Client, Server


def _load_package(folder: Path) -> None:
    # By path: the pack's root must stay off sys.path, where its `nodes` would hide ComfyUI's own.
    name = folder.name
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_load_package(ROOT / "devtools")
_load_package(ROOT / "benchmarks")
_load_package(ROOT / "tests" / "small")

from devtools.pack import load_pack  # noqa: E402
from devtools.places import HERE, ONE_THREAD  # noqa: E402

for _name, _value in ONE_THREAD.items():  # before anything imports torch
    os.environ.setdefault(_name, _value)
load_pack()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All unit tests are fast tests."""
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "unit"):
            item.add_marker(pytest.mark.fast)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One real ComfyUI server with the pack, for all tests of this process that need one.

    It has a base directory of its own: a server clears the temporary files in its base when it starts, and a developer
    may have one open. For the files of released models its loaders give small random models.
    """
    from devtools.base import mount_folder, prepare_base
    from devtools.released import place_empty_files
    from devtools.server import Server

    base = HERE.work / "-".join(["test-base", *filter(None, [os.environ.get("PYTEST_XDIST_WORKER")])])
    prepare_base(base, HERE.root)
    place_empty_files(base)  # else the front end's message about missing models would lie over the page
    mount_folder(ROOT / "tests" / "node_packs" / "small_loaders", base / "custom_nodes" / "small_loaders")
    with Server(base=base) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Client:
    """A client of that server."""
    return server.client


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """Within `with full_disk():` no file of this process grows beyond a few bytes."""
    resource = pytest.importorskip("resource", reason="this system has no limit for the size of files")

    @contextmanager
    def full() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full
