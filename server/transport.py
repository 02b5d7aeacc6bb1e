"""What Quart and Hypercorn leave open and a server must not: bounded input and output, no compression, HTTP/1.1 only, an end that comes.

Measured on Quart 0.22 and Hypercorn 0.18: the inbound queue has no bound; permessage-deflate is always negotiated (memory bombs, and four
times the CPU per audio frame); a WebSocket over HTTP/2 crashes, and is offered by ALPN, by ``Upgrade: h2c`` and to whoever just begins
with it; what follows an oversize message is still kept; 4 MB of audio are accepted for a client that reads nothing.
"""

import asyncio
import logging
import socket
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any

import h11
from hypercorn import protocol as hypercorn_protocol
from hypercorn.asyncio import run as hypercorn_run
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config, Sockets
from hypercorn.middleware import ProxyFixMiddleware
from hypercorn.protocol import h11 as h11_protocol
from hypercorn.protocol import ws_stream
from hypercorn.protocol.events import StreamClosed
from hypercorn.typing import WebsocketScope
from quart import Quart
from quart.asgi import ASGIWebsocketConnection
from wsproto.events import Message

from server import BEGUN, signals
from server.access import AccessLog
from server.address import WILDCARDS, listen, url_of
from server.context import Context
from server.drain import drain
from server.settings import Settings
from server.websocket import SPEAK

MAX_HEAD, MAX_TARGET, MAX_LINES = 16 * 1024, 8 * 1024, 128  # of a request's head: bytes, bytes of its first line, lines
SEND_BUFFER = 32 * 1024  # bytes in the kernel for each connection, which doubles it: less than two seconds of audio
CLOSE_SECONDS, STALLED_MS, WATCH_SECONDS = 1.0, 20_000, 1.0
log = logging.getLogger(__name__)


class _PlainHandshake(ws_stream.Handshake):
    """As Hypercorn's, but deaf to the extensions that a client offers."""

    def __init__(self, headers: list[tuple[bytes, bytes]], http_version: str) -> None:
        super().__init__(headers, http_version)
        self.extensions = None

    def is_valid(self) -> bool:
        return self.upgrade is not None and super().is_valid()


class _Buffer(ws_stream.WebsocketBuffer):
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


class _Stream(ws_stream.WSStream):
    """As Hypercorn's, but a refused handshake closes its connection, and a message that is too big ends its session.

    The client has a second to read why before the connection goes, for what it has under way would make its system throw the reason away.
    """

    _told = False

    async def _send_error_response(self, status_code: int) -> None:
        await super()._send_error_response(status_code)
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _handle_events(self) -> None:
        await super()._handle_events()
        if self.buffer.length > self.buffer.max_length and not self._told:
            self._told = True
            self.task_group.spawn(self._end)
            if isinstance(self.config, QuietSockets) and self.config.access is not None and self.client is not None:
                most = f"a message of more than {self.buffer.max_length} bytes; TTS_MAX_MESSAGE_BYTES would allow it"
                self.config.access.refused(route=SPEAK, status=1009, reason="MESSAGE_TOO_BIG", address=self.client[0], why=most)

    async def _end(self) -> None:
        await self.context.sleep(CLOSE_SECONDS)
        if not self.closed and self.app_put is not None:
            await self.app_put({"type": "websocket.disconnect", "code": 1009})


class _Requests(h11.Connection):
    """As h11's, but a request's head is measured before it is taken apart; h11 does that only while the head is incomplete."""

    _refused: h11.RemoteProtocolError | None = None

    def next_event(self) -> Any:
        if self._refused is None and self.our_state is self.their_state is h11.IDLE:
            head = self.trailing_data[0]
            ends = [end for end in (head.find(b"\n\r\n"), head.find(b"\n\n")) if end >= 0]
            head = head[: min(ends)] if ends else head
            if len(head) > MAX_HEAD or head.count(b"\n") >= MAX_LINES:
                self._refused = h11.RemoteProtocolError("the head of the request is too long", error_status_hint=431)
            elif len(head.partition(b"\n")[0]) > MAX_TARGET:
                self._refused = h11.RemoteProtocolError("the first line of the request is too long", error_status_hint=414)
        if self._refused is not None:
            raise self._refused
        return super().next_event()


class _Http11(h11_protocol.H11Protocol):
    """As Hypercorn's, but with bounded heads, and without offers of HTTP/2.

    ``Upgrade: h2c`` is ignored, as HTTP allows, and the preface of HTTP/2 is an odd request.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connection = _Requests(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    async def _check_protocol(self, event: h11.Request) -> None:
        pass


class _Connection(hypercorn_run.TCPServer):
    """As Hypercorn's, but known to the configuration, so that the end can cut it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if isinstance(self.config, QuietSockets):  # else Hypercorn was started by others
            self.config.connections.add(self.writer)


class QuietSockets(Config):
    """Hypercorn's configuration with small send buffers, and the connections that are open; ``access`` hears of refused messages."""

    def __init__(self) -> None:
        super().__init__()
        self.connections: weakref.WeakSet[asyncio.StreamWriter] = weakref.WeakSet()
        self.access: AccessLog | None = None
        self._made: Sockets | None = None

    def cut(self) -> None:
        """Everybody has been told: what is still open would hold the end up for ever (Python 3.12.1 and later wait for it)."""
        for writer in list(self.connections):
            writer.transport.abort()

    def create_sockets(self) -> Sockets:
        """The sockets of ``bind``, the same ones each time."""
        if self._made is not None:
            return self._made
        made = self._made = super().create_sockets()
        for one in (*made.secure_sockets, *made.insecure_sockets):
            if one.family != socket.AF_UNIX:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # inherited by what it accepts
                if hasattr(socket, "TCP_USER_TIMEOUT"):  # so that what a client never reads does not hold the server's end up
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
        return made


