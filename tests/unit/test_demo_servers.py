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
    """As much of a server as is needed to hand out rows."""

    def __init__(self, name: str) -> None:
        self.cleared = False
        self.client: Any = SimpleNamespace(name=name, clear=self._clear)

    def _clear(self) -> None:
        self.cleared = True


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


def test_an_error_ends_what_the_others_do() -> None:
    waits, ended = threading.Event(), []

    def finish(client: Any, row: str, begun: None, check: Callable[[], None]) -> None:
        if row == "a":
            waits.wait(10)
            raise ValueError("a is bad")
        waits.set()
        try:
            for _ in range(1000):
                threading.Event().wait(0.01)
                check()
        except Stopped:
            ended.append(row)
            raise

    running: list[Any] = [Named("0"), Named("1")]
    with pytest.raises(ValueError, match="a is bad"):
        side_by_side(ROWS, running, lambda client, row: None, finish)
    assert len(ended) == 1
    assert all(server.cleared for server in running)
