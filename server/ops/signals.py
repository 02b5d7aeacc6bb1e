"""SIGTERM, SIGINT and SIGHUP end the server with status 0, whenever they come: while it starts, serves, or is at its end already.

These are handlers of Python's and not of the event loop's, for a loop takes its own away when it closes, and a second SIGTERM
would then kill the process. What is ignored when the process starts (nohup) stays so.
"""

import signal
import sys
from collections.abc import Callable
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))  # Windows has no SIGHUP
_come = False  # a process has its signals once


def while_starting() -> None:
    """From now on they end the process at once, for nobody is served yet."""
    _handle(lambda: sys.exit(0))


def while_serving(end: Callable[[], object]) -> None:
    """From now on they call ``end``, which must be safe at any point of the main thread."""
    _handle(end)
    if _come:  # SystemExit got lost, in a finaliser for example
        end()


def while_ending() -> None:
    """From now on they do nothing."""
    for number in _ours():
        signal.signal(number, signal.SIG_IGN)


def _handle(act: Callable[[], object]) -> None:
    def heard(number: int, frame: FrameType | None) -> None:
        global _come
        _come = True
        act()

    for number in _ours():
        signal.signal(number, heard)


def _ours() -> list[signal.Signals]:
    return [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
