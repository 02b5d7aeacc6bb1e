"""What Quart and Hypercorn leave open and a server must not: bounded input and output, no compression, HTTP/1.1 only, an end that comes.

Measured on Quart 0.22 and Hypercorn 0.18: the inbound queue has no bound; permessage-deflate is always negotiated (memory bombs, and four
times the CPU per audio frame); a WebSocket over HTTP/2 crashes, and is offered by ALPN, by ``Upgrade: h2c`` and to whoever just begins
with it; what follows an oversize message is still kept; 4 MB of audio are accepted for a client that reads nothing.
"""

import asyncio
import contextlib
import logging
import socket
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any

from hypercorn import protocol as hypercorn_protocol
from hypercorn.asyncio import run as hypercorn_run
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config, Sockets
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.middleware import ProxyFixMiddleware
from hypercorn.protocol import h11 as h11_protocol
from hypercorn.protocol import ws_stream
from hypercorn.typing import ASGIFramework, Scope, WebsocketScope
from quart import Quart
from quart.asgi import ASGIWebsocketConnection

from server import BEGUN
from server.context import Context
from server.drain import drain
from server.http import http1
from server.http.origins import asked_host
from server.ops import signals, upstream
from server.ops.access import AccessLog
from server.ops.address import WILDCARDS, listen, url_of
from server.ops.connections import Connection, Connections, begin, here
from server.settings import Settings
from server.ws import frames
from server.ws.frames import CLOSE_SECONDS

SEND_BUFFER = 32 * 1024  # bytes in the kernel for each connection, which doubles it: less than two seconds of audio
STALLED_MS, WATCH_SECONDS = 20_000, 1.0
HEAD_SECONDS = 5.0  # from connecting, or from the last answer, to the end of a request's head
WRITE_SECONDS = 60.0  # that a client may take to make room for one piece: about 1 kB/s, whatever it reads
QUICK_SECONDS = 0.25  # at the end, for clients that have neither a session nor speech under way, and may just not read or send
QUEUE = 2  # messages between Hypercorn and Quart
INBOUND = 32  # messages of a WebSocket that have come and that its session has not read
GOING_DOWN = "going down: %d sessions; what is spoken may end within %g s (TTS_GRACE); Ctrl-C ends the process at once"
TOO_MANY = b"HTTP/1.1 503 \r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
log = logging.getLogger(__name__)


class _Connection(hypercorn_run.TCPServer):
    """As Hypercorn's, but counted before anything is read, known to the configuration, so that the end can cut it, and not for a
    client that stalls, or that has gone."""

    _gone = False  # the client has closed

    async def run(self) -> None:
        config = self.config
        if not isinstance(config, QuietSockets) or (counted := config.counted) is None:  # Hypercorn was started by others
            begin(Connection())
            await super().run()
            return
        peer = self.writer.get_extra_info("peername")
        connection = counted.open(peer[0] if isinstance(peer, tuple) else "localhost", self.writer.transport)
        if connection is None:
            self.writer.write(TOO_MANY)
            self.writer.close()
            return
        config.connections.add(self.writer)
        try:
            await super().run()
        finally:
            counted.close(connection)

    async def _read_data(self) -> None:
        await super()._read_data()
        self._gone = True
        await self.idle_task.stop()  # run waits for it

    async def protocol_send(self, event: Event) -> None:
        if self._gone and isinstance(event, Updated) and event.idle:
            return
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        if self.writer.transport.is_closing():  # asyncio warns of every write to it
            await self.protocol.handle(Closed())
            return
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await super().protocol_send(event)
        except TimeoutError:
            here().closed("stalled")
            self.writer.transport.abort()
        except OSError:  # no route any more, for one; Hypercorn knows of errors of connections only
            await self.protocol.handle(Closed())

    async def _close(self) -> None:
        with contextlib.suppress(OSError):  # ETIMEDOUT, for one: the client read nothing (STALLED_MS), and the connection is gone
            await super()._close()


class QuietSockets(Config):
    """Hypercorn's configuration with small send buffers, and the connections that are open; ``access`` hears of refused messages."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Connections | None = None
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


class BoundedSocket(ASGIWebsocketConnection):
    """Quart's connection, holding at most ``INBOUND`` messages that nobody has read yet; then the client has to wait."""

    def __init__(self, app: Quart, scope: WebsocketScope) -> None:
        super().__init__(app, scope)
        self.queue = asyncio.Queue(INBOUND)


class Proxied:
    """Hypercorn's ProxyFixMiddleware; the Host that really came stays known, for a browser's page can make up X-Forwarded-Host."""

    def __init__(self, app: ASGIFramework, hops: int) -> None:
        self._fixed = ProxyFixMiddleware(app, "legacy", hops)

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] in ("http", "websocket"):
            scope["state"]["host"] = asked_host(scope["headers"])
        await self._fixed(scope, receive, send)


def harden() -> None:
    """Put our classes in the place of Hypercorn's, which has no switches for them. Raises RuntimeError where that does not do."""
    upstream.check()
    ws_stream.Handshake = frames.PlainHandshake  # type: ignore[misc]  # a class in the place of another
    ws_stream.WebsocketBuffer = frames.Buffer  # type: ignore[misc]  # a class in the place of another
    hypercorn_run.TCPServer = _Connection  # type: ignore[misc]  # the same
    h11_protocol.WSStream = frames.BoundedStream  # type: ignore[misc]  # a class in the place of another
    hypercorn_protocol.H11Protocol = http1.Http11  # type: ignore[misc, assignment]  # the same


def configuration(settings: Settings) -> QuietSockets:
    """Hypercorn's, for these settings."""
    config = QuietSockets()
    config.bind = [f"{settings.host}:{settings.port}"]
    config.alpn_protocols = ["http/1.1"]
    config.websocket_max_message_size = settings.max_message_bytes
    config.keep_alive_timeout = HEAD_SECONDS
    config.max_app_queue_size = QUEUE
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
    """Serve until a signal that ends the process (server.ops.signals), or ``stop``; then say goodbye to every session.

    Args:
        listener: a socket that listens, which is taken over. Default: one as the settings say.
        stop: ends it in the place of signals.
        bound: called with the configuration just before serving starts; a test can put in a socket of its own.

    Raises:
        FileNotFoundError, ValueError: the model could not be loaded; whatever else made loading fail.
        OSError: the address cannot be listened on; see server.ops.address.
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
    counted = config.counted = Connections(
        settings.max_connections, settings.max_message_bytes, context.metrics, behind_proxy=settings.proxies > 0
    )
    context.metrics.watch("tts_connections", "Open TCP connections", lambda: len(counted))
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
        log.info(GOING_DOWN, len(context.sessions), context.settings.grace)
        told_why = bool(context.sessions or context.streams)
        await drain(context)
        loop.call_later(CLOSE_SECONDS if told_why else QUICK_SECONDS, config.cut)

    try:
        served = Proxied(app, settings.proxies) if settings.proxies else app
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
