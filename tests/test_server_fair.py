"""Principals share the engine, and nothing is left behind by those who go: over real sockets, with the engine on a device of arithmetic."""

import asyncio
import json
import logging
import re
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection

from qwen3_jax.engine import Options
from server.admission.speech import Tries
from server.engines.qwen3 import Qwen3Engine
from server.ops.keys import new_key
from server.settings import Settings
from server.voices.store import VoiceStore
from server.ws.playback import Turn
from server.ws.sockets import handle
from tests.fake_engine import LIMIT, FakeEngine
from tests.fake_service import FakeService
from tests.fake_tts import FakeTTS
from tests.serving import Server, audio, client, connect, hear, running, say, until, utterance
from tests.test_server_engine import hold, service_of, step_until

SESSIONS, POSTS, WAITING = 20, 12, 6


def make(settings: Settings, store: VoiceStore) -> Qwen3Engine:
    options = Options(max_waiting=settings.max_queue)
    return Qwen3Engine(settings, store, lambda _: FakeService(FakeTTS(), options=options))


def keys_of(folder: Path) -> tuple[Path, list[str]]:
    """A key file, and the keys of a loud and a quiet principal."""
    pairs = [new_key(name) for name in ("loud", "quiet")]
    path = folder / "keys"
    path.write_text("\n".join(line for _, line in pairs) + "\n", "utf-8")
    return path, [key for key, _ in pairs]


def launches(server: Server) -> int:
    return sum(entry[0] == "launch" for entry in service_of(server.context.engine).device.log)


def served(server: Server) -> set[Any]:
    """Whose requests the engine has."""
    scheduler = service_of(server.context.engine).engine._scheduler
    handles = [*scheduler.line, *(slot.handle for slot in scheduler.slots)]
    return {handle.request.owner for handle in handles if handle is not None}


async def figures(server: Server, token: str | None = None) -> dict[str, float]:
    async with server.http_client() as http:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        page = (await http.get("/metrics", headers=headers)).text
    found = re.findall(r"^(tts_(?:utterances|queue)_\w+?(?:_total)?(?:{.*?})?) (\S+)$", page, re.MULTILINE)
    return {name: float(value) for name, value in found}


def balance(found: dict[str, float]) -> tuple[float, dict[str, float]]:
    ends = {name.split('"')[1]: value for name, value in found.items() if name.startswith("tts_utterances_ended_total")}
    return found["tts_utterances_begun_total"], ends


@pytest.mark.parametrize("open_texts", [True, False])
async def test_the_quiet_principal_is_heard_soon_while_the_loud_one_floods(voices: Path, tmp_path: Path, open_texts: bool) -> None:
    """By 20 sessions with long texts, or with long and open ones, and by HTTP, until the line is full. In turns of the device, whatever
    the clock says."""
    path, (loud, quiet) = keys_of(tmp_path)
    sentences = " ".join(f"This is sentence number {number} of a story without end." for number in range(60))
    async with (
        running(voices, make, api_keys=path, max_queue=WAITING, max_text_chars=20_000, limit_characters=10**7) as server,
        asyncio.timeout(LIMIT),
        server.http_client() as http,
        asyncio.TaskGroup() as tasks,
    ):
        engine = server.context.engine
        gate, log = hold(engine), service_of(engine).device.log
        sessions = [await tasks.create_task(stay(server, loud)) for _ in range(SESSIONS)]
        written = range(0, SESSIONS, 2) if open_texts else ()
        for number, connection in enumerate(sessions):
            await say(connection, type="speak", text="Words " if number in written else sentences, **{"continue": number in written})
            if number < 2:  # a request that comes before the slots are given away needs a place in line, too
                await step_until(gate, lambda: engine.active > number)  # noqa: B023  # called in this turn of the loop only
        await until(lambda: service_of(engine).engine.stats().waiting == WAITING)
        posts = [tasks.create_task(post(http, loud, sentences)) for _ in range(POSTS)]
        await until(lambda: sum(one.done() for one in posts) >= POSTS - WAITING)
        assert {one.result() for one in posts if one.done()} == {503}, "the line is full of the loud one's"

        async with client(f"{server.url}?token={quiet}") as connection:
            for number in range(3):
                while gate.acquire(blocking=False):
                    pass  # what was released and not used
                await say(connection, type="speak", text="Hello.", seed=100 + number)
                await until(lambda: "key:quiet" in served(server))
                before = len(log)
                first = asyncio.ensure_future(audio(connection))
                await step_until(gate, first.done)
                assert first.result(), "no error"
                begins = next(at for at, entry in enumerate(log) if entry[0] == "open" and entry[2] == 100 + number)
                assert sum(entry[0] == "launch" for entry in log[before:begins]) <= 12
                ended = asyncio.ensure_future(utterance(connection))
                await step_until(gate, ended.done)
                assert ended.result()[1]["type"] == "complete"
        found = await figures(server, quiet)
        assert found["tts_queue_refusals_total"] >= POSTS - WAITING
        assert found['tts_queue_wait_seconds_count{priority="normal"}'] >= 3
        for connection in sessions:
            await connection.close()
        gate.release(100_000)
        await until(lambda: engine.active == engine.queued == 0)
        for one in posts:
            await one
        begun, ends = balance(await figures(server, quiet))
        assert begun == sum(ends.values()) and ends["completed"] >= 3 and ends["left"] >= 1


