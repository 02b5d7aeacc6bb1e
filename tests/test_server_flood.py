"""Work before admission: what strangers send is counted before anything is done for it, and nobody else notices. Over real sockets."""

import asyncio
import contextlib
import errno
import json
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypercorn.protocol import ws_stream
from quart import Quart

from server import transport
from server.http import bodies, http1
from server.http.http1 import MAX_LOOSE, PIECE_BYTES, PIECES
from server.ops import connections, upstream
from server.ops.connections import STRANGER_FRAMES, Connections
from server.ops.crowd import Crowd, Guest, NoPlace, TokenBucket, network_of
from server.ops.limits import PLACES, Quotas
from server.ops.metrics import Metrics
from server.settings import Settings
from server.ws import frames
from server.ws.frames import TURN
from tests.fake_engine import LIMIT, FakeEngine, pcm16
from tests.serving import Server, client, closed, connect, hear, running, say, until, utterance
from tests.test_server_auth import SECRET, token
from tests.test_server_transport import code_of, frame, raw
from tests.test_server_voices import CONSENT, sound, speech

MINE = {"Authorization": f"Bearer {token()}"}
CHUNKED = b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
KINDS = {
    "pings": frame(9, b""),
    "full pings": frame(9, b"x" * 125),
    "pongs": frame(10, b""),
    "continuations": frame(0, b"", final=False),
    "messages": frame(1, b"{}"),
}


@asynccontextmanager
async def opened(server: Server, data: bytes = b"", address: str = "127.0.0.1") -> AsyncIterator[asyncio.StreamReader]:
    """A connection from one of this machine's addresses, on which that has been written."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=(address, 0))
    writer.write(data)
    try:
        yield reader
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def answer(server: Server, data: bytes) -> bytes:
    """All that comes back, to the end of the connection."""
    async with opened(server, data) as reader:
        return await asyncio.wait_for(reader.read(), LIMIT)


def counted(server: Server, kind: str, reason: str) -> float:
    value: float = getattr(server.context.metrics, kind).labels(reason)._value.get()
    return value


# Frames


@pytest.mark.parametrize("kind", KINDS)
async def test_frames_of_a_stranger_are_counted_before_anything_is_done(voices: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """So many, and the connection is closed with 1008; somebody who speaks is not disturbed; nothing after that is looked at."""
    taken = 0

    class Counting(connections.Connection):
        def takes_frame(self) -> bool:
            nonlocal taken
            taken += not self._is_known
            return super().takes_frame()

    monkeypatch.setattr(connections, "Connection", Counting)
    monkeypatch.setattr(connections, "STRANGER_FRAMES", (STRANGER_FRAMES[0], 0.001))
    async with running(voices, FakeEngine(), jwt_secret=SECRET) as server, client(server.url, additional_headers=MINE) as other:
        async with raw(server.port) as (reader, writer, _):
            if kind == "continuations":
                writer.write(frame(1, b"", final=False))
            told = asyncio.create_task(code_of(reader))
            with contextlib.suppress(ConnectionError):  # a second after the code the connection goes
                for _ in range(20):
                    writer.write(KINDS[kind] * 1000)
                    await writer.drain()
            await say(other, type="speak", text="Hello.")
            assert (await utterance(other))[0] == pcm16(1, 3)
            assert await told == 1008
        assert taken == STRANGER_FRAMES[0] + 1
        assert counted(server, "closed", "flood") == 1
        await until(lambda: len(server.context.sessions) == 1)


async def test_a_client_with_a_token_may_send_more_but_not_without_end(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "FRAMES", (500.0, 0.001))
    async with running(voices, FakeEngine(), jwt_secret=SECRET) as server:
        async with raw(server.port, f"Authorization: {MINE['Authorization']}\r\n") as (reader, writer, _):
            await until(lambda: any(session.known for session, _ in server.context.sessions))
            writer.write(frame(9, b"") * 400)
            writer.write(frame(1, b'{"type":"speak","text":"Hello.","requestId":"r"}'))
            heard = await asyncio.wait_for(reader.readuntil(b'"ttfaMs"'), LIMIT)
            assert heard.count(b"\x8a\x00") >= 400
            writer.write(frame(9, b"") * 400)
            assert await code_of(reader) == 1008
        assert counted(server, "closed", "flood") == 1


async def test_bytes_of_a_stranger_are_counted_as_well(voices: Path) -> None:
    async with running(voices, FakeEngine(), jwt_secret=SECRET) as server, raw(server.port) as (reader, writer, _):
        told = asyncio.create_task(code_of(reader))
        with contextlib.suppress(ConnectionError):
            for _ in range(8):
                writer.write(frame(2, b"x" * 60_000))
                await writer.drain()
        assert await told == 1008
        assert counted(server, "closed", "flood") == 1


async def test_the_loop_goes_round_between_frames(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than so many pongs in one turn of the loop, however many pings come together."""
    rounds, seen = 0, []

    class Seen(frames.BoundedStream):
        async def _send_wsproto_event(self, event: Any) -> None:
            seen.append(rounds)
            await super()._send_wsproto_event(event)

    async def go_round() -> None:
        nonlocal rounds
        while True:
            await asyncio.sleep(0)
            rounds += 1

    monkeypatch.setattr(frames, "BoundedStream", Seen)
    async with running(voices, FakeEngine()) as server, raw(server.port) as (_, writer, _):
        await until(lambda: any(session.known for session, _ in server.context.sessions))
        going = asyncio.create_task(go_round())
        writer.write(frame(9, b"") * 2000)
        await until(lambda: len(seen) > 2000)
        going.cancel()
        assert max(seen.count(one) for one in set(seen)) <= TURN + 2  # a message of the session's, or a ping of ours


