"""Time that a test moves, and what is to happen then."""

import heapq
import itertools
from collections.abc import Callable


class FakeTimer:
    """One of them."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Timers:
    """A clock with timers, as an event loop has them."""

    def __init__(self) -> None:
        self.now = 0.0
        self._waiting: list[tuple[float, int, FakeTimer]] = []
        self._numbers = itertools.count()

    def later(self, seconds: float, call: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(call)
        heapq.heappush(self._waiting, (self.now + seconds, next(self._numbers), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Move the time, and call what is due on the way."""
        end = self.now + seconds
        while self._waiting and self._waiting[0][0] <= end + 1e-9:
            self.now, _, timer = heapq.heappop(self._waiting)
            if timer.call is not None:
                timer.call()
        self.now = end
