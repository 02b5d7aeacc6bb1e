"""Sliding windows that all processes of one Redis count in together (extra ``redis``). Without Redis each process counts by itself."""

import asyncio
import hashlib
import logging
import time

from limits import RateLimitItem
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from qwen3_jax.runtime.extras import needed

NO_ADDRESS = "TTS_REDIS_URL is no address of Redis: use redis://, rediss:// or unix://"
PREFIX = "qwen3-jax:limit"
ASK_SECONDS = 0.5  # for Redis to answer: somebody waits to be spoken to
RETRY_SECONDS = 5.0  # after a failure, in which Redis is not asked
log = logging.getLogger(__name__)


class SharedWindows:
    """See the module's docstring.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.

    Raises:
        MissingExtra: the package redis is not installed.
        ValueError: the address is none of Redis.
    """

    def __init__(self, url: str) -> None:
        needed("redis.asyncio", "redis", "TTS_REDIS_URL")
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError(NO_ADDRESS)
        try:
            self._storage = RedisStorage(
                f"async+{url}" if url.startswith("redis") else f"async+redis+{url}",
                wrap_exceptions=True,
                implementation="redispy",
                key_prefix=PREFIX,
                socket_timeout=ASK_SECONDS,
                socket_connect_timeout=ASK_SECONDS,
            )
        except ValueError as error:  # it may hold a password
            raise ValueError(NO_ADDRESS) from error
        self._windows = SlidingWindowCounterRateLimiter(self._storage)
        self._again = 0.0  # when Redis is asked again
        self._away = False

    async def wait(self, item: RateLimitItem, bucket: str, amount: int) -> float | None:
        """Count a use. Returns 0; or the seconds to wait, if it would be too much and is not counted; or None: Redis does not answer."""
        if time.monotonic() < self._again:
            return None
        name = hashlib.sha256(bucket.encode()).hexdigest()  # says nothing of whose it is
        try:
            async with asyncio.timeout(2 * ASK_SECONDS):
                fits = await self._windows.hit(item, name, cost=amount)
                end = 0.0 if fits else (await self._windows.get_window_stats(item, name)).reset_time
        except (StorageError, TimeoutError) as error:
            self._again = time.monotonic() + RETRY_SECONDS
            if not self._away:
                log.warning("Redis does not answer: each process counts uses by itself (%s)", type(error.__cause__ or error).__name__)
            self._away = True
            return None
        if self._away:
            log.info("Redis answers: uses are counted together")
        self._away = False
        return 0.0 if fits else max(0.001, end - time.time())

    async def close(self) -> None:
        """Let go of the connections."""
        await self._storage.bridge.storage.aclose()  # type: ignore[attr-defined]  # of each implementation that there is