# Connections


def places(crowd: Crowd, address: str, number: int, left: list[str]) -> list[Guest]:
    return [crowd.enter(address, lambda: left.append(address)) for _ in range(number)]


def test_a_crowd_makes_room_at_the_cost_of_those_who_are_most() -> None:
    left: list[str] = []
    crowd = Crowd(8)
    known = places(crowd, "1.1.1.1", 1, left)[0]
    known.known()
    places(crowd, "1.1.1.1", 1, left)
    places(crowd, "2.2.2.2", 2, left)
    places(crowd, "2.2.2.2", 5, left)
    assert left == ["2.2.2.2"] * 5 and len(crowd) == 4, "an address has a quarter"
    for number in range(3, 7):
        places(crowd, f"3.3.3.{number}", 1, left)
    assert len(crowd) == 8
    left.clear()
    places(crowd, "4.4.4.4", 1, left)
    assert left == ["2.2.2.2"] and len(crowd) == 8
    known.stranger()
    places(crowd, "5.5.5.5", 1, left)
    assert left[1:] == ["1.1.1.1"], "it has most now"
    full = Crowd(2)
    for guest in (*places(full, "1.1.1.1", 1, left), *places(full, "2.2.2.2", 1, left)):
        guest.known()
    with pytest.raises(NoPlace):
        full.enter("3.3.3.3", lambda: None)
    guest.gone()
    guest.gone()
    guest.stranger()
    assert len(full) == 1
    full.enter("3.3.3.3", lambda: None)


def test_addresses_are_told_apart_by_what_a_user_has() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:1.2.3.4") == network_of("1.2.3.4") != network_of("1.2.3.5")
    assert network_of("::1") == "::1" and network_of("fe80::1%eth0") == "fe80::" and network_of("a unix socket") == "a unix socket"
    assert (Crowd(40).share("1.2.3.4"), Crowd(40).share("127.0.0.2"), Crowd(40, behind_proxy=True).share("1.2.3.4")) == (10, 30, 40)


def test_a_bucket_fills_as_time_goes_on() -> None:
    now = 0.0
    bucket = TokenBucket(3, 2, lambda: now)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    now = 0.5
    assert [bucket.take(), bucket.take()] == [True, False]
    now = 100.0
    assert not bucket.take(4) and bucket.take(3)


