"""How a benchmark's command ends."""

from __future__ import annotations

import sys
from collections.abc import Callable


def exit_code(work: Callable[[], object]) -> int:
    """0, or 1 where the work raises a ValueError, whose sentence is then printed without a traceback."""
    try:
        work()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
