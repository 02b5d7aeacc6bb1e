"""A client's socket, for all that is sent: one message at a time, each within a limit, and audio only while its utterance is live."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from server.context import Context
from server.ws import protocol
from server.ws.machine import SessionUtterance
from server.ws.protocol import Close


class SlowClient(ConnectionError):
    """A client that does not read what it is sent."""


class Socket(Protocol):
    """The part of Quart's websocket that is used here."""

    async def receive(self) -> str | bytes | None: ...
    async def send(self, data: str | bytes) -> None: ...
    async def close(self, code: int, reason: str = "") -> None: ...


class Outgoing:
    """The socket's sending half, for two tasks.

    Args:
        refused: hears of every error that is sent, with the close code that follows it, or ``-``.
    """

    def __init__(self, socket: Socket, context: Context, refused: Callable[[protocol.Error, int | str], None]) -> None:
        self._socket, self._limit, self._metrics = socket, context.settings.send_timeout, context.metrics
        self._refused = refused
        self._lock = asyncio.Lock()
        self.close_code: int | None = None  # with which the server has closed

    async def send(self, message: msgspec.Struct, closing: Close | None = None) -> None:
        """Send a message, before ``closing`` if that follows. Raises SlowClient."""
        if isinstance(message, protocol.Error):
            self._metrics.errors.labels(message.code).inc()
            self._refused(message, "-" if closing is None else int(closing))
        async with self._alone():
            await self._socket.send(protocol.encode(message))

    async def audio(self, utterance: SessionUtterance, frame: str | bytes) -> bool:
        """Send audio; False, and nothing sent, if its utterance is not live any more. Raises SlowClient."""
        async with self._alone():
            if utterance.live:
                await self._socket.send(frame)
            return utterance.live

    async def close(self, code: Close) -> None:
        """Close. Raises SlowClient."""
        async with self._alone():
            self.close_code = int(code)
            await self._socket.close(int(code))

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self._lock:
            try:
                async with asyncio.timeout(self._limit):
                    yield
            except TimeoutError as error:
                raise SlowClient(f"the client read nothing for {self._limit} s") from error
