"""What Quart and Hypercorn leave open and a server must not: bounded input, no compression, HTTP/1.1 only, an end that comes.

Measured on Quart 0.22 and Hypercorn 0.18: the inbound queue has no bound, permessage-deflate is always negotiated (memory bombs,
and four times the CPU per audio frame), and a WebSocket over HTTP/2 crashes.
"""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config
from hypercorn.protocol import ws_stream
from hypercorn.typing import WebsocketScope
from quart import Quart
from quart.asgi import ASGIWebsocketConnection

from server import websocket
from server.engine import Engine
from server.settings import Settings


class _PlainHandshake(ws_stream.Handshake):
    """As Hypercorn's, but deaf to the extensions that a client offers."""

    def __init__(self, headers: list[tuple[bytes, bytes]], http_version: str) -> None:
        super().__init__(headers, http_version)
        self.extensions = None


def bounded(messages: int) -> type[ASGIWebsocketConnection]:
    """Quart's connection, holding at most that many messages that nobody has read yet; then the client has to wait."""

    class Bounded(ASGIWebsocketConnection):
        def __init__(self, app: Quart, scope: WebsocketScope) -> None:
            super().__init__(app, scope)
            self.queue = asyncio.Queue(messages)

    return Bounded


async def serve(
    app: Quart, settings: Settings, *, stop: asyncio.Event | None = None, bound: Callable[[Config], None] | None = None
) -> None:
    """Serve until SIGTERM, SIGINT or ``stop``; then say goodbye to every session.

    Args:
        bound: called with the configuration just before serving starts; a test can put in a socket of its own.

    Raises:
        FileNotFoundError, ValueError: the model could not be loaded; whatever else made loading fail.
    """
    ws_stream.Handshake = _PlainHandshake  # type: ignore[misc]  # Hypercorn has no switch for it
    config = Config()
    config.bind = [f"{settings.host}:{settings.port}"]
    config.alpn_protocols = ["http/1.1"]
    config.websocket_max_message_size = settings.max_message_bytes
    config.loglevel = "WARNING"
    if bound is not None:
        bound(config)
    engine: Engine = app.extensions["engine"]
    sessions: set[websocket.Sitting] = app.extensions["sessions"]
    ended = stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    handled = (signal.SIGTERM, signal.SIGINT) if stop is None else ()
    for number in handled:
        loop.add_signal_handler(number, ended.set)

    async def until_the_end() -> None:
        told = asyncio.ensure_future(ended.wait())
        if engine.loaded is not None:
            both: set[asyncio.Future[Any]] = {told, engine.loaded}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if engine.state != "failed":
            await told
        told.cancel()
        await websocket.drain(sessions)

    try:
        await hypercorn_serve(app, config, shutdown_trigger=until_the_end)
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
    if engine.loaded is not None and engine.loaded.done() and not engine.loaded.cancelled():
        engine.loaded.result()