def test_arrivals_are_remembered_of_so_many_addresses_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ARRIVALS", (1.0, 0.001))
    counted = Connections(10, 1000, Metrics())
    assert [counted.arrives("1.1.1.1"), counted.arrives("1.1.1.1"), counted.arrives("1.1.1.2")] == [True, False, True]
    for number in range(connections.MOST_ADDRESSES):
        counted.arrives(f"2.2.{number // 256}.{number % 256}")
    assert len(counted._arrivals) == connections.MOST_ADDRESSES
    behind = Connections(10, 1000, Metrics(), behind_proxy=True)
    assert all(behind.arrives("1.1.1.1") for _ in range(1000))


async def test_silent_connections_keep_nobody_out(voices: Path) -> None:
    """Of three addresses, many times as many as there are places: who speaks goes on, and others get in."""
    async with running(voices, FakeEngine(), max_connections=8) as server, client(server.url) as connection:
        async with contextlib.AsyncExitStack() as stack:
            for number in range(60):
                await stack.enter_async_context(opened(server, b"GET / HT", f"127.0.0.{2 + number % 3}"))
            async with server.http_client() as http:
                assert (await http.get("/healthz")).status_code == 200
                page = (await http.get("/metrics")).text
            await say(connection, type="speak", text="Hello.")
            assert (await utterance(connection))[1]["type"] == "complete"
        assert "tts_connections 8.0" in page or "tts_connections 7.0" in page
        assert counted(server, "closed", "displaced") > 40
        assert counted(server, "refused", "too many") == 0


