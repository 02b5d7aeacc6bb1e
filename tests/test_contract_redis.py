"""Two server processes' worth of contracts, and of limits, over a real Redis, which goes away and comes back."""

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.contracts.bus import BusDown
from server.contracts.contract import SpeechEvent, SpeechState
from tests.fake_engine import LIMIT, FakeEngine
from tests.serving import Clock, Server, audio, client, hear, running, say, until, utterance
from tests.test_contract_session import TEXT, contract_of, join

pytest.importorskip("redis", reason="the extra redis is not installed")
PROGRAM = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(PROGRAM is None, reason="there is no redis-server here: apt-get install redis-server")


class Redis:
    """A redis-server of the test's own, on a port of 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url, self._folder = f"redis://127.0.0.1:{self.port}/0", folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder))
        self._process = subprocess.Popen([str(PROGRAM), *options], stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    monkeypatch.setattr("server.contracts.redis_bus.RETRY_SECONDS", 0.02)
    made = Redis(tmp_path)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def up(server: Server) -> bool:
    return "tts_bus_up 1.0" in server.context.metrics.render().decode()


@asynccontextmanager
async def pair(voices: Path, redis: Redis, engine: FakeEngine) -> AsyncIterator[tuple[Server, Server]]:
    """Where somebody is heard, and where somebody speaks."""
    async with running(voices, FakeEngine(), redis_url=redis.url) as ears, running(voices, engine, redis_url=redis.url) as mouths:
        await until(lambda: up(ears) and up(mouths))
        yield ears, mouths


@needs_redis
async def test_speech_in_one_process_interrupts_the_other(voices: Path, redis: Redis, clock: Clock) -> None:
    async with pair(voices, redis, FakeEngine(frames=20)) as (ears, mouths), client(mouths.url) as connection:
        contract = ears.context.contracts.of("anonymous", "c")
        ear = object()
        contract.attend(ear)
        await join(connection)
        await say(connection, type="speak", text=TEXT)
        await audio(connection)
        await until(lambda: contract.playing)  # which the echo guard of the other process asks
        contract.speech_started()
        assert (await utterance(connection))[1]["type"] == "ducked"
        contract.speech_goes_on(500)
        assert [(await hear(connection))["type"] for _ in range(2)] == ["interrupted", "error"]
        contract.speech_ended()
        await until(lambda: contract_of(mouths).state is SpeechState.SILENT)
        assert contract_of(mouths).epoch == 1 and not contract.playing


@needs_redis
async def test_a_contract_of_another_process_can_be_interrupted_over_http(voices: Path, redis: Redis, clock: Clock) -> None:
    async with pair(voices, redis, FakeEngine(frames=20)) as (ears, mouths), ears.http_client() as http:
        assert (await http.post("/api/v1/contracts/c/interrupt")).status_code == 404
        async with client(mouths.url) as connection:
            await join(connection)
            await say(connection, type="speak", text=TEXT)
            await audio(connection)
            async with asyncio.timeout(LIMIT):
                while (answer := await http.post("/api/v1/contracts/c/interrupt", json={"audioEndMs": 7})).status_code == 404:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)  # until the other process has subscribed
            assert answer.status_code == 204
            assert (await utterance(connection))[1]["audioEndMs"] == 7
            redis.stop()
            await until(lambda: not up(ears))
            answer = await http.post("/api/v1/contracts/c/interrupt")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "BUS_DOWN")


@needs_redis
async def test_redis_goes_away_and_comes_back(voices: Path, redis: Redis, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """Sessions live on, and hear of the interruptions of their own process; those of others are heard again when it is back."""
    async with pair(voices, redis, FakeEngine(frames=20)) as (ears, mouths), client(mouths.url) as connection:
        contract = ears.context.contracts.of("anonymous", "c")
        contract.attend(object())
        await join(connection)
        redis.stop()
        await until(lambda: not up(ears) and not up(mouths))
        await say(connection, type="speak", text=TEXT, requestId="a")
        await audio(connection)
        contract.speech_started()
        contract.speech_goes_on(900)
        contract.speech_ended()
        contract_of(mouths).interrupt()
        assert (await utterance(connection))[1]["type"] == "interrupted"
        assert (await hear(connection))["code"] == "CANCELLED"
        other = mouths.context.contracts.of("anonymous", "made meanwhile")
        redis.start()
        await until(lambda: up(ears) and up(mouths))
        await say(connection, type="speak", text=TEXT, requestId="b")
        await audio(connection)
        assert contract_of(mouths).state is SpeechState.SILENT, "what nobody was told of is not told later"
        contract.speech_started()
        assert (await utterance(connection))[1]["type"] == "ducked"
        ears.context.contracts.of("anonymous", "made meanwhile").speech_started()
        await until(lambda: other.state is SpeechState.HELD)
        contract.false_alarm()
        assert (await hear(connection))["type"] == "resumed"
        clock.now += 9
        assert (await utterance(connection))[1]["type"] == "complete"
    assert "tts_bus_lost_total 3.0" in ears.context.metrics.render().decode()
    assert len([record for record in caplog.records if "Redis is away" in record.message]) == 2, "once for each process"


@needs_redis
async def test_two_processes_count_what_a_principal_asks_for_together(
    voices: Path, redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without Redis each counts by itself, and nobody waits for it twice."""
    monkeypatch.setattr("server.ops.shared_limits.RETRY_SECONDS", 0.0)
    caplog.set_level("INFO", "server.ops.shared_limits")
    ones = [FakeEngine(frames=1) for _ in range(2)]
    chosen = {"redis_url": redis.url, "limit_utterances": 2}
    async with running(voices, ones[0], **chosen) as one, running(voices, ones[1], **chosen) as other:
        async with client(one.url) as first, client(other.url) as second:
            for connection, expected in ((first, "complete"), (second, "complete"), (first, "error"), (second, "error")):
                await say(connection, type="speak", text=TEXT)
                _, end = await utterance(connection)
                assert (end["type"], end.get("code")) == (expected, "RATE_LIMITED" if expected == "error" else None)
                assert expected == "complete" or 0 < end["retryAfterMs"] <= 120_000
            redis.stop()
            for connection in (first, second):
                await say(connection, type="speak", text=TEXT)
                assert (await utterance(connection))[1]["type"] == "complete"
            redis.start()
            someone = other.context.auth.anonymous("192.0.2.1")
            async with asyncio.timeout(LIMIT):
                while not any("Redis answers" in record.message for record in caplog.records):
                    await other.context.limits.count(someone, "characters")
                    await asyncio.sleep(0.01)
    assert len([record for record in caplog.records if "Redis does not answer" in record.message]) == 2, "once for each process"


