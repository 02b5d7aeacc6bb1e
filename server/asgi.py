"""The application for an ASGI server that is not ours (Ray Serve's): the bounds of ``server.transport`` that can be kept from inside.

What is bounded here, as there: requests of one address a second, bytes and frames of a WebSocket a second, bytes of a message. What comes
before the application is that server's: connections, heads of requests, compression, frames of control, a client that does not read.
"""

from typing import Any

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope, WebsocketScope
from quart import Quart

from server.context import Context
from server.http.web import address_of
from server.ops.connections import Connection, Connections, begin
from server.settings import Settings
from server.transport import Proxied

TOO_BIG, POLICY_VIOLATION, VANISHED = 1009, 1008, 1006  # close codes; the last one says that the client did not close


class Bounded:
    """An ASGI application around ours. The address of a client is what the scope says, or a proxy (``TTS_PROXIES``)."""

    def __init__(self, app: Quart, settings: Settings) -> None:
        self.context: Context = app.extensions["context"]
        self._app: Any = Proxied(app, settings.proxies) if settings.proxies else app
        self.most = settings.max_message_bytes
        self._all = Connections(settings.max_connections, self.most, self.context.metrics, behind_proxy=settings.proxies > 0)

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        address = address_of(scope.get("client"))
        if not self._all.arrives(address):
            self.context.metrics.refused.labels("too fast").inc()
            await _refuse(scope, send)
            return
        connection = Connection(self.most, self._all, address)
        begin(connection)
        try:
            if scope["type"] == "websocket":
                inbound = _Inbound(self, connection, scope, receive, send)
                await self._app(scope, inbound.receive, inbound.send)
            else:
                await self._app(scope, receive, send)
        finally:
            connection.forget()

    def refused(self, scope: WebsocketScope, code: int, reason: str, why: str) -> None:
        """A line in the log, as ``server.ws.frames`` has it."""
        self.context.access.refused(route=scope["path"], status=code, reason=reason, address=address_of(scope.get("client")), why=why)


class _Inbound:
    """One WebSocket. After the first message that is too much, its client is told, and nothing goes either way."""

    def __init__(
        self, bounds: Bounded, connection: Connection, scope: WebsocketScope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        self._bounds, self._connection, self._scope, self._receive, self._send = bounds, connection, scope, receive, send
        self._closed: int | None = None

    async def receive(self) -> Any:
        if self._closed is not None:
            return {"type": "websocket.disconnect", "code": self._closed}
        message: Any = await self._receive()
        if message["type"] == "websocket.disconnect":
            code = message.get("code", VANISHED)
            self._connection.close_code = None if code == VANISHED else code
        elif message["type"] == "websocket.receive":
            size = _size(message)
            if size > self._bounds.most:
                return await self._tell(TOO_BIG, "MESSAGE_TOO_BIG", f"a message of more than {self._bounds.most} bytes")
            if not (self._connection.takes_frame() and self._connection.takes_bytes(size)):
                return await self._tell(POLICY_VIOLATION, "FLOOD", "too many messages, or bytes")
        return message

    async def send(self, message: ASGISendEvent) -> None:
        if self._closed is None:
            await self._send(message)

    async def _tell(self, code: int, reason: str, why: str) -> Any:
        self._bounds.refused(self._scope, code, reason, why)
        self._connection.closed(reason.lower().replace("_", " "))
        await self._send({"type": "websocket.close", "code": code, "reason": why})
        self._closed = self._connection.close_code = code
        return {"type": "websocket.disconnect", "code": code}


def _size(message: Any) -> int:
    """Bytes of a message of a WebSocket."""
    if (data := message.get("bytes")) is not None:
        return len(data)
    text: str = message.get("text") or ""
    return len(text) if text.isascii() else len(text.encode())


async def _refuse(scope: Scope, send: ASGISendCallable) -> None:
    """503, before the application has looked at anything."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "too many connections"})
        return
    await send({"type": "http.response.start", "status": 503, "headers": [(b"retry-after", b"1"), (b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
