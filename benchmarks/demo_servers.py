"""Several ComfyUI servers that work through the rows of the demo, each on the next row that nobody has begun.

The demo's models are too small for more than one core, and one server works on one prompt at a time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from devtools.base import prepare_base
from devtools.places import HERE
from devtools.server import Client, Server, ServerError

MOST = 2

Row = TypeVar("Row")
Begun = TypeVar("Begun")


@contextlib.contextmanager
def servers(rows: int) -> Iterator[list[Server]]:
    """Running servers, at most one for every core and row, each with a base directory of its own."""
    with contextlib.ExitStack() as running:
        started = [running.enter_context(Server())]
        for k in range(1, min(MOST, os.cpu_count() or 1, rows)):
            base = HERE.work / f"demo-base-{k}"
            prepare_base(base, HERE.root)
            started.append(running.enter_context(Server(base=base)))
        yield started


class Stopped(Exception):
    """Another row has failed, or the user has had enough."""


def side_by_side(
    rows: Sequence[Row],
    running: Sequence[Server],
    begin: Callable[[Client, Row], Begun],
    finish: Callable[[Client, Row, Begun, Callable[[], None]], None],
) -> None:
    """For every row: `begin` puts it into a server's queue, `finish` waits for its images and uses them.

    A server's next row is begun before its last one is finished, so that it never waits. `finish` calls its last
    argument now and then, which raises `Stopped` if it need not go on. The first error stops the servers' work and is
    raised.
    """
    rest, taking, stopped = iter(rows), threading.Lock(), threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise Stopped

    def begun_next(client: Client) -> tuple[Row, Begun] | None:
        with taking:
            check()
            row = next(rest, None)
        return None if row is None else (row, begin(client, row))

    def work(client: Client) -> None:
        try:
            current = begun_next(client)
            while current is not None:
                following = begun_next(client)
                finish(client, *current, check)
                current = following
        except BaseException:
            _clear(client)  # of what this thread has begun since another's error
            raise

    with ThreadPoolExecutor(len(running)) as pool:
        futures = [pool.submit(work, server.client) for server in running]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            stopped.set()
            for server in running:
                _clear(server.client)
            raise


def _clear(client: Client) -> None:
    with contextlib.suppress(ServerError, OSError):  # it may be gone; the first error says why
        client.clear()


def remove_output(running: Sequence[Server], folder: str) -> None:
    """Of each server, what it saved in this folder."""
    for server in running:
        shutil.rmtree(server.base / "output" / folder, ignore_errors=True)