async def test_a_client_that_has_gone_keeps_no_place(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle connection whose client closes, before a request or after the answer, ends then, and not when its idle time is over."""
    monkeypatch.setattr(transport, "HEAD_SECONDS", 100 * LIMIT)
    async with running(voices, FakeEngine()) as server:
        metrics = server.context.metrics
        for asked in (b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            async with opened(server, asked) as reader:
                await until(lambda: b"tts_connections 1.0" in metrics.render())
                if asked:
                    await asyncio.wait_for(reader.readuntil(b"}"), LIMIT)
            await until(lambda: b"tts_connections 0.0" in metrics.render())


async def test_where_all_connections_are_in_use_one_more_is_told(voices: Path) -> None:
    async with running(voices, FakeEngine(), max_connections=2) as server:
        async with connect(server.url, local_addr=("127.0.0.2", 0)) as one, connect(server.url, local_addr=("127.0.0.3", 0)) as two:
            await hear(one), await hear(two)
            assert (await answer(server, b"")).startswith(b"HTTP/1.1 503 ")
        assert counted(server, "refused", "too many") == 1


async def test_connections_and_requests_come_at_a_pace(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LOOPBACK_ARRIVALS", (4.0, 0.001))
    async with running(voices, FakeEngine()) as server:
        async with opened(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4) as reader:
            heard = await asyncio.wait_for(reader.read(), LIMIT)
        assert (heard.count(b"HTTP/1.1 200"), heard.count(b"HTTP/1.1 429")) == (3, 1)
        assert (await answer(server, b"")).startswith(b"HTTP/1.1 503 ")
        assert (counted(server, "closed", "too fast"), counted(server, "refused", "too fast")) == (1, 1)


@pytest.mark.parametrize("head", [b"", b"GET /healthz HTTP/1.1\r\nHo", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_a_head_that_does_not_end_is_cut(voices: Path, monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    """And a connection on which nothing more is asked."""
    monkeypatch.setattr(transport, "HEAD_SECONDS", 0.1)
    async with running(voices, FakeEngine()) as server:
        heard = await answer(server, head)
        assert heard.startswith(b"HTTP/1.1 200" if head.endswith(b"\r\n\r\n") else b"")


# Sessions


async def test_strangers_do_not_take_the_places_of_those_who_have_a_key(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine addresses without tokens; clients with one, in the handshake or in start, get in as long as there is room for them."""
    assert (Quotas(Settings()).newcomers.most, Quotas(Settings(max_sessions=1000)).newcomers.most) == (40, 400)
    monkeypatch.setattr("server.ops.limits.NEWCOMERS", 4)
    async with running(voices, FakeEngine(), jwt_secret=SECRET, max_sessions=2) as server:
        async with contextlib.AsyncExitStack() as stack:
            strangers = []
            for number in range(9):
                strangers.append(await stack.enter_async_context(client(server.url, local_addr=(f"127.0.0.{2 + number}", 0))))
            first = await stack.enter_async_context(client(server.url, additional_headers=MINE))
            second = await stack.enter_async_context(client(server.url))
            await say(second, type="start", authToken=token(sub="another"))
            assert (await hear(second))["type"] == "started"
            for connection in (first, second):
                await say(connection, type="speak", text="Hello.")
                assert (await utterance(connection))[1]["type"] == "complete"
            third = await stack.enter_async_context(connect(server.url, additional_headers={"Authorization": f"Bearer {token(sub='c')}"}))
            assert (await hear(third))["message"] == "2 sessions are open already"
            assert await closed(third) == 1013
            for connection in strangers[:5]:  # those who have waited longest
                error = await hear(connection)
                assert (error["code"], error["recoverable"]) == ("RATE_LIMITED", True)
                assert await closed(connection) == 1013
            assert len(server.context.limits.newcomers) == 3, "one place was that of the second client"
            await say(strangers[-1], type="start", authToken=token(sub="d"))
            assert (await hear(strangers[-1]))["message"] == "2 sessions are open already"
            assert await closed(strangers[-1]) == 1013
        await until(lambda: not len(server.context.limits.newcomers))


# Bodies


def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A connection is cut when its reader is forgotten, so that this has to remember it."""
    writer.transport.abort()


def upload(body: bytes) -> bytes:
    head = b"POST /api/v1/voices HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n"
    return head % (15 * 1024 * 1024) + b'--x\r\nContent-Disposition: form-data; name="audio"; filename="a"\r\n\r\n' + body


async def test_bodies_that_do_not_end_take_little_memory_and_no_places(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads go to disk as they come, at most so many of one client at once; of JSON no more is kept than is meant; others upload."""
    most = PLACES["upload"][1]
    monkeypatch.setattr(bodies, "REST_SECONDS", 0.1)
    async with running(voices, FakeEngine(), limit_uploads=100) as server, server.http_client() as http:
        async with contextlib.AsyncExitStack() as stack:
            tracemalloc.start()
            stack.callback(tracemalloc.stop)
            for number in range(most + 2):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=("127.0.0.2", 0))
                stack.callback(_hang_up, reader, writer)
                writer.write(upload(bytes(8 * 1024 * 1024)))
                if number < most:
                    await asyncio.wait_for(writer.drain(), LIMIT)
                    await until(lambda: server.context.limits._work.total() == number + 1)  # noqa: B023
                else:
                    assert b" 429 " in await asyncio.wait_for(reader.readline(), LIMIT)
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=("127.0.0.2", 0))
                stack.callback(_hang_up, reader, writer)
                writer.write(CHUNKED + b"300000\r\n" + bytes(3 * 1024 * 1024 - 100))
                await asyncio.wait_for(writer.drain(), LIMIT)
            made = await http.post("/api/v1/voices", files={"audio": ("a.wav", sound(speech()))}, data=CONSENT)
            assert made.status_code == 201, made.text
            assert tracemalloc.get_traced_memory()[0] < 40_000_000, "of 108 MB"
        await until(lambda: not server.context.limits._work)


def write_large(path: Path) -> None:
    """29 s in 5.5 MB: more than sockets hold."""
    noise = np.random.default_rng(1).normal(0, 0.1, 29 * 48_000).astype(np.float32)
    soundfile.write(path, noise, 48_000, subtype="FLOAT", format="WAV")


