"""`dev.py serve` and `demo`, as a developer uses them: processes that leave nothing behind, however they are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from devtools.places import HERE
from devtools.server import LOCALHOST, Client, free_port, port_is_free

pytestmark = pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")


def test_serve_opens_a_server_until_ctrl_c():
    port = free_port()
    command = [sys.executable, "dev.py", "serve", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=HERE.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
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


@pytest.mark.parametrize(
    ("command", "ending", "sign"),
    [
        # SIGHUP is a closed terminal; nothing outlives SIGKILL either, where the system can see to it
        (("serve",), "SIGTERM", "ComfyUI is ready"),
        (("serve",), "SIGHUP", "Starting ComfyUI"),
        (("demo", "--only", "distilled"), "SIGTERM", "Starting ComfyUI"),
        pytest.param(
            ("serve",),
            "SIGKILL",
            "Starting ComfyUI",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent"),
        ),
    ],
)
def test_nothing_is_left_behind(command: tuple[str, ...], ending: str, sign: str) -> None:
    port = ["--port", str(free_port())] if command == ("serve",) else []
    with subprocess.Popen(
        [sys.executable, "dev.py", *command, *port],
        cwd=HERE.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if sign in line:
                break
        parent = psutil.Process(process.pid)
        wait_until(lambda: any("main.py" in " ".join(child.cmdline()) for child in parent.children(recursive=True)))
        family = parent.children(recursive=True)
        process.send_signal(getattr(signal, ending))
        said += process.communicate(timeout=60)[0]
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, said
    assert process.returncode in (128 + getattr(signal, ending), -signal.SIGKILL), said
    assert "Traceback" not in said


def wait_until(seen: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.1)
