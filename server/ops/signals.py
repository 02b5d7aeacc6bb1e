"""SIGTERM, SIGINT and SIGHUP end the server with status 0, whenever they come: while it starts, serves, or is at its end already.

SIGINT (Ctrl-C) while it is at its end ends the process at once, with status 130: whoever is at the terminal does not want to wait.

These are handlers of Python's and not of the event loop's, for a loop takes its own away when it closes, and a second SIGTERM
would then kill the process. What is ignored when the process starts (nohup) stays so.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))  # Windows has no SIGHUP
AT_ONCE = 128 + signal.SIGINT  # the status of a process that ends so, as shells have it
log = logging.getLogger(__name__)
_come = False  # a process has its signals once


def while_starting() -> None:
    """From now on they end the process at once, for nobody is served yet."""
    _handle(lambda number: sys.exit(0))


def while_serving(end: Callable[[], object]) -> None:
    """From now on they call ``end``, which must be safe at any point of the main thread. SIGINT after one of them: see the module."""
    ending = False

    def act(number: int) -> None:
        nonlocal ending
        if ending and number == signal.SIGINT:
            _end_at_once()
        ending = True
        end()

    _handle(act)
    if _come:  # SystemExit got lost, in a finaliser for example
        ending = True
        end()


def while_ending() -> None:
    """From now on they do nothing."""
    for number in _ours():
        signal.signal(number, signal.SIG_IGN)


def _end_at_once() -> None:
    """In the handler, for the event loop may be what does not come to its end."""
    log.warning("Ctrl-C while going down: ending at once, whoever is connected is cut off")
    logging.shutdown()
    os._exit(AT_ONCE)


def _handle(act: Callable[[int], object]) -> None:
    def heard(number: int, frame: FrameType | None) -> None:
        global _come
        _come = True
        act(number)

    for number in _ours():
        signal.signal(number, heard)


def _ours() -> list[signal.Signals]:
    return [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
