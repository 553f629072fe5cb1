"""The real front end, opened on the session's server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from devtools.frontend import Frontend
    from devtools.server import Server


def require_browser() -> None:
    """Skips where there is no Chromium; fails in continuous integration, where a skip would go unseen."""
    from devtools.frontend import find_chromium

    if find_chromium() is None:
        reason = "no Chromium on the path (on Debian: apt-get install chromium)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture(scope="session")
def browser_checked() -> None:
    """Asked for before the server, which is not worth starting without a browser."""
    require_browser()


@pytest.fixture(scope="module")
def frontend(browser_checked: None, server: Server) -> Iterator[Frontend]:
    """Closed behind each module: an open browser, idle as it is, makes the tests behind it several times slower."""
    from devtools.frontend import Frontend

    with Frontend(server.url) as opened:
        yield opened