async def stay(server: Server, token: str) -> ClientConnection:
    connection = await connect(f"{server.url}?token={token}", max_queue=None)  # with a bound it would not read the answer to its close
    assert (await hear(connection))["type"] == "ready"
    return connection


async def post(http: httpx.AsyncClient, token: str, text: str) -> int:
    body = {"input": text, "voice": "makima", "response_format": "pcm"}
    return (await http.post("/v1/audio/speech", json=body, headers={"Authorization": f"Bearer {token}"})).status_code


async def test_a_client_that_closes_together_with_its_request_leaves_nothing_behind(voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Python 3.11's ``asyncio.wait_for`` swallowed the cancellation; then the slot was taken for the whole utterance."""
    caplog.set_level(logging.INFO)
    async with running(voices, make) as server:
        engine = server.context.engine
        gate = hold(engine)
        for turn in range(8):
            async with client(server.url) as connection:
                connection.protocol.send_text(json.dumps({"type": "speak", "text": "A long story."}).encode())
                if turn % 2:
                    connection.protocol.send_close(1000)
                connection.transport.write(b"".join(connection.protocol.data_to_send()))  # all at once
                connection.transport.close()
        await step_until(gate, lambda: not server.context.sessions and engine.active == engine.queued == 0)
        taken = launches(server)
        assert taken < 300, "nobody spoke to the end"
        gate.release(10_000)
        async with client(server.url) as connection:
            await say(connection, type="speak", text="Hello.")
            assert (await utterance(connection))[1]["type"] == "complete"
        await until(lambda: not engine._utterances)
        begun, ends = balance(await figures(server))
        assert begun == sum(ends.values()) and ends["completed"] == 1 and set(ends) <= {"completed", "left"}
    assert len(caplog.records) < 60 and "Task was destroyed" not in caplog.text and "Traceback" not in caplog.text


class Pipe:
    """A socket of which the test knows when something is received."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[str] = asyncio.Queue()
        self.ready = asyncio.Event()

    async def receive(self) -> str:
        return await self.received.get()

    async def send(self, data: str | bytes) -> None:
        self.ready.set()

    async def close(self, code: int, reason: str = "") -> None: ...


@pytest.mark.parametrize("between", range(8))
async def test_a_cancellation_is_not_lost_where_a_message_comes_together_with_it(voices: Path, between: int) -> None:
    """However many rounds of the loop are between the two."""
    async with running(voices, FakeEngine(gate=asyncio.Semaphore(0))) as server:
        pipe = Pipe()
        session = asyncio.create_task(handle(pipe, server.context, "127.0.0.1"))
        await pipe.ready.wait()
        await asyncio.sleep(0)
        pipe.received.put_nowait(json.dumps({"type": "speak", "text": "Hello."}))
        for _ in range(between):
            await asyncio.sleep(0)
        session.cancel()
        async with asyncio.timeout(LIMIT):
            ours = ("handle", "ClientSession.run", "Playback.run")
            while left := [task for task in asyncio.all_tasks() if task.get_coro().__qualname__ in ours]:
                await asyncio.wait(left)
        assert all(one.over for one in server.context.engine.handles)
        begun, ends = balance(await figures(server))
        assert ends == ({"left": begun} if begun else {})


@pytest.mark.parametrize("headers", [False, True])
async def test_an_http_client_that_goes_away_gives_its_slot_back(voices: Path, headers: bool) -> None:
    """Before its turn, and with the first sound."""
    async with running(voices, make) as server:
        engine = server.context.engine
        gate = hold(engine)
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            body = json.dumps({"input": "A long story.", "voice": "makima", "response_format": "pcm"}).encode()
            head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await until(lambda: bool(engine._utterances))
            if headers:
                first = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
                await step_until(gate, first.done)
            writer.transport.abort()
            await step_until(gate, lambda: not engine._utterances and engine.active == engine.queued == 0)
        assert launches(server) < 300
        assert balance(await figures(server)) == (3, {"left": 3})


def too_late(attempt: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A speaker's attempts, the second of which comes when the utterance's time has passed."""

    async def late(turn: Turn, tries: Tries) -> Any:
        if tries._first is not None:
            tries._due = 0.0
        return await attempt(turn, tries)

    return late


@pytest.mark.parametrize("error", [MemoryError("no memory"), RuntimeError("lost")])
async def test_the_one_retry_waits_for_the_engine_and_keeps_the_reason(voices: Path, error: BaseException) -> None:
    """A device fault before any audio: the utterance is spoken when the engine is there again; if that takes too long, the client hears
    of the fault."""
    rebuild = threading.Event()

    class Slow(FakeService):
        def __init__(self) -> None:
            super().__init__(FakeTTS())
            build = self.engine._build

            def wait(slots: int, on_cpu: bool) -> Any:
                assert rebuild.wait(LIMIT)
                return build(slots, on_cpu)

            self.engine._build = wait

    def slow(settings: Settings, store: VoiceStore) -> Qwen3Engine:
        return Qwen3Engine(settings, store, lambda _: Slow())

    async with running(voices, slow) as server, client(server.url) as connection, server.http_client() as http:
        engine = server.context.engine
        gate, device = hold(engine), service_of(engine).device
        await say(connection, type="speak", text="Hello.")
        asked = asyncio.ensure_future(http.post("/v1/audio/speech", json={"input": "Hello.", "voice": "makima", "response_format": "pcm"}))
        await until(lambda: engine.active + service_of(engine).engine.stats().waiting == 2)
        device.poison = error
        gate.release(9)
        await until(lambda: engine.state == "loading")
        rebuild.set()
        assert (await utterance(connection))[1]["type"] == "complete"
        assert (await asked).status_code == 200

        if not isinstance(error, MemoryError):
            return  # a second fault of this kind ends the server
        rebuild.clear()
        service_of(engine).device.poison = error
        for session, _ in server.context.sessions:
            session._playback._attempt = too_late(session._playback._attempt)
        await say(connection, type="speak", text="Hello.", requestId="r")
        answer = await hear(connection)
        assert (answer["type"], answer["code"], answer["requestId"]) == ("error", "GPU_OUT_OF_MEMORY", "r")
        rebuild.set()
        begun, ends = balance(await figures(server))
        assert (begun, ends) == (3, {"completed": 2, "failed": 1})


async def test_every_utterance_that_begins_is_counted_once_when_it_ends(voices: Path) -> None:
    engine = FakeEngine(gate=asyncio.Semaphore(3))
    assert engine.gate is not None
    async with running(voices, engine) as server:
        async with client(server.url) as connection:
            await say(connection, type="speak", text="One.")
            assert (await utterance(connection))[1]["type"] == "complete"
            await say(connection, type="speak", text="Two.")
            await say(connection, type="speak", text="Three.", requestId="three")
            await say(connection, type="cancel")
            assert {(await hear(connection))["code"] for _ in range(2)} == {"CANCELLED"}
            await say(connection, type="speak", text="refuse")
            engine.gate.release()
            assert (await hear(connection))["code"] == "INVALID_TEXT"
            await say(connection, type="speak", text="", **{"continue": True})
            await say(connection, type="flush")
            assert (await hear(connection))["code"] == "INVALID_TEXT"
            for text in ("Four.", "Five."):
                await say(connection, type="speak", text=text)
            await until(lambda: engine.handles[-1].text == "Four.")
        await until(lambda: not server.context.sessions)
        begun, ends = balance(await figures(server))
        assert (begun, ends) == (7, {"completed": 1, "cancelled": 2, "failed": 2, "left": 2})
