"""How the demo's servers share its rows: what is begun, what is finished, and what an error stops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.demo_servers import Stopped, side_by_side

ROWS = "abcdefg"


class Named:
    """As much of a server as is needed to hand out rows: what it was told, in order."""

    def __init__(self, name: str) -> None:
        self.told: list[str] = []
        self.cleared = threading.Event()
        self.client: Any = SimpleNamespace(name=name, told=self.told, cleared=self.cleared, clear=self._clear)

    def _clear(self) -> None:
        self.told.append("clear")
        self.cleared.set()


@pytest.mark.parametrize("count", [1, 2])
def test_every_row_once_and_none_waits_for_another(count: int) -> None:
    told, writing = [], threading.Lock()

    def tell(what: str, client: Any, row: str) -> str:
        with writing:
            told.append((client.name, what, row))
        return f"{client.name} {row}"

    def finish(client: Any, row: str, begun: str, check: Callable[[], None]) -> None:
        assert begun == f"{client.name} {row}"
        check()
        tell("finished", client, row)

    running: list[Any] = [Named(str(k)) for k in range(count)]
    side_by_side(ROWS, running, lambda client, row: tell("begun", client, row), finish)
    for what in ("begun", "finished"):
        assert sorted(row for _, did, row in told if did == what) == list(ROWS)
    for server in running:
        own = [(what, row) for name, what, row in told if name == server.client.name]
        begun = [row for what, row in own if what == "begun"]
        for row, following in pairwise(begun):
            assert own.index(("begun", following)) < own.index(("finished", row))


def test_an_error_ends_what_the_others_wait_for() -> None:
    """A server that works on a long prompt answers nobody until it is told to stop."""
    waits, ended = threading.Event(), []

    def finish(client: Any, row: str, begun: None, check: Callable[[], None]) -> None:
        if row == "a":
            waits.wait(10)
            raise ValueError("a is bad")
        waits.set()
        assert client.cleared.wait(10)
        with pytest.raises(Stopped):
            check()
        ended.append(row)
        check()

    running: list[Any] = [Named("0"), Named("1")]
    with pytest.raises(ValueError, match="a is bad"):
        side_by_side(ROWS, running, lambda client, row: None, finish)
    assert len(ended) == 1


def test_what_is_begun_while_another_fails_is_taken_back() -> None:
    beginning = threading.Event()
    running: list[Any] = [Named("0"), Named("1")]
    [first, second] = (server.client for server in running)

    def begin(client: Any, row: str) -> None:
        if client is second:
            beginning.set()
            assert client.cleared.wait(10)  # the error is known, and this row comes all the same
        client.told.append(row)

    def finish(client: Any, row: str, begun: None, check: Callable[[], None]) -> None:
        if client is first:
            assert beginning.wait(10)
            raise ValueError("bad")
        check()

    with pytest.raises(ValueError, match="bad"):
        side_by_side(ROWS, running, begin, finish)
    [before, row, after] = second.told
    assert (before, row in ROWS, after) == ("clear", True, "clear")