def bounded(messages: int) -> type[ASGIWebsocketConnection]:
    """Quart's connection, holding at most that many messages that nobody has read yet; then the client has to wait."""

    class Bounded(ASGIWebsocketConnection):
        def __init__(self, app: Quart, scope: WebsocketScope) -> None:
            super().__init__(app, scope)
            self.queue = asyncio.Queue(messages)

    return Bounded


def harden() -> None:
    """Put our classes in the place of Hypercorn's, which has no switches for them."""
    ws_stream.Handshake = _PlainHandshake  # type: ignore[misc]  # a class in the place of another
    ws_stream.WebsocketBuffer = _Buffer  # type: ignore[misc]  # a class in the place of another
    hypercorn_run.TCPServer = _Connection  # type: ignore[misc, assignment]  # the same
    h11_protocol.WSStream = _Stream  # type: ignore[misc]  # a class in the place of another
    hypercorn_protocol.H11Protocol = _Http11  # type: ignore[misc, assignment]  # the same


def configuration(settings: Settings) -> QuietSockets:
    """Hypercorn's, for these settings."""
    config = QuietSockets()
    config.bind = [f"{settings.host}:{settings.port}"]
    config.alpn_protocols = ["http/1.1"]
    config.websocket_max_message_size = settings.max_message_bytes
    config.graceful_timeout = 2.0
    config.errorlog = logging.getLogger("hypercorn.error")  # as ours is written, not in a format of its own
    config.include_server_header = False
    return config


async def serve(
    app: Quart,
    settings: Settings,
    *,
    listener: socket.socket | None = None,
    stop: asyncio.Event | None = None,
    bound: Callable[[Config], None] | None = None,
) -> None:
    """Serve until a signal that ends the process (server.signals), or ``stop``; then say goodbye to every session.

    Args:
        listener: a socket that listens, which is taken over. Default: one as the settings say.
        stop: ends it in the place of signals.
        bound: called with the configuration just before serving starts; a test can put in a socket of its own.

    Raises:
        FileNotFoundError, ValueError: the model could not be loaded; whatever else made loading fail.
        OSError: the address cannot be listened on; see server.address.
        RuntimeError: the engine died for good while it served, so that whoever watches the process starts it anew.
    """
    harden()
    config = configuration(settings)
    if bound is not None:
        bound(config)
    else:
        config.bind = [f"fd://{(listener or listen(settings.host, settings.port)).detach()}"]
    made = config.create_sockets()
    context: Context = app.extensions["context"]
    config.access = context.access
    ended = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    if stop is None:
        signals.while_serving(lambda: loop.call_soon_threadsafe(ended.set))
    announcing = asyncio.create_task(_announce(context, made.insecure_sockets[0].getsockname()))

    died = False  # a closed engine has failed, too; what counts is how it was when the end came

    async def until_the_end() -> None:
        nonlocal died
        told = asyncio.ensure_future(ended.wait())
        failed = asyncio.ensure_future(_failure(context))
        await asyncio.wait({told, failed}, return_when=asyncio.FIRST_COMPLETED)
        died = failed.done()
        told.cancel()
        failed.cancel()
        log.info("going down: %d sessions", len(context.sessions))
        await drain(context)
        loop.call_later(CLOSE_SECONDS, config.cut)

    try:
        served = ProxyFixMiddleware(app, "legacy", settings.proxies) if settings.proxies else app
        await hypercorn_serve(served, config, shutdown_trigger=until_the_end)
    finally:
        if stop is None:
            signals.while_ending()
        announcing.cancel()
        for one in made.insecure_sockets:
            one.close()  # where serving did not even begin
    loaded = context.engine.loaded
    if loaded is not None and loaded.done() and not loaded.cancelled():
        loaded.result()
    if died:
        raise RuntimeError("the engine died and could not be restarted; the log says why")


async def _announce(context: Context, name: Any) -> None:
    """Log where the server is, once it can speak; or at once, where the model is loaded only when somebody speaks."""
    fields: dict[str, object] = {"url": url_of(name), "on_every_address": True if name[0] in WILDCARDS else None}
    if context.settings.load == "lazy":
        log.info("listening; the model is loaded when a client speaks", extra={"fields": fields})
    await context.loading.wait()
    if context.engine.loaded is not None:
        await asyncio.wait({context.engine.loaded})
    if context.engine.is_ready:
        fields = fields | {
            "model": context.settings.model_id,
            "voices": len(context.store.voices) if context.engine.presets is None else len(context.engine.presets),
            "default_voice": context.default_voice(None),
            "slots": context.engine.slots,
            "seconds": round(monotonic() - BEGUN, 1),
        }
        log.info("ready", extra={"fields": fields})


async def _failure(context: Context) -> None:
    """Return when the model could not be loaded, or has died for good (looked at every second)."""
    await context.loading.wait()
    loaded: asyncio.Future[Any] | None = context.engine.loaded
    if loaded is not None:
        await asyncio.wait({loaded})
    while context.engine.state != "failed":  # noqa: ASYNC110  # engines have no event for it: their threads die as they can
        await asyncio.sleep(WATCH_SECONDS)