async def test_slow_readers_of_recordings_are_let_go(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_large(voices / "anna" / "reference.wav")
    asked = b"GET /api/v1/voices/anna/sample.wav HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def patient(app: Quart) -> None:
        app.config["RESPONSE_TIMEOUT"] = 0.3 if limit == "answer" else None

    for limit in ("answer", "write"):
        monkeypatch.setattr(transport, "WRITE_SECONDS", 0.3 if limit == "write" else LIMIT)
        async with running(voices, FakeEngine(), change=patient) as server, server.http_client() as http:
            async with contextlib.AsyncExitStack() as stack:
                for number in range(PLACES["recording"][1]):
                    made = socket.socket()
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    made.setblocking(False)
                    stack.callback(made.close)
                    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", server.port))
                    await asyncio.get_running_loop().sock_sendall(made, asked)
                    await until(lambda: server.context.limits._work.total() in (number + 1, 0))  # noqa: B023
                await until(lambda: not server.context.limits._work)
                whole = await http.get("/api/v1/voices/makima/sample.wav")
                assert (whole.status_code, whole.content) == (200, (voices / "makima" / "reference.wav").read_bytes())
            if limit == "write":
                assert counted(server, "closed", "stalled") == PLACES["recording"][1]


async def test_so_many_recordings_at_a_time(voices: Path) -> None:
    write_large(voices / "anna" / "reference.wav")
    async with running(voices, FakeEngine()) as server, server.http_client() as http, contextlib.AsyncExitStack() as stack:
        for _ in range(PLACES["recording"][1]):
            await stack.enter_async_context(http.stream("GET", "/api/v1/voices/anna/sample.wav"))
        refused = await http.get("/api/v1/voices/makima/sample.wav")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "RATE_LIMITED")


# Framing


def chunks(*pieces: bytes, trailers: bytes = b"") -> bytes:
    return CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailers + b"\r\n"


