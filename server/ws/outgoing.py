"""A client's socket, for all that is sent: one message at a time, in order, each within a limit.

What must not wait is posted, and goes out before anything that is sent later. A session that may come back on another socket loses nothing
of either: its messages wait for that socket (audio is kept by ``server.ws.release``).
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from server.context import Context
from server.ws import protocol
from server.ws.protocol import Close

MOST_POSTED = 256  # messages that wait


class SlowClient(ConnectionError):
    """A client that does not read what it is sent."""


class Socket(Protocol):
    """The part of Quart's websocket that is used here."""

    async def receive(self) -> str | bytes | None: ...
    async def send(self, data: str | bytes) -> None: ...
    async def close(self, code: int, reason: str = "") -> None: ...


Sent = Callable[[], None]


class Outgoing:
    """The socket's sending half, for several tasks.

    Args:
        socket: None later, while it is lost.
        refused: hears of every error that is sent, with the close code that follows it, or ``-``.
    """

    def __init__(self, socket: Socket, context: Context, refused: Callable[[protocol.Error, int | str], None]) -> None:
        self._refused = refused
        self.close_code: int | None = None  # with which the server has closed
        self.stuck: Callable[[], bool] = lambda: False  # asked when the client does not read: whether the session waits for another socket
        self._socket: Socket | None = socket
        self._limit, self._metrics = context.settings.send_timeout, context.metrics
        self._lock = asyncio.Lock()
        self._posted: deque[tuple[msgspec.Struct, Sent | None]] = deque()
        self._waiting = asyncio.Event()

    @property
    def lost(self) -> bool:
        """Whether there is no socket."""
        return self._socket is None

    def detach(self) -> None:
        """The socket is lost."""
        self._socket = None

    def attach(self, socket: Socket, *first: msgspec.Struct) -> None:
        """Another socket, which gets ``first`` first, and nothing that an earlier one was to get in their place."""
        kinds = tuple(type(message) for message in first)
        self._posted = deque(one for one in self._posted if not isinstance(one[0], kinds))
        self._socket = socket
        self._lock = asyncio.Lock()  # whoever sends on the old one may do so until its limit
        self._posted.extendleft((message, None) for message in reversed(first))
        self._waiting.set()

    def post(self, message: msgspec.Struct, sent: Sent | None = None) -> None:
        """Send a message soon, and before whatever is sent after this call. ``sent`` is called when it has gone out."""
        self._count(message)
        if len(self._posted) >= MOST_POSTED:
            passing = (one for one in self._posted if isinstance(one[0], (protocol.Ducked, protocol.Resumed)))
            self._posted.remove(next(passing, self._posted[0]))
        self._posted.append((message, sent))
        self._waiting.set()

    async def run(self) -> None:
        """For ever: send what is posted. Raises SlowClient."""
        while True:
            await self._waiting.wait()
            self._waiting.clear()
            async with self._alone():
                pass

    async def send(self, message: msgspec.Struct, closing: Close | None = None) -> None:
        """Send a message, before ``closing`` if that follows, or keep it while the socket is lost. Raises SlowClient."""
        if self._socket is None:
            self.post(message)
            return
        self._count(message, closing)
        async with self._alone() as socket:
            if socket is None:
                self._posted.append((message, None))
            else:
                await socket.send(protocol.encode(message))

    def _count(self, message: msgspec.Struct, closing: Close | None = None) -> None:
        if isinstance(message, protocol.Error):
            self._metrics.errors.labels(message.code).inc()
            self._refused(message, "-" if closing is None else int(closing))

    async def audio(self, frame: Callable[[], str | bytes | None]) -> bool:
        """Send audio. ``frame`` is asked for it when nothing comes in between any more.

        Returns False, and nothing is sent, where that is None. Raises SlowClient.
        """
        went = False
        async with self._alone() as socket:
            data = None if socket is None else frame()
            if socket is not None and data is not None:
                went = True  # even if the socket is lost meanwhile
                await socket.send(data)
        return went

    async def close(self, code: Close) -> None:
        """Close. Raises SlowClient."""
        async with self._alone() as socket:
            self.close_code = int(code)
            if socket is not None:
                await socket.close(int(code))

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[Socket | None]:
        """The socket, once all that is posted has gone out; None if it is lost."""
        async with self._lock:
            socket = self._socket
            if not await self._flush(socket):
                socket = None
            try:
                async with asyncio.timeout(self._limit):
                    yield socket
            except TimeoutError as error:
                self._timed_out(socket, error)

    async def _flush(self, socket: Socket | None) -> bool:
        """Send what is posted. False if the socket is lost meanwhile."""
        while self._posted and socket is not None:
            message, sent = self._posted.popleft()
            try:
                async with asyncio.timeout(self._limit):
                    await socket.send(protocol.encode(message))
            except TimeoutError as error:
                self._posted.appendleft((message, sent))
                self._timed_out(socket, error)
                return False
            if sent is not None:
                sent()
        return True

    def _timed_out(self, socket: Socket | None, error: TimeoutError) -> None:
        if self._socket is socket and not self.stuck():
            raise SlowClient(f"the client read nothing for {self._limit} s") from error
