"""A server on a real socket of 127.0.0.1, and a client's half of the conversation, for the tests."""

import asyncio
import functools
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import websockets.asyncio.client
from hypercorn.config import Config
from quart import Quart
from websockets.asyncio.client import ClientConnection

from qwen3_jax.audio.samples import write_wav
from server.app import MakeEngine, create_app
from server.settings import Settings
from server.transport import serve
from tests.fake_engine import LIMIT

Message = dict[str, Any]
connect = functools.partial(websockets.asyncio.client.connect, open_timeout=LIMIT, ping_timeout=LIMIT, close_timeout=LIMIT)
PATIENT = {"auth_timeout": LIMIT, "send_timeout": LIMIT, "text_timeout": LIMIT}  # settings that are seconds by default


def make_voices(folder: Path, *names: str) -> Path:
    """Two voices, one with a transcript; or some of other names."""
    samples = np.random.default_rng(1).normal(0, 0.1, 84000).astype(np.float32)
    for name in names or ("anna", "makima"):
        (folder / name).mkdir(parents=True)
        write_wav(folder / name / "reference.wav", samples)
    if not names:
        (folder / "makima" / "transcript.txt").write_text("Good evening.\n", "utf-8")
    return folder


def prompts_of(voices: Path) -> list[Path]:
    """The kept prompts of a test that has the fixture ``voices``."""
    return sorted((voices.parent / "cache" / "qwen3-jax" / "prompts").glob("*"))


SPEAKERS = ("playback", "release", "turn", "mouth")  # modules of server/ws/ that ask for the time of a session's speech


class Clock:
    """What a session's speaker takes for the time: it stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def until(condition: Callable[[], bool]) -> None:
    """Return when it is true; a test's last resort where nothing tells."""
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Server:
    """A running one."""

    def __init__(self, app: Quart, port: int, stop: asyncio.Event) -> None:
        self.app, self.port, self.stop = app, port, stop
        self.url = f"ws://127.0.0.1:{port}/api/v1/speak"
        self.http = f"http://127.0.0.1:{port}"
        self.context = app.extensions["context"]
        self.task: asyncio.Task[None] | None = None

    def http_client(self) -> httpx.AsyncClient:
        """A client of the REST part."""
        return httpx.AsyncClient(base_url=self.http, timeout=LIMIT)


@asynccontextmanager
async def running(
    voices: Path | str,
    make_engine: MakeEngine,
    /,
    *,
    wait: bool = True,
    limit: float = LIMIT,
    change: Callable[[Quart], None] | None = None,
    at: int = 0,
    **chosen: Any,
) -> AsyncIterator[Server]:
    """A server, on a free port or on port ``at``; it is stopped at the end. Deadlines that no test is about are as long as LIMIT."""
    settings = Settings(voices_dir=voices, **{"grace": 0.2, "model_id": "fake", "shipped_voices": False} | PATIENT | chosen)
    app = create_app(settings, make_engine)
    if change is not None:
        change(app)
    stop, up, ports = asyncio.Event(), asyncio.Event(), []

    @app.before_serving
    async def tell() -> None:  # after the engine has begun to load
        up.set()

    def bind(config: Config) -> None:
        listener = socket.create_server(("127.0.0.1", at))
        ports.append(listener.getsockname()[1])
        config.bind = [f"fd://{listener.detach()}"]  # Hypercorn closes it

    server = asyncio.create_task(serve(app, settings, stop=stop, bound=bind))
    try:
        async with asyncio.timeout(limit):
            await asyncio.wait({asyncio.ensure_future(up.wait()), server}, return_when=asyncio.FIRST_COMPLETED)
            if wait and not server.done():
                await app.extensions["context"].engine.loaded
        made = Server(app, ports[0], stop)
        made.task = server
        yield made
    finally:
        stop.set()
        await asyncio.wait_for(server, LIMIT)


@asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[ClientConnection]:
    """A client that has read ``ready``."""
    async with asyncio.timeout(3 * LIMIT), connect(url, **options) as connection:
        assert (await hear(connection))["type"] == "ready"
        yield connection


async def say(connection: ClientConnection, **message: Any) -> None:
    await connection.send(json.dumps(message))


async def hear(connection: ClientConnection) -> Message:
    """The next message, which must not be audio."""
    frame = await asyncio.wait_for(connection.recv(), LIMIT)
    assert isinstance(frame, str), f"{len(frame)} bytes of audio where a message was expected"
    message: Message = json.loads(frame)
    return message


async def audio(connection: ClientConnection) -> bytes:
    """The next frame, which must be audio."""
    frame = await asyncio.wait_for(connection.recv(), LIMIT)
    assert isinstance(frame, bytes), frame
    return frame


async def utterance(connection: ClientConnection) -> tuple[bytes, Message]:
    """All audio up to the next message, and that message."""
    heard = b""
    while True:
        frame = await asyncio.wait_for(connection.recv(), LIMIT)
        if isinstance(frame, str):
            return heard, json.loads(frame)
        heard += frame


async def closed(connection: ClientConnection) -> int | None:
    """The close code, once it is there."""
    await asyncio.wait_for(connection.wait_closed(), LIMIT)
    return connection.close_code
