"""The application behind an ASGI server that is not ours (server/asgi.py), here a pair of queues: what is bounded all the same."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.app import create_app
from server.asgi import Bounded
from server.settings import Settings
from tests.fake_engine import LIMIT, FakeEngine
from tests.serving import PATIENT

Message = dict[str, Any]
HEAD: Message = {
    "http_version": "1.1",
    "query_string": b"",
    "headers": [(b"host", b"127.0.0.1")],
    "server": ("127.0.0.1", 80),
    "root_path": "",
    "extensions": {},
    "subprotocols": [],
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "state": {},
}


class Connection:
    """A WebSocket, or a request, as the ASGI server sees it."""

    def __init__(self, app: Bounded, kind: str = "websocket", path: str = "/api/v1/speak", address: str = "127.0.0.1") -> None:
        self.scope = HEAD | {"type": kind, "path": path, "raw_path": path.encode(), "client": (address, 1), "method": "GET"}
        self.scope["scheme"] = "ws" if kind == "websocket" else "http"
        self.inbound: asyncio.Queue[Message] = asyncio.Queue()
        self.outbound: asyncio.Queue[Message] = asyncio.Queue()
        self.inbound.put_nowait({"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request", "body": b""})
        self.task = asyncio.create_task(app(self.scope, self.inbound.get, self.outbound.put))

    async def sent(self) -> Message:
        return await asyncio.wait_for(self.outbound.get(), LIMIT)

    async def ready(self) -> "Connection":
        """What comes first of a session."""
        assert (await self.sent())["type"] == "websocket.accept"
        assert json.loads((await self.sent())["text"])["type"] == "ready"
        return self

    def send(self, data: str | bytes) -> None:
        self.inbound.put_nowait({"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data})

    async def closed(self) -> int:
        """The close code, whatever else comes before it; nothing follows."""
        while (message := await self.sent())["type"] != "websocket.close":
            pass
        await asyncio.wait_for(self.task, LIMIT)
        assert self.outbound.empty()
        code: int = message["code"]
        return code


@asynccontextmanager
async def served(voices: Path, **chosen: Any) -> AsyncIterator[Bounded]:
    settings = Settings(voices_dir=voices, **{"model_id": "fake", "shipped_voices": False} | PATIENT | chosen)
    app = create_app(settings, FakeEngine(frames=1))
    async with app.test_app():
        yield Bounded(app, settings)


@pytest.mark.parametrize("message", ["x" * 2001, b"x" * 2001, "é" * 1001], ids=["text", "bytes", "letters of two bytes"])
async def test_a_message_that_is_too_big_closes_with_1009(voices: Path, message: str | bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with served(voices, max_message_bytes=2000) as app:
        one, other = await Connection(app).ready(), await Connection(app).ready()
        one.send(message)
        other.send(message[: len(message) // 2 - 1])
        assert await one.closed() == 1009
        assert json.loads((await other.sent())["text"])["code"] == "INVALID_MESSAGE"
        other.inbound.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(other.task, LIMIT)
    assert any("MESSAGE_TOO_BIG" in str(vars(record).get("fields")) for record in caplog.records)


async def test_a_flood_of_messages_closes_with_1008(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.ops.connections.FRAMES", (50.0, 0.0))
    async with served(voices) as app:
        one = await Connection(app).ready()
        for _ in range(51):
            one.send('{"type": "nobody knows"}')
        assert await one.closed() == 1008


async def test_a_client_that_closes_is_told_from_one_that_vanishes(voices: Path) -> None:
    """What it had under way waits for another socket of one that vanished only (docs/contracts.md)."""
    async with served(voices) as app:
        kept = {}
        for code in (1001, 1006):
            one = await Connection(app).ready()
            one.send(json.dumps({"type": "start", "contractId": "c"}))
            assert json.loads((await one.sent())["text"])["type"] == "started"
            one.inbound.put_nowait({"type": "websocket.disconnect", "code": code})
            await asyncio.wait_for(one.task, LIMIT)
            kept[code] = len(app.context.sessions)
        assert kept == {1001: 0, 1006: 1}


async def test_requests_of_one_address_are_counted(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.ops.connections.ARRIVALS", (5.0, 0.0))
    async with served(voices) as app:
        answers = [Connection(app, "http", "/healthz", "192.0.2.1") for _ in range(7)]
        assert [(await one.sent())["status"] for one in answers] == [200] * 5 + [503] * 2
        assert (await Connection(app, "http", "/healthz", "192.0.2.2").sent())["status"] == 200
        await asyncio.gather(*(one.task for one in answers))
