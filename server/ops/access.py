"""Who was served, who was refused -> a line of the log each, and counters. Texts and tokens are in neither.

A flood of refusals is bounded: of each reason and address the first in a minute has a line, the others are counted, and one line
for each reason tells their number at the minute's end.
"""

import asyncio
import logging
from collections import Counter

from qwen3_jax.messages import shorten
from server.ops.metrics import Metrics

WINDOW, LINES = 60.0, 100  # seconds; refusals in them that have a line of their own
EXPLAINED = (401, 403, 413, 429, 503, 507)  # what these say is made of our own words: no text of a client's
log = logging.getLogger(__name__)


class AccessLog:
    """One server's. For the event loop's thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seen: set[tuple[str, str]] = set()
        self._more: Counter[tuple[str, str]] = Counter()  # (status, reason) -> refusals without a line
        self._closed = 0  # sessions
        self._timer: asyncio.TimerHandle | None = None

    def answered(self, route: str, status: int) -> None:
        """Count an HTTP request for speech."""
        self._metrics.requests.labels(route, status).inc()

    def spoke(self, fields: dict[str, object], *, complete: bool) -> None:
        """An utterance has ended. Who asks is looked at before, so there are no more of these than the limits allow."""
        log.info("utterance complete" if complete else "utterance cut", extra={"fields": fields})

    def session_closed(self, fields: dict[str, object]) -> None:
        """A WebSocket session has closed. Of a flood the first hundred in a minute have a line, the others are counted."""
        self._begin()
        self._closed += 1
        if self._closed <= LINES:
            log.info("session closed", extra={"fields": fields})

    def refused(self, *, route: str, status: int | str, reason: str, address: str, why: str = "", **fields: object) -> None:
        """A client was refused.

        Args:
            route: as the server has it, so that there are few.
            status: HTTP status, close code, or ``-`` for a message of a session that lives on.
            reason: the code that the client is told.
            why: the message that the client is told. It is logged where it repeats no text.
            fields: more for the line; strings are shortened, None is left out.
        """
        self._metrics.refusals.labels(route, status, reason).inc()
        self._begin()
        if (reason, address) in self._seen or len(self._seen) >= LINES:
            self._more[str(status), reason] += 1
            return
        self._seen.add((reason, address))
        shown = {name: shorten(value) if isinstance(value, str) else value for name, value in fields.items()}
        line = {"status": status, "reason": reason, "route": route, "address": address, **shown, "why": why or None}
        log.warning("refused", extra={"fields": line})

    def _begin(self) -> None:
        """Have what has no line told at the minute's end."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(WINDOW, self.summarise)

    def summarise(self) -> None:
        """Tell of the refusals and sessions that had no line, and begin anew."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._seen.clear()
        for (status, reason), times in self._more.items():
            log.warning("refused more often than told", extra={"fields": {"status": status, "reason": reason, "times": times}})
        self._more.clear()
        if self._closed > LINES:
            log.info("more sessions closed", extra={"fields": {"times": self._closed - LINES}})
        self._closed = 0
