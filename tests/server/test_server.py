"""The tools' server and client: what is reported when something fails, and that ComfyUI's own tree stays as it is."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from devtools.places import HERE
from devtools.server import LOCALHOST, Client, PromptError, Server, ServerError, free_port, port_is_free


def plain_image(width: int = 16, batch_size: int = 2) -> dict[str, Any]:
    """A prompt of ComfyUI's own nodes: one colour, saved."""
    image = {"width": width, "height": 8, "batch_size": batch_size, "color": 0xFF0000}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "plain"}},
    }


def test_run_gives_the_images(client: Client):
    result = client.run(plain_image(width=24))
    images = client.images(result)
    assert [struct.unpack(">II", image[16:24]) for image in images] == [(24, 8), (24, 8)]  # PNG's header
    assert client.images(result, "2") == images
    assert 0 <= result.seconds < 60


def test_a_repeated_run_comes_from_the_cache(client: Client):
    first = client.run(plain_image(width=40))
    second = client.run(plain_image(width=40))
    assert sorted(second.cached) == ["1", "2"]
    assert client.images(second) == client.images(first)


def test_a_refused_prompt_names_node_and_input(client: Client):
    with pytest.raises(PromptError, match=r"(?s)refused.*node 1 \(EmptyImage\): Value 0 smaller than min of 1: width"):
        client.run(plain_image(width=0))
    with pytest.raises(PromptError, match="NoSuchNode"):
        client.run({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_a_failing_node_is_named_with_its_traceback(client: Client):
    prompt = plain_image(width=64)
    prompt["3"] = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 3, "color": 0}}
    prompt["4"] = {
        "class_type": "ImageBlend",
        "inputs": {"image1": ["1", 0], "image2": ["3", 0], "blend_factor": 0.5, "blend_mode": "normal"},
    }
    prompt["2"]["inputs"]["images"] = ["4", 0]  # two images cannot be blended with three
    with pytest.raises(PromptError, match=r"(?s)node 4 \(ImageBlend\) failed with RuntimeError: .*execution\.py"):
        client.run(prompt)


def test_a_port_in_use_is_said_so():
    with socket.socket() as taken:
        taken.bind((LOCALHOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not port_is_free(port)
        with pytest.raises(ServerError, match=f"Port {port} is in use"):
            Server(port=port).start()
    assert port_is_free(port)


def test_a_server_that_dies_shows_its_last_words(tmp_path: Path):
    server = Server(base=tmp_path, extra=["--no-such-option"])
    with pytest.raises(ServerError, match=r"(?s)exit code 2.*--no-such-option"):
        server.start()
    assert server.process is None


def test_a_folder_without_comfyui(tmp_path: Path):
    with pytest.raises(ServerError, match="holds no ComfyUI"):
        Server(comfyui=tmp_path, base=tmp_path / "base").start()
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_does_not_come(tmp_path: Path):
    with pytest.raises(ServerError, match="does not answer"):
        Client(f"http://{LOCALHOST}:{free_port()}").object_info()


def test_comfyui_stays_as_it_is(tmp_path: Path):
    """A run writes into the base directory, not into ComfyUI's tree; stopping frees the port."""

    def tree() -> dict[str, tuple[int, int]]:
        files = [path for path in HERE.comfyui().rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    before = tree()
    with Server(base=tmp_path) as server:
        server.client.run(plain_image())
        process, port = server.process, server.port
    assert tree() == before
    assert len(list((tmp_path / "output").glob("plain*.png"))) == 2
    assert process is not None
    assert process.returncode is not None
    assert port is not None
    assert port_is_free(port)
    server.stop()  # again: harmless
