"""`dev.py serve`, as a developer uses it: a process that runs until Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from devtools.places import HERE
from devtools.server import LOCALHOST, Client, ServerError, free_port, port_is_free


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_serve_opens_a_server_until_ctrl_c():
    port = free_port()
    command = [sys.executable, "dev.py", "serve", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=HERE.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        client = Client(f"http://{LOCALHOST}:{port}")
        deadline = time.monotonic() + 300
        info = None
        while info is None and process.poll() is None and time.monotonic() < deadline:
            try:
                info = client.object_info("DiversityLoadDemoWorld")
            except ServerError:
                time.sleep(0.2)
        models = client.json("/models/vae") if info else []
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert info, said
    assert "DiversityLoadDemoWorld" in info
    assert "diversity_demo_vae.safetensors" in models
    assert f"http://{LOCALHOST}:{port}" in said
    assert "Traceback" not in said
    assert process.returncode == 0
    assert port_is_free(port)
