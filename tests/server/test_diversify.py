"""Diversify through a real server, inside a subgraph: images, cache, and the report on the right node."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from devtools.graph import only_node, shipped_prompt, with_values
from devtools.images import decode
from devtools.server import Client

aiohttp = pytest.importorskip("aiohttp")  # ComfyUI's own

INSIDE, AROUND = "7:12:5", ["7:12:5", "7:12", "7"]  # a subgraph in a subgraph, as the front end names what is in it
_TEXT = 3  # the kind of a binary message that holds a text for a node


class Reports:
    """The texts that the server shows on nodes while a prompt runs, in order."""

    def __init__(self, url: str) -> None:
        self.found: list[tuple[str, str]] = []
        self._url, self._loop, self._open = url, asyncio.new_event_loop(), threading.Event()
        threading.Thread(target=self._loop.run_until_complete, args=(self._listen(),), daemon=True).start()
        assert self._open.wait(60)

    async def _listen(self) -> None:
        self._end = asyncio.Event()
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{self._url}/ws") as socket:
            self._open.set()
            reading = asyncio.ensure_future(self._read(socket))
            await self._end.wait()
            reading.cancel()

    async def _read(self, socket: Any) -> None:
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY and struct.unpack(">I", message.data[:4])[0] == _TEXT:
                length = struct.unpack(">I", message.data[4:8])[0]
                self.found.append((message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()))

    def of(self, title: str) -> list[tuple[str, str]]:
        deadline = time.monotonic() + 30
        while not any(text.startswith(title) for _, text in self.found) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)  # one report is a message a node
        return [one for one in self.found if one[1].startswith(title)]

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)


@pytest.fixture
def reports(client: Client) -> Iterator[Reports]:
    listening = Reports(client.url)
    yield listening
    listening.stop()


def diversified(strength: float, sampler_seed: int = 1, node: str = INSIDE, batch: int = 2) -> dict[str, Any]:
    """The few-step template with Diversify in place of CLIP Text Encode, inside two subgraphs."""
    prompt = shipped_prompt("baseline_distilled")
    sampler = only_node(prompt, ("KSampler",))
    inputs = prompt[sampler]["inputs"]
    text, model = inputs["positive"][0], inputs["model"]
    encode = prompt.pop(text)["inputs"]
    prompt[node] = {
        "class_type": "DiversityDiversify",
        "inputs": {"model": model, "clip": encode["clip"], "text": "a heart", "seed": 0, "strength": strength},
    }
    inputs.update(model=[node, 0], positive=[node, 1])
    return with_values(prompt, {"batch_size": batch, "seed": sampler_seed})


def made(client: Client, prompt: dict[str, Any]) -> tuple[np.ndarray, Any]:
    """Images `[N, H, W, 3]`, without the workflow that their files hold, and the run."""
    result = client.run(prompt)
    return np.stack([decode(image) for image in client.images(result)]), result


def test_inside_a_subgraph(client: Client, reports: Reports) -> None:
    stock, _ = made(client, with_values(shipped_prompt("baseline_distilled"), {"batch_size": 2, "seed": 1}))
    off, _ = made(client, diversified(0.0))
    assert np.array_equal(off, stock)
    assert reports.found == []

    first, _ = made(client, diversified(1.0))
    assert not np.array_equal(first, stock)
    title = "Diversify 1: 2 images, 4 steps, no CFG."
    own = reports.of(title)
    assert [node for node, _ in own] == AROUND
    assert "Noise: its coarsest structure 2 times as large" in own[0][1]
    assert "then its coarse structure moved apart by 0.50 in 3 iterations." in own[0][1]

    reports.found.clear()
    other, run = made(client, diversified(1.0, sampler_seed=2))
    assert INSIDE in run.cached
    assert not np.array_equal(other, first)
    assert "moved apart by 0.50" in reports.of(title)[0][1]

    reports.found.clear()
    again, _ = made(client, diversified(1.0, node="99"))
    assert np.array_equal(again, first)
    assert [node for node, _ in reports.of(title)] == ["99"]


def test_one_image(client: Client, reports: Reports) -> None:
    stock, _ = made(client, with_values(shipped_prompt("baseline_distilled"), {"batch_size": 1, "seed": 1}))
    found, _ = made(client, diversified(1.0, batch=1))
    assert not np.array_equal(found, stock)
    [(_, text), *_] = reports.of("Diversify 1: one image, 4 steps, no CFG.")
    assert "Noise: its coarsest structure 2.5 times as large." in text
    assert "Prompt: variant 2 of 8, by the sampler's seed" in text
    again, _ = made(client, diversified(1.0, batch=1, node="99"))
    assert np.array_equal(again, found)
