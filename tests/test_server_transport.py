"""Every finding about Quart and Hypercorn that the transport closes, each as a regression test over a real socket."""

import asyncio
import base64
import contextlib
import json
import os
import socket
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from quart import Quart, websocket

from server.ops.connections import here
from tests.fake_engine import FRAME, LIMIT, FakeEngine, pcm16
from tests.serving import audio, client, closed, connect, hear, running, say, until, utterance

HANDSHAKE = (
    "GET /api/v1/speak HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)


@asynccontextmanager
async def raw(port: int, more: str = "", **options: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, str]]:
    """A connection whose frames we make ourselves: reader, writer, the handshake's answer."""
    made = socket.socket()
    for name, value in options.items():
        made.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    made.setblocking(False)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=made, limit=2**26)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(HANDSHAKE.format(key=key, more=more).encode())
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT)
    try:
        yield reader, writer, answer.decode()
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


def frame(opcode: int, payload: bytes, *, final: bool = True, reserved: int = 0) -> bytes:
    """A masked frame (with a mask of zeros, which leaves the payload as it is)."""
    length = len(payload)
    head = bytes([final << 7 | reserved << 4 | opcode])
    head += bytes([128 | length]) if length < 126 else struct.pack("!BH" if length < 65536 else "!BQ", 254 + (length >= 65536), length)
    return head + bytes(4) + payload


async def code_of(reader: asyncio.StreamReader) -> int | None:
    """Read to the close frame; None if the connection just ends."""
    data = b""
    while (more := await asyncio.wait_for(reader.read(65536), LIMIT)) != b"":
        data += more
        if (at := data.find(b"\x88")) >= 0 and len(data) >= at + 4 and 2 <= data[at + 1] < 126:
            (code,) = struct.unpack("!H", data[at + 2 : at + 4])
            return int(code)
    return None