BODY = json.dumps({"input": "Hello.", "response_format": "pcm"}).encode()
FRAMING: list[tuple[str, bytes, int]] = [
    ("both lengths", CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ("both, other way round", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("old and chunked", CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n", 400),
    ("two lengths", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
    ("two hosts", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
    ("another coding", CHUNKED.replace(b"chunked", b"gzip, chunked"), 501),
    ("CONNECT", b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ("no path", b"GET ?a HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ("trailers", chunks(BODY, trailers=b"a: b\r\n" * 20_000), 431),
    ("trailers without end", CHUNKED + b"0\r\n" + b"a: b\r\n" * 300, 431),
    ("a long first line of a chunk", CHUNKED + b"5;" + b"x" * (MAX_LOOSE + 100), 431),
    ("small chunks", chunks(*[b"x"] * (PIECES + 2 * PIECES // PIECE_BYTES)), 400),
]


@pytest.mark.parametrize(("data", "status"), [case[1:] for case in FRAMING], ids=[case[0] for case in FRAMING])
async def test_odd_framing_ends_the_connection(voices: Path, data: bytes, status: int) -> None:
    async with running(voices, FakeEngine()) as server:
        heard = await answer(server, data)
        assert heard.startswith(b"HTTP/1.1 %d " % status) and heard.count(b"HTTP/1.1") == 1


async def test_chunks_and_a_few_trailers_are_taken(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server:
        pieces = [BODY[start : start + 1] for start in range(len(BODY))]
        for data in (chunks(BODY), chunks(*pieces), chunks(BODY, trailers=b"a: b\r\n" * 20)):
            heard = await answer(server, data.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close"))
            assert heard.startswith(b"HTTP/1.1 200 ")


async def test_what_is_taken_apart_at_a_time_is_bounded(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 KiB that come together are not one turn of the loop, where each byte of them can cost something."""
    sizes: list[int] = []

    class Seen(http1.Requests):
        def receive_data(self, data: bytes) -> None:
            sizes.append(0 if self.whole else len(data))
            super().receive_data(data)

    monkeypatch.setattr(http1, "Requests", Seen)
    async with running(voices, FakeEngine()) as server:
        for data in (chunks(b"x" * 70_000), b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000 + b"\x00"):
            await answer(server, data.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close"))
    assert max(sizes) == http1.SLICE


# Clients that go, and clients that never read


async def test_nothing_is_written_to_a_client_that_has_gone(voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    """asyncio warns of each write after the fifth: a client that asks much and closes made a line of the log for each answer."""
    async with running(voices, FakeEngine(), jwt_secret=SECRET) as server:
        for _ in range(4):
            async with raw(server.port, f"Authorization: {MINE['Authorization']}\r\n") as (_, writer, _):
                await until(lambda: any(session.known for session, _ in server.context.sessions))
                writer.write(frame(9, b"x" * 125) * 400)
                await writer.drain()  # and the connection is reset: what we have not read is thrown away
            await until(lambda: not server.context.sessions)
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


PIPELINED = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100  # more than the socket's buffers hold of answers


async def test_requests_in_a_row_whose_answers_nobody_reads_hold_no_place_and_no_end(
    voices: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither when the client has gone, nor when the server goes down: Hypercorn's reader waited for an answer that never ended."""
    async with running(voices, FakeEngine()) as server:

        def connections(number: int) -> bool:
            return b"tts_connections %d.0" % number in server.context.metrics.render()

        async with opened(server, PIPELINED):
            await _answers_stand(server)
        await until(lambda: connections(0))
        async with opened(server, PIPELINED):
            await _answers_stand(server)
            server.stop.set()
            assert server.task is not None
            await asyncio.wait_for(server.task, LIMIT)
    assert [record for record in caplog.records if record.levelname == "ERROR" or record.exc_info] == []


async def _answers_stand(server: Server) -> None:
    """Return when the server has answers that it cannot write, as others are answered meanwhile."""
    async with server.http_client() as http:
        for _ in range(20):
            assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize("waits", ["wait_closed", "drain"])
@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ECONNRESET])
async def test_a_connection_that_the_system_gives_up_ends_without_a_traceback(
    voices: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, number: int, waits: str
) -> None:
    """ETIMEDOUT is what TCP_USER_TIMEOUT makes of a client that reads nothing."""
    given_up = 0

    async def fails(self: asyncio.StreamWriter) -> None:
        nonlocal given_up
        given_up += 1
        raise OSError(number, "given up")

    async with running(voices, FakeEngine()) as server:
        with monkeypatch.context() as patched:
            patched.setattr(asyncio.StreamWriter, waits, fails)
            with contextlib.suppress(ConnectionError):
                await answer(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            await until(lambda: given_up > 0 and b"tts_connections 0.0" in server.context.metrics.render())
    assert [record for record in caplog.records if record.levelname == "ERROR" or record.exc_info] == []


async def test_what_ended_a_session_is_told_in_its_own_words(voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not that some sub-exception of a group did."""
    engine = FakeEngine(frames=4000)
    async with running(voices, engine, send_timeout=0.05) as server, raw(server.port, SO_RCVBUF=4096) as (reader, writer, _):
        reader._transport.pause_reading()  # a client that reads nothing
        writer.write(frame(1, b'{"type":"speak","text":"Hello."}'))
        await until(lambda: any(record.message.startswith("session ended") for record in caplog.records))
    assert [record.getMessage() for record in caplog.records if record.message.startswith("session ended")] == [
        "session ended: the client read nothing for 0.05 s"
    ]


# Redirects


async def test_nothing_is_redirected(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        for path, status in (
            ("//api//v1/voices", 404),
            ("/api//v1/voices", 404),
            ("//evil.example/api/v1/voices", 404),
            ("/api/v1/voices/", 200),
            ("/v1/models/", 200),
            ("/healthz/", 200),
            ("/static/x", 404),
        ):
            made = await http.get(f"{server.http}{path}")
            assert (made.status_code, "location" in made.headers) == (status, False), path


# What is replaced


def test_the_versions_that_are_there_fit() -> None:
    upstream.check()


@pytest.mark.parametrize(
    ("owner", "name", "put", "said"),
    [
        (ws_stream.WSStream, "_send_wsproto_event", None, "ws_stream:WSStream._send_wsproto_event is missing"),
        (ws_stream.WSStream, "_handle_events", lambda self, more: None, "takes 'self more' instead of 'self'"),
        (ws_stream.WSStream, "handle", lambda self, event: None, "ws_stream:WSStream.handle does not use Handshake"),
    ],
)
def test_a_part_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, put: Any, said: str) -> None:
    """Before anything is served, with the versions that work."""
    if put is None:
        monkeypatch.delattr(owner, name)
    else:
        monkeypatch.setattr(owner, name, put)
    with pytest.raises(RuntimeError, match=r"pip install 'hypercorn==0\.18\.\*' 'quart==0\.22\.\*'") as wrong:
        transport.harden()
    assert said in str(wrong.value)
