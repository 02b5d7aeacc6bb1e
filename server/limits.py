"""How much one principal may ask for: sessions at once, and sliding windows of connects, utterances, characters and uploads."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from server.auth import Principal
from server.settings import Settings

What = Literal["connects", "utterances", "characters", "uploads"]


class Limited(ValueError):
    """Too much; ``retry_after_ms`` says when there is room again."""

    def __init__(self, message: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class Limits:
    """The counts of one process."""

    def __init__(self, settings: Settings) -> None:
        self._windows = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._items: dict[What, RateLimitItem] = {
            "connects": RateLimitItemPerMinute(settings.limit_connects, namespace="connects"),
            "utterances": RateLimitItemPerMinute(settings.limit_utterances, namespace="utterances"),
            "characters": RateLimitItemPerMinute(settings.limit_characters, namespace="characters"),
            "uploads": RateLimitItemPerHour(settings.limit_uploads, namespace="uploads"),
        }
        self._sessions: Counter[str] = Counter()
        self._most_sessions = settings.limit_sessions

    def count(self, principal: Principal, what: What, amount: int = 1) -> None:
        """Take note of a use.

        Raises:
            Limited: it would be too much; then nothing is counted.
        """
        item = self._items[what]
        if amount and not self._windows.hit(item, principal.bucket, cost=amount):
            wait = self._windows.get_window_stats(item, principal.bucket).reset_time - time.time()
            unit = "hour" if item.GRANULARITY.name == "hour" else "minute"
            raise Limited(f"more than {item.amount} {what} in one {unit}", max(1, math.ceil(wait * 1000)))

    @contextmanager
    def session(self, principal: Principal) -> Iterator[None]:
        """Hold one of the principal's sessions.

        Raises:
            Limited: all are held.
        """
        if self._sessions[principal.bucket] >= self._most_sessions:
            raise Limited(f"more than {self._most_sessions} sessions at once", 1000)
        self._sessions[principal.bucket] += 1
        try:
            yield
        finally:
            self._sessions[principal.bucket] -= 1
            if not self._sessions[principal.bucket]:
                del self._sessions[principal.bucket]
