"""Ends a program in order when it is asked to end, so that nothing that it started is left behind."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable
from types import FrameType

# A closed terminal is SIGHUP. Windows has no such signal.
ENDINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_in_order() -> None:
    """From now on SIGTERM and SIGHUP raise `SystemExit`, so that every open context is left, as after Ctrl-C.

    What is ignored (SIGHUP under nohup) stays ignored.
    """
    for number in ENDINGS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, _: FrameType | None) -> None:
    for ending in ENDINGS:  # a second one must not interrupt what the first one has begun
        signal.signal(ending, signal.SIG_IGN)
    raise SystemExit(128 + number)


def die_with_parent() -> Callable[[], None] | None:
    """Linux: for `preexec_fn`, ends the new process when its parent is gone, even killed. Elsewhere None."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork, after which little is safe
    return lambda: prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
