"""`dev.py serve` and `demo`, as a developer uses them: processes that leave nothing behind, however they are ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import psutil
import pytest

from devtools.places import HERE
from devtools.server import LOCALHOST, Client, free_port, port_is_free

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")


@contextlib.contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A program whose output is read. Ended where the test fails: it would be waited for."""
    with subprocess.Popen(
        command,
        cwd=HERE.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # tests that run under nohup have their programs ignore a closed terminal
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_serve_opens_a_server_until_ctrl_c():
    port = free_port()
    command = [sys.executable, "dev.py", "serve", "--port", str(port)]
    with started(command) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:  # ends when the server does not start
            said += line
            if "ComfyUI is ready" in line:
                break
        client = Client(f"http://{LOCALHOST}:{port}")
        running = process.poll() is None
        info = client.object_info("DiversityLoadDemoWorld") if running else {}
        models = client.json("/models/vae") if running else []
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        said += rest
    assert info, said
    assert "DiversityLoadDemoWorld" in info
    assert "diversity_demo_vae.safetensors" in models
    assert f"http://{LOCALHOST}:{port}" in said
    assert "Traceback" not in said
    assert process.returncode == 0
    assert port_is_free(port)


SERVE, DEMO = ("dev.py", "serve"), ("dev.py", "demo", "--only", "distilled")
ONLY_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child does not notice its parent's death")


@pytest.mark.parametrize(
    ("command", "ending", "sign", "code"),
    [
        (SERVE, "SIGTERM", "ComfyUI is ready", 143),
        (SERVE, "SIGHUP", "Starting ComfyUI", 129),  # a closed terminal
        (DEMO, "SIGTERM", "Starting ComfyUI", 143),
        (("-m", "benchmarks.demo", *DEMO[2:]), "SIGINT", "Starting ComfyUI", 130),  # Ctrl-C reaches it, not only dev.py
        pytest.param(SERVE, "SIGKILL", "Starting ComfyUI", -9, marks=ONLY_LINUX),
    ],
)
def test_nothing_is_left_behind(command: tuple[str, ...], ending: str, sign: str, code: int) -> None:
    port = ["--port", str(free_port())] if command == SERVE else []
    with started([sys.executable, *command, *port]) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if sign in line:
                break
        family = wait_for_server(psutil.Process(process.pid))
        process.send_signal(getattr(signal, ending))
        said += process.communicate(timeout=60)[0]
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, said
    assert process.returncode == code, said
    assert "Traceback" not in said


def wait_for_server(parent: psutil.Process, seconds: float = 60) -> list[psutil.Process]:
    """All descendants of a process, once a ComfyUI is among them."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        family = parent.children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("main.py" in " ".join(child.cmdline()) for child in family):
                return family
        time.sleep(0.05)
    pytest.fail("no server was started")