@needs_redis
async def test_what_others_put_into_a_channel_does_no_harm(voices: Path, redis: Redis) -> None:
    from redis.asyncio import Redis as Client

    async with pair(voices, redis, FakeEngine()) as (ears, mouths), client(mouths.url) as connection:
        await join(connection)
        stranger = Client.from_url(redis.url)
        channels = [name for name in mouths.context.contracts.bus._channels if name]
        async with asyncio.timeout(LIMIT):
            while await stranger.publish(channels[0], b"nonsense") == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await stranger.publish(channels[0], b'{"origin": "x", "event": {"kind": "interrupt", "audio_end_ms": 1}}')
        await stranger.aclose()
        ears.context.contracts.of("anonymous", "c").speech_started()
        await until(lambda: contract_of(mouths).state is SpeechState.HELD)


async def test_without_redis_a_server_starts_and_asks_in_vain(voices: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"redis://127.0.0.1:{nobody.getsockname()[1]}/0"
    async with running(voices, FakeEngine(frames=1), redis_url=url) as server, client(server.url) as connection:
        await join(connection)
        await say(connection, type="speak", text=TEXT)
        assert (await utterance(connection))[1]["type"] == "complete"
        with pytest.raises(BusDown):
            await server.context.contracts.bus.ask("me", "c", SpeechEvent(kind="interrupt"))


async def test_an_address_that_is_none_is_refused_without_its_password(voices: Path) -> None:
    with pytest.raises(ValueError, match="TTS_REDIS_URL") as refused:
        async with running(voices, FakeEngine(), redis_url="http://user:geheim@host"):
            pass
    assert "geheim" not in str(refused.value)
