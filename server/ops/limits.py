"""How much one principal may ask for: sessions at once, and sliding windows of connects, utterances, characters, uploads and interrupts."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from server.ops.auth import Principal
from server.ops.crowd import Crowd
from server.ops.shared_limits import SharedWindows
from server.settings import Settings

What = Literal["connects", "utterances", "characters", "uploads", "interrupts"]
Work = Literal["upload", "recording"]
PLACES: dict[Work, tuple[int, int]] = {"upload": (8, 4), "recording": (32, 8)}  # under way: in all, of one principal
NEWCOMERS, NEWCOMERS_SHARE = 40, 0.4  # places of those without a token: at least; a share of TTS_MAX_SESSIONS, which they do not take


class Limited(ValueError):
    """Too much; ``retry_after_ms`` says when there is room again."""

    def __init__(self, message: str, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class Overloaded(Limited):
    """All of the server's sessions are held, by whomever."""


class Quotas:
    """The counts of one process; ``newcomers`` are the sessions of clients that have not said who they are.

    Windows are shared with other processes where ``TTS_REDIS_URL`` says so; sessions and places are those of this process.

    Raises:
        MissingExtra: TTS_REDIS_URL is set, and the package redis is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self._shared = None if settings.redis_url is None else SharedWindows(settings.redis_url.get_secret_value())
        self._windows = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._items: dict[What, RateLimitItem] = {
            "connects": RateLimitItemPerMinute(settings.limit_connects, namespace="connects"),
            "utterances": RateLimitItemPerMinute(settings.limit_utterances, namespace="utterances"),
            "characters": RateLimitItemPerMinute(settings.limit_characters, namespace="characters"),
            "uploads": RateLimitItemPerHour(settings.limit_uploads, namespace="uploads"),
            "interrupts": RateLimitItemPerMinute(settings.limit_interrupts, namespace="interrupts"),
        }
        self._sessions: Counter[str] = Counter()
        self._most_sessions, self._most_in_all = settings.limit_sessions, settings.max_sessions
        self._work: Counter[tuple[Work, str]] = Counter()
        self.newcomers = Crowd(max(NEWCOMERS, round(NEWCOMERS_SHARE * settings.max_sessions)))

    async def count(self, principal: Principal, what: What, amount: int = 1) -> None:
        """Take note of a use.

        Raises:
            Limited: it would be too much; then nothing is counted.
        """
        item = self._items[what]
        wait = None if self._shared is None or not amount else await self._shared.wait(item, principal.bucket, amount)
        if wait is None:
            wait = self._wait(item, principal.bucket, amount)
        if wait:
            unit = "hour" if item.GRANULARITY.name == "hour" else "minute"
            raise Limited(f"more than {item.amount} {what} in one {unit}", max(1, math.ceil(wait * 1000)))

    def _wait(self, item: RateLimitItem, bucket: str, amount: int) -> float:
        """Count a use in this process. Returns the seconds to wait, if it would be too much and is not counted, else 0."""
        if not amount or self._windows.hit(item, bucket, cost=amount):
            return 0.0
        return max(0.001, self._windows.get_window_stats(item, bucket).reset_time - time.time())

    async def close(self) -> None:
        """The server ends."""
        if self._shared is not None:
            await self._shared.close()

    @contextmanager
    def session(self, principal: Principal) -> Iterator[None]:
        """Hold one of the principal's sessions.

        Raises:
            Limited: the principal holds all that it may; Overloaded: all of the server's are held.
        """
        if self._sessions.total() >= self._most_in_all:
            raise Overloaded(f"{self._most_in_all} sessions are open already", 5000)
        if self._sessions[principal.bucket] >= self._most_sessions:
            raise Limited(f"more than {self._most_sessions} sessions at once", 1000)
        with _counted(self._sessions, principal.bucket):
            yield

    @contextmanager
    def place(self, principal: Principal, what: Work) -> Iterator[None]:
        """Hold one of the places for work that takes memory, or room on the disk, for as long as the client likes.

        Raises:
            Limited: the principal holds all that it may, or all are held.
        """
        in_all, of_one = PLACES[what]
        if self._work[what, principal.bucket] >= of_one:
            raise Limited(f"more than {of_one} of your {what}s are under way: let one of them end", 1000)
        if sum(number for (kind, _), number in self._work.items() if kind == what) >= in_all:
            raise Limited(f"{in_all} {what}s are under way: try again in a moment", 5000)
        with _counted(self._work, (what, principal.bucket)):
            yield


@contextmanager
def _counted(counts: Counter[Any], key: Any) -> Iterator[None]:
    counts[key] += 1
    try:
        yield
    finally:
        counts[key] -= 1
        if not counts[key]:
            del counts[key]
