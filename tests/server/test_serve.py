"""`dev.py serve`, as a developer uses it: a process that runs until Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from devtools.places import HERE
from devtools.server import LOCALHOST, Client, free_port, port_is_free


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
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