async def test_an_empty_binary_frame_is_one(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, client(server.url) as connection:
        await connection.send(b"")
        assert (await hear(connection))["code"] == "INVALID_MESSAGE"
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[0] == pcm16(1, 3)


async def test_a_handler_that_does_not_read_bounds_what_is_taken(voices: Path) -> None:
    """577 MB were taken before; now it is a few queues and socket buffers."""
    stay = asyncio.Event()

    def deaf(app: Quart) -> None:
        @app.websocket("/deaf")
        async def handler() -> None:
            here().welcome()
            await websocket.accept()
            await stay.wait()

    async with running(voices, FakeEngine(), change=deaf) as server:
        async with connect(server.url.replace("/api/v1/speak", "/deaf"), compression=None) as connection:
            sent, before = 0, -1

            async def flood() -> None:
                nonlocal sent
                while True:
                    await connection.send("x" * 60_000)
                    sent += 1

            flooding = asyncio.create_task(flood())
            async with server.http_client() as http:
                while before < sent:  # until nothing more is taken while the same loop answers others
                    before = sent
                    for _ in range(20):
                        assert (await http.get("/healthz")).status_code == 200
                    assert sent * 60_000 < 16_000_000
            flooding.cancel()
            await asyncio.wait({flooding})
            connection.transport.abort()
        stay.set()


async def test_compression_is_not_negotiated_and_a_bomb_is_refused(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server:
        async with connect(server.url, compression="deflate") as connection:
            assert connection.response is not None
            assert "Sec-WebSocket-Extensions" not in connection.response.headers
        before = psutil.Process().memory_info().rss
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = packer.compress(bytes(50_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)
        assert len(bomb) < 60_000
        async with raw(server.port, "Sec-WebSocket-Extensions: permessage-deflate\r\n") as (reader, writer, answer):
            assert "extensions" not in answer.lower()
            writer.write(frame(1, bomb, reserved=4))
            assert await code_of(reader) in (None, 1002)
        assert psutil.Process().memory_info().rss - before < 20_000_000


@pytest.mark.parametrize("text", ["x" * 70_000, "今" * 21_900, "ä" * 33_000], ids=["ascii", "three bytes each", "two bytes each"])
async def test_messages_of_too_many_bytes_close_with_1009(voices: Path, text: str) -> None:
    """65,536 bytes, whole or in fragments, and however few characters they make; up to there the session says what is wrong."""
    whole = json.dumps({"type": "speak", "text": text}, separators=(",", ":"), ensure_ascii=False)
    async with running(voices, FakeEngine()) as server:
        for message in (whole, [whole[:30_000], whole[30_000:]]):
            async with client(server.url) as connection:
                await connection.send(whole[: 65_536 * len(whole) // len(whole.encode()) - 40])
                assert (await hear(connection))["code"] == "INVALID_MESSAGE"
                await connection.send(message)
                assert await closed(connection) == 1009


async def test_what_follows_an_oversize_message_is_not_kept(voices: Path) -> None:
    engine = FakeEngine(frames=99, gate=asyncio.Semaphore(0))
    async with running(voices, engine) as server, raw(server.port) as (reader, writer, _):
        writer.write(frame(1, b'{"type":"speak","text":"Under way."}'))
        before = psutil.Process().memory_info().rss
        told = asyncio.create_task(code_of(reader))
        writer.write(frame(1, b"x" * 60_000, final=False))
        with contextlib.suppress(ConnectionError):  # a second after the code the connection goes
            for _ in range(500):  # 30 MB in pieces of one message, close or no close
                writer.write(frame(0, b"x" * 60_000, final=False))
                await asyncio.wait_for(writer.drain(), LIMIT)
        assert await told == 1009
        await asyncio.wait_for(engine.handles[0].cancelled.wait(), LIMIT)
        assert psutil.Process().memory_info().rss - before < 20_000_000


async def test_garbage_frames_end_that_connection_only(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, client(server.url) as other:
        for garbage in (os.urandom(200), frame(3, b"reserved opcode"), frame(1, b"\xff\xfe"), frame(9, b"x" * 126), b"\x81\x05hello"):
            async with raw(server.port) as (reader, writer, _):
                writer.write(garbage)
                writer.write_eof()
                assert await code_of(reader) in (None, 1002, 1007)
        await say(other, type="speak", text="Hello.")
        assert (await utterance(other))[1]["type"] == "complete"


async def test_a_slow_reader_is_bounded_and_let_go(voices: Path) -> None:
    """85 s of audio were accepted before `send` stalled; now a few seconds, with its `close` within a limit, and others undisturbed."""
    engine = FakeEngine(frames=99)
    async with running(voices, engine, lead=3600) as server:
        async with raw(server.port, SO_RCVBUF=4096) as (_, writer, _):
            writer.transport.pause_reading()
            await until(lambda: bool(server.context.sessions))
            [(session, _)] = server.context.sessions
            session._out._limit = 0.1  # of this one alone: who reads is never too slow
            for _ in range(6):
                writer.write(frame(1, b'{"type":"speak","text":"Long."}'))
            await until(lambda: bool(engine.handles) and engine.handles[-1].over)
            made = sum(handle.made for handle in engine.handles)
            assert made * 2 * FRAME < 600_000, "bytes in all buffers: the kernel's on both sides, asyncio's and ours"
            engine.frames = 3
            async with client(server.url) as other:
                await say(other, type="speak", text="Hello.")
                assert (await utterance(other))[1]["type"] == "complete"
                await until(lambda: len(server.context.sessions) == 1)


@pytest.mark.usefixtures("clock")
async def test_pace_holds_back_what_a_reader_would_have_to_throw_away(voices: Path) -> None:
    """The clock stands still: a second of audio goes out, and one frame more is made."""
    engine = FakeEngine(frames=99)
    async with running(voices, engine) as server, client(server.url) as connection:
        await say(connection, type="speak", text="Hello.")
        for _ in range(13):
            await audio(connection)
        await say(connection, type="cancel", requestId="nobody")
        assert (await hear(connection))["code"] == "CANCELLED"
        assert engine.handles[0].made == 14


async def test_http2_is_not_spoken(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), LIMIT)).startswith(b"HTTP/1.1 404")
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        upgrade = b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n")
        answer = await asyncio.wait_for(reader.read(), LIMIT)
        assert answer.startswith(b"HTTP/1.1 200"), "the offer is ignored"
        writer.close()


async def test_a_handshake_without_a_version_is_a_400(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /api/v1/speak HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), LIMIT)).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_a_client_that_answers_no_ping_is_found_idle(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody checks pongs: the application's own deadline ends the session."""
    monkeypatch.setattr("server.ws.connected.START_SECONDS", 0.1)
    async with running(voices, FakeEngine()) as server, raw(server.port) as (reader, _, _):
        assert await code_of(reader) == 4408
        await until(lambda: not server.context.sessions)


async def test_going_down_says_goodbye_to_the_idle_and_lets_speech_end(voices: Path) -> None:
    gate = asyncio.Semaphore(1)
    engine = FakeEngine(gate=gate)
    async with running(voices, engine, grace=LIMIT) as server:
        idle, busy = await connect(server.url), await connect(server.url)
        for connection in (idle, busy):
            assert (await hear(connection))["type"] == "ready"
        await say(busy, type="speak", text="Under way.", requestId="a")
        await say(busy, type="speak", text="Waiting.", requestId="b")
        await audio(busy)
        server.stop.set()
        assert await hear(idle) == {"type": "stopped", "reason": "server_shutdown"}
        assert await closed(idle) == 1012
        error = await hear(busy)
        assert (error["code"], error["requestId"]) == ("CANCELLED", "b")
        await say(busy, type="speak", text="Too late.", requestId="c")
        assert (await hear(busy))["requestId"] == "c"
        async with raw(server.port) as (_, _, answer):
            assert answer.startswith("HTTP/1.1 503"), "no new sessions"
        gate.release()
        gate.release()
        heard, complete = await utterance(busy)
        assert (heard, complete["type"], complete["requestId"]) == (pcm16(1, 3, first=1), "complete", "a")
        assert await hear(busy) == {"type": "stopped", "reason": "server_shutdown"}
        assert await closed(busy) == 1012
        await asyncio.wait_for(asyncio.shield(server.task), LIMIT)


async def test_going_down_ends_within_the_grace_period(voices: Path) -> None:
    engine = FakeEngine(gate=asyncio.Semaphore(1))
    loop = asyncio.get_running_loop()
    async with running(voices, engine, grace=0.2) as server:
        connection = await connect(server.url)
        await hear(connection)
        await say(connection, type="speak", text="Never ends.", requestId="a")
        await audio(connection)
        server.stop.set()
        begun = loop.time()
        error = await hear(connection)
        assert (error["code"], error["requestId"], error["final"]) == ("CANCELLED", "a", True)
        assert await hear(connection) == {"type": "stopped", "reason": "server_shutdown"}
        assert await closed(connection) == 1012
        await asyncio.wait_for(asyncio.shield(server.task), LIMIT)
        assert loop.time() - begun > 0.15, "the whole of it"


async def test_a_client_that_never_closes_does_not_hold_the_server_up(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, raw(server.port) as (reader, _, _):
        server.stop.set()
        assert await code_of(reader) == 1012
        await asyncio.wait_for(asyncio.shield(server.task), LIMIT)


async def test_frames_that_nobody_reads_any_more_do_not_hold_a_connection(voices: Path) -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    async with running(voices, FakeEngine()) as server, client(server.url) as connection:
        await say(connection, type="stop")
        for _ in range(200):
            await say(connection, type="nobody knows")
        assert (await hear(connection))["type"] == "stopped"
        connection.transport.abort()
        await until(lambda: not any("_server_callback" in repr(task) for task in asyncio.all_tasks()))
        server.stop.set()
        await asyncio.wait_for(asyncio.shield(server.task), LIMIT)
    assert not faults


async def test_a_server_whose_engine_died_for_good_ends_and_says_so(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def served() -> None:
        async with running(voices, FakeEngine()) as server:
            connection = await connect(server.url)
            await hear(connection)
            monkeypatch.setattr(FakeEngine, "state", property(lambda engine: "failed"))
            assert await hear(connection) == {"type": "stopped", "reason": "server_shutdown"}
            assert await closed(connection) == 1012

    with pytest.raises(RuntimeError, match="could not be restarted"):
        await served()


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x81\x02hi", 1002),  # not masked
        (b"\xc1\x80mask", 1002),  # compressed, which was not agreed upon
        (b"\x83\x80mask", 1002),  # of no known kind
        (b"\x80\x80mask", 1002),  # goes on with nothing
        (b"\x89\xfe\x00\x7emask" + bytes(126), 1002),  # a ping that is too long
        (b"\x88\x81mask\0", 1002),  # half a code
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),  # not UTF-8
        (b"\x81\xff" + b"\xff" * 8 + b"mask", 1002),  # a negative length
    ],
)
async def test_a_client_whose_frames_are_none_is_told_by_the_close_code(frame: bytes, code: int, voices: Path) -> None:
    async with running(voices, FakeEngine()) as server:
        async with client(server.url) as connection:
            connection.transport.write(frame)
            assert await closed(connection) == code
        async with client(server.url) as connection:
            await say(connection, type="speak", text="Hello.")
            assert (await utterance(connection))[1]["type"] == "complete"
