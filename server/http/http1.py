"""HTTP/1.1 as Hypercorn and h11 read it, with bounds: heads, bodies in small pieces, trailers, requests of one address.

The event loop goes round after every few kilobytes that have to be taken apart.
"""

import asyncio
from typing import Any

import h11
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol import h11 as h11_protocol

from server.ops import upstream
from server.ops.connections import here

MAX_HEAD, MAX_TARGET, MAX_LINES = 16 * 1024, 8 * 1024, 128  # of a request's head: bytes, bytes of its first line, lines
SLICE, MAX_LOOSE = 4096, 1024  # bytes taken apart at a time; of a chunk's first line, or of what follows the last chunk
PIECES, PIECE_BYTES = 1000, 64  # a body may come in so many pieces, and in one more for each so many bytes
upstream.check()  # before its classes are taken for what they were


class Requests(h11.Connection):
    """As h11's, but what a client sends is measured before it is taken apart, and a body has one length."""

    _refused: h11.RemoteProtocolError | None = None
    _pieces = _bytes = 0
    over = False  # whether no request is answered any more, so that none is read
    whole = False  # whether a body is being read whose length was told

    def next_event(self) -> Any:
        if self.over:
            return h11.NEED_DATA
        if self._refused is None and self.our_state is self.their_state is h11.IDLE:
            self._refused = self._check_head()
        if self._refused is not None:
            raise self._refused
        event = super().next_event()
        if (refused := self._check(event)) is not None:
            self._refused = refused
            self._process_error(self.their_role)
            raise refused
        return event

    def _check_head(self) -> h11.RemoteProtocolError | None:
        head = self.trailing_data[0]
        ends = [end for end in (head.find(b"\n\r\n"), head.find(b"\n\n")) if end >= 0]
        head = head[: min(ends)] if ends else head
        if len(head) > MAX_HEAD or head.count(b"\n") >= MAX_LINES:
            return h11.RemoteProtocolError("the head of the request is too long", error_status_hint=431)
        if len(head.partition(b"\n")[0]) > MAX_TARGET:
            return h11.RemoteProtocolError("the first line of the request is too long", error_status_hint=414)
        return None

    def _check(self, event: Any) -> h11.RemoteProtocolError | None:
        if isinstance(event, h11.Request):
            return self._check_request(event)
        if isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > PIECES + self._bytes // PIECE_BYTES:
                here().closed("flood")
                return h11.RemoteProtocolError("a body in too many small pieces", error_status_hint=400)
        elif isinstance(event, h11.EndOfMessage):
            self.whole = False
        elif event is h11.NEED_DATA and self.their_state is h11.SEND_BODY and len(self.trailing_data[0]) > MAX_LOOSE:
            return h11.RemoteProtocolError("too much around the chunks of a body", error_status_hint=431)
        return None

    def _check_request(self, event: h11.Request) -> h11.RemoteProtocolError | None:
        """Two lengths are how one server's request becomes two of another's, so that they are refused, as RFC 9112 (6.1) allows."""
        names = [name for name, _ in event.headers]
        self._pieces = self._bytes = 0
        self.whole = b"transfer-encoding" not in names
        if not self.whole and b"content-length" in names:
            return h11.RemoteProtocolError("Content-Length and Transfer-Encoding in one request", error_status_hint=400)
        if not self.whole and event.http_version < b"1.1":
            return h11.RemoteProtocolError("Transfer-Encoding in a request of HTTP/1.0", error_status_hint=400)
        if event.target[:1] != b"/" and event.target != b"*" and b"://" not in event.target:
            return h11.RemoteProtocolError("a target that is neither a path nor an address", error_status_hint=400)
        if not here().arrives():
            here().closed("too fast")
            return h11.RemoteProtocolError("too many requests of this address", error_status_hint=429)
        return None


class Http11(h11_protocol.H11Protocol):
    """As Hypercorn's, but bounded (see the module), and without offers of HTTP/2.

    ``Upgrade: h2c`` is ignored, as HTTP allows, and the preface of HTTP/2 is an odd request.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connection = self._requests = Requests(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._here = here()

    async def handle(self, event: Event) -> None:
        if isinstance(event, Closed):  # Hypercorn's reader would wait for ever for the answer before the next request
            self._requests.over = True
            await self.can_read.set()
        if not isinstance(event, RawData) or len(event.data) <= SLICE:
            await super().handle(event)
            return
        rest = memoryview(event.data)
        while rest:
            size = SLICE if self.connection is self._requests and not self._requests.whole else len(rest)
            await super().handle(RawData(bytes(rest[:size])))
            rest = rest[size:]
            await asyncio.sleep(0)

    async def _maybe_recycle(self) -> None:
        self._here.forget()
        self._requests.over = self._requests.over or self.context.terminated.is_set()
        await super()._maybe_recycle()

    async def _check_protocol(self, event: h11.Request) -> None:
        pass
