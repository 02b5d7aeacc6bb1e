"""WebSockets as Hypercorn and wsproto read them, with bounds: no extensions, messages by bytes, frames and bytes by the second.

Frames of control, empty ones and fragments cost as much as others and reach no queue, so each is counted before anything is done for it.
"""

import asyncio
import base64
import binascii
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from hypercorn.protocol import ws_stream
from hypercorn.protocol.events import Data, Event, Request, StreamClosed
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping
from wsproto.frame_protocol import CloseReason

from server.ops import upstream
from server.ops.connections import here

CLOSE_SECONDS = 1.0  # for a client to read why its connection is closed
KEY_BYTES = 16  # of Sec-WebSocket-Key
TURN = 16  # frames, after which the event loop goes round
upstream.check()  # before its classes are taken for what they were


class PlainHandshake(ws_stream.Handshake):
    """As Hypercorn's, but deaf to the extensions that a client offers."""

    def __init__(self, headers: list[tuple[bytes, bytes]], http_version: str) -> None:
        super().__init__(headers, http_version)
        self.extensions = None

    def is_valid(self) -> bool:
        return self.upgrade is not None and _is_key(self.key) and super().is_valid()


def _is_key(key: bytes | None) -> bool:
    """Whether that is base64 of 16 bytes (RFC 6455, 4.2.1)."""
    try:
        return len(base64.b64decode(key or b"", validate=True)) == KEY_BYTES
    except binascii.Error:
        return False


class Buffer(ws_stream.WebsocketBuffer):
    """As Hypercorn's, but counts bytes of text, too, and keeps nothing of a message that is too big, nor of what follows it."""

    _bytes = 0

    def extend(self, event: Message) -> None:
        self._bytes += len(event.data if isinstance(event.data, bytes) or event.data.isascii() else event.data.encode())
        if self._bytes > self.max_length:
            self.value, self.length = None, self.max_length + 1
            raise ws_stream.FrameTooLargeError
        super().extend(event)

    def clear(self) -> None:
        super().clear()
        self._bytes = 0


class BoundedStream(ws_stream.WSStream):
    """As Hypercorn's, but a refused handshake closes its connection, and a message that is too big, or a flood, ends the session.

    The client has a second to read why before the connection goes, for what it has under way would make its system throw the reason away.
    Nothing of what it sends meanwhile is looked at.
    """

    _told = _flood = False
    _over = False  # the application has ended

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._handing = set[asyncio.Timeout]()

    async def app_send(self, message: ASGISendEvent | None) -> None:
        if message is None:
            self._over = True
            for one in self._handing:
                one.reschedule(asyncio.get_running_loop().time())
        await super().app_send(message)

    async def _hand(self, put: Callable[[ASGIReceiveEvent], Awaitable[None]], message: ASGIReceiveEvent) -> None:
        """Hand over a message, as long as the application is there to read it; waiting longer would keep the connection for ever."""
        if self._over:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                self._handing.add(limit)
                try:
                    await put(message)
                finally:
                    self._handing.discard(limit)

    async def handle(self, event: Event) -> None:
        if isinstance(event, Data) and self.handshake.accepted:
            if self._told:
                if self._flood:  # what is not read cannot be sent
                    await self.context.sleep(CLOSE_SECONDS)
                return
            if not here().takes_bytes(len(event.data)):
                await self._tell(CloseReason.POLICY_VIOLATION, "too many bytes", "flood")
                return
        await super().handle(event)
        if isinstance(event, Request) and self.app_put is not None:
            self.app_put = partial(self._hand, self.app_put)

    async def _handle_events(self) -> None:
        connection = here()
        for number, event in enumerate(self.connection.events(), 1):
            if not connection.takes_frame():
                await self._tell(CloseReason.POLICY_VIOLATION, "too many frames", "flood")
                return
            if isinstance(event, Message):
                try:
                    self.buffer.extend(event)
                except ws_stream.FrameTooLargeError:
                    most = self.buffer.max_length
                    await self._tell(
                        CloseReason.MESSAGE_TOO_BIG, f"at most {most} bytes in one message: send smaller ones", "message too big"
                    )
                    return
                if event.message_finished:
                    assert self.app_put is not None
                    await self.app_put(self.buffer.to_message())
                    self.buffer.clear()
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                connection.close_code = int(event.code)
                if self.connection.state == ConnectionState.REMOTE_CLOSING:
                    await self._send_wsproto_event(event.response())
                elif self.connection.state == ConnectionState.OPEN:  # frames that are none: 1002, or 1007 for text that is not UTF-8
                    await self._send_wsproto_event(event)
                await self.send(StreamClosed(stream_id=self.stream_id))
            if number % TURN == 0:
                await asyncio.sleep(0)

    async def _send_error_response(self, status_code: int) -> None:
        await super()._send_error_response(status_code)
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _tell(self, code: CloseReason, reason: str, counted: str) -> None:
        self._told, self._flood = True, counted == "flood"
        here().close_code = int(code)
        here().closed(counted)
        access = getattr(self.config, "access", None)  # None: Hypercorn was started by others
        if access is not None and self.client is not None:
            access.refused(
                route=self.scope["path"],  # of one of our routes, for its handshake was accepted
                status=int(code),
                reason=counted.upper().replace(" ", "_"),
                address=self.client[0],
                why=f"{reason}; TTS_MAX_MESSAGE_BYTES allows more" if code is CloseReason.MESSAGE_TOO_BIG else reason,
            )
        await self._send_wsproto_event(CloseConnection(code=code, reason=reason))
        self.task_group.spawn(self._end, int(code))

    async def _end(self, code: int) -> None:
        await self.context.sleep(CLOSE_SECONDS)
        if not self.closed and self.app_put is not None:
            await self.app_put({"type": "websocket.disconnect", "code": code})
