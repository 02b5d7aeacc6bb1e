"""Open TCP connections: how many there may be, and how much comes in on one before anything is done for it."""

from contextlib import AbstractContextManager, ExitStack
from contextvars import ContextVar
from typing import Protocol

from server.ops.address import is_loopback
from server.ops.crowd import Crowd, Guest, NoPlace, TokenBucket, network_of
from server.ops.metrics import Metrics

STRANGER_FRAMES = (100.0, 10.0)  # WebSocket frames of a client that has not said who it is: at once, and more a second
FRAMES = (4000.0, 500.0)  # the same of any other
STRANGER_MESSAGES, MESSAGES = (4.0, 0.25), (64.0, 4.0)  # their bytes, in messages of the longest kind
ARRIVALS = (400.0, 100.0)  # connections and requests of one address: at once, and more a second
LOOPBACK_ARRIVALS = (4000.0, 1000.0)
MOST_ADDRESSES = 1000  # whose arrivals are remembered
DEFAULT_MESSAGE_BYTES = 64 * 1024


class Closing(Protocol):
    """The part of a transport that is used here."""

    def abort(self) -> None: ...


class Connection:
    """One of them. It begins as a stranger's.

    Args:
        message_bytes: of the longest message.
        owner: None for a server that others started, which does not count its connections.
    """

    def __init__(self, message_bytes: int = DEFAULT_MESSAGE_BYTES, owner: "Connections | None" = None, address: str = "") -> None:
        self._message_bytes, self._owner, self._address = message_bytes, owner, address
        self.guest: Guest | None = None
        self.close_code: int | None = None  # of its WebSocket, once the client, or the transport, has closed it
        self._held = ExitStack()
        self._is_known = True
        self.forget()

    def welcome(self) -> None:
        """A client has said who it is: its place is its own, and it may send more."""
        if not self._is_known:
            self._is_known = True
            self._frames, self._bytes = TokenBucket(*FRAMES), self._bucket(MESSAGES)
            if self.guest is not None:
                self.guest.known()

    def forget(self) -> None:
        """A request has ended: what was held for it is given back, and who asks next has to say so again."""
        self._held.close()
        if self._is_known:
            self._is_known = False
            self._frames, self._bytes = TokenBucket(*STRANGER_FRAMES), self._bucket(STRANGER_MESSAGES)
            if self.guest is not None:
                self.guest.stranger()

    def _bucket(self, messages: tuple[float, float]) -> TokenBucket:
        return TokenBucket(self._message_bytes * messages[0], self._message_bytes * messages[1])

    def keep(self, held: AbstractContextManager[object]) -> None:
        """Hold something until the request has ended, or the connection. Errors are those of entering it."""
        if self._owner is not None:
            self._held.enter_context(held)

    def takes_bytes(self, number: int) -> bool:
        """Count bytes of frames. False: too many."""
        return self._bytes.take(number)

    def takes_frame(self) -> bool:
        """Count a frame, or the part of one that came at a time. False: too many."""
        return self._frames.take()

    def arrives(self) -> bool:
        """Count a request. False: its address has sent too many."""
        return self._owner is None or self._owner.arrives(self._address)

    def closed(self, reason: str) -> None:
        """Count that the server closes it."""
        if self._owner is not None:
            self._owner.metrics.closed.labels(reason).inc()


_here: ContextVar[Connection | None] = ContextVar("connection", default=None)


def here() -> Connection:
    """The connection that this task serves; one that nobody counts, if there is none."""
    return _here.get() or Connection()


def begin(connection: Connection) -> None:
    """Make it ``here()``, for this task and those that it begins."""
    _here.set(connection)


class Connections:
    """All of one server.

    Args:
        most: of them, at once.
        behind_proxy: all come from a proxy, so that their addresses say nothing.
    """

    def __init__(self, most: int, message_bytes: int, metrics: Metrics, *, behind_proxy: bool = False) -> None:
        self.metrics = metrics
        self._message_bytes, self._behind_proxy = message_bytes, behind_proxy
        self._crowd = Crowd(most, behind_proxy=behind_proxy)
        self._arrivals: dict[str, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._crowd)

    def open(self, address: str, transport: Closing) -> Connection | None:
        """Count a connection, and begin it. None: it is one too many."""
        connection = Connection(self._message_bytes, self, address)

        def leave() -> None:
            connection.closed("displaced")
            transport.abort()

        if not self.arrives(address):
            self.metrics.refused.labels("too fast").inc()
            return None
        try:
            connection.guest = self._crowd.enter(address, leave)
        except NoPlace:
            self.metrics.refused.labels("too many").inc()
            return None
        begin(connection)
        return connection

    def close(self, connection: Connection) -> None:
        """It has ended."""
        connection.forget()
        if connection.guest is not None:
            connection.guest.gone()

    def arrives(self, address: str) -> bool:
        """Count a connection or request. False: the address has sent too many in a short time."""
        if self._behind_proxy:
            return True
        network = network_of(address)
        bucket = self._arrivals.pop(network, None)
        if bucket is None:
            if len(self._arrivals) >= MOST_ADDRESSES:
                del self._arrivals[next(iter(self._arrivals))]  # who has been quiet longest
            bucket = TokenBucket(*(LOOPBACK_ARRIVALS if is_loopback(network) else ARRIVALS))
        self._arrivals[network] = bucket
        return bucket.take()
