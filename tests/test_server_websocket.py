"""The server over a real socket: Hypercorn on 127.0.0.1, the ``websockets`` client, a model that the test holds step by step."""

import asyncio
import json
import socket
import threading
import wave
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypercorn.config import Config
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from qwen3_jax import Qwen3TTS, Sampling
from qwen3_jax.audio import to_pcm16, write_wav
from qwen3_jax.service import SpeechService
from server.app import create_app
from server.engine import Served
from server.settings import Settings
from server.transport import serve
from tests.fake_tts import LIMIT, FakeTTS, tone

MINUTES = 240.0  # where a real model compiles
Message = dict[str, Any]


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    """Two voices, one with a transcript."""
    for name in ("anna", "makima"):
        (tmp_path / name).mkdir()
        with wave.open(str(tmp_path / name / "reference.wav"), "wb") as file:
            file.setparams((1, 2, 24000, 0, "NONE", ""))
            file.writeframes(b"\0\0" * 24000)
    (tmp_path / "makima" / "transcript.txt").write_text("Good evening.\n", "utf-8")
    return tmp_path


@asynccontextmanager
async def running(voices: Path, tts: Callable[[], Any], *, wait: bool = True, limit: float = LIMIT, **chosen: Any) -> AsyncIterator[str]:
    """A server; the URL of ``speak``."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"ws://127.0.0.1:{listener.getsockname()[1]}/api/v1/speak"
    descriptor = listener.detach()  # Hypercorn closes it
    settings = Settings(voices_dir=voices, model_id="fake", **chosen)
    app = create_app(settings, tts)
    stop, up = asyncio.Event(), asyncio.Event()

    @app.before_serving
    async def tell() -> None:  # after the engine has been started
        up.set()

    def bind(config: Config) -> None:
        config.bind = [f"fd://{descriptor}"]

    server = asyncio.create_task(serve(app, settings, stop=stop, bound=bind))
    try:
        async with asyncio.timeout(limit):
            await up.wait()
            if wait:
                await app.extensions["engine"].loaded
        yield url
    finally:
        stop.set()
        await asyncio.wait_for(server, LIMIT)


@asynccontextmanager
async def client(url: str) -> AsyncIterator[ClientConnection]:
    """A client that has read ``ready``."""
    async with asyncio.timeout(LIMIT), connect(url) as connection:
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


async def utterance(connection: ClientConnection) -> tuple[bytes, Message]:
    """All audio up to the next message, and that message."""
    audio = b""
    while True:
        frame = await asyncio.wait_for(connection.recv(), LIMIT)
        if isinstance(frame, str):
            return audio, json.loads(frame)
        audio += frame


WHOLE = b"".join(to_pcm16(tone(index)) for index in range(3))


async def test_happy_path(voices: Path) -> None:
    tts = FakeTTS()
    async with running(voices, lambda: tts) as url, connect(url) as connection:
        ready = await hear(connection)
        assert (ready["type"], ready["voiceLoaded"], len(ready["sessionId"])) == ("ready", "makima", 36)
        capabilities = ready["capabilities"]
        assert capabilities["streaming"] is True
        assert len(capabilities["languages"]) == 10
        assert (capabilities["encodings"], capabilities["sampleRates"]) == (["pcm16"], [24000])
        assert capabilities["voices"] == ["anna", "makima"]
        await say(connection, type="start", sampleRate=24000, encoding="pcm16", voice="anna", language="english")
        assert await hear(connection) == {
            "type": "started",
            "sampleRate": 24000,
            "encoding": "pcm16",
            "voice": "anna",
            "language": "English",
            "transport": "binary",
        }
        await say(connection, type="speak", text="  Hello. ", requestId="one", seed=5, temperature=0.5)
        audio, complete = await utterance(connection)
        assert audio == WHOLE
        assert (complete["type"], complete["requestId"], complete["finishReason"]) == ("complete", "one", "eos")
        assert (complete["charactersProcessed"], complete["audioLengthMs"]) == (6, 240)
        assert 0 <= complete["ttfaMs"] <= complete["durationMs"]
        await say(connection, type="stop", reason="done")
        assert await hear(connection) == {"type": "stopped", "reason": "done"}
        await asyncio.wait_for(connection.wait_closed(), LIMIT)
        assert connection.close_code == 1000
    [stream] = [stream.request for stream in tts.streams]
    assert (stream.text, stream.voice.name, stream.language, stream.seed) == ("Hello.", "anna", "English", 5)
    assert (stream.sampling.temperature, stream.sampling.top_k) == (0.5, 50)
    assert tts.warm == ["all", "makima"]
    assert tts.cloned == [("makima", "Good evening."), ("anna", None)]


async def test_speak_without_start_uses_the_defaults(voices: Path) -> None:
    tts = FakeTTS()
    async with running(voices, lambda: tts) as url, client(url) as connection:
        for _ in range(2):
            await say(connection, type="speak", text="Hello.")
            audio, complete = await utterance(connection)
            assert audio == WHOLE
            assert complete["type"] == "complete"
            assert "requestId" not in complete
    assert [stream.request.voice.name for stream in tts.streams] == ["makima", "makima"]
    assert len(tts.cloned) == 1, "a voice is cloned once"


async def test_audio_comes_while_it_is_made(voices: Path) -> None:
    tts = FakeTTS(gate=threading.Semaphore(1))
    assert tts.gate is not None
    async with running(voices, lambda: tts) as url, client(url) as connection:
        await say(connection, type="speak", text="Hello.")
        assert await asyncio.wait_for(connection.recv(), LIMIT) == to_pcm16(tone(0))
        assert tts.streams[0].finish_reason is None
        tts.gate.release(2)
        audio, complete = await utterance(connection)
        assert to_pcm16(tone(0)) + audio == WHOLE
        assert complete["type"] == "complete"


async def test_bad_messages_are_answered_and_the_session_lives_on(voices: Path) -> None:
    async with running(voices, FakeTTS, max_text_chars=10) as url, client(url) as connection:
        cases: list[tuple[str | bytes, str, str]] = [
            ("nonsense", "INVALID_MESSAGE", "malformed"),
            (b"\1\2", "INVALID_MESSAGE", "binary"),
            (b"", "INVALID_MESSAGE", "binary"),
            ('{"type": "speak"}', "INVALID_MESSAGE", "text"),
            ('{"type": "flush"}', "INVALID_MESSAGE", "flush"),
            ('{"type": "speak", "text": "a", "continue": true}', "INVALID_MESSAGE", "continue"),
            ('{"type": "start", "sampleRate": 16000}', "INVALID_MESSAGE", "sampleRate 16000"),
            ('{"type": "start", "encoding": "pcm32f"}', "INVALID_MESSAGE", "encoding 'pcm32f'"),
            ('{"type": "start", "transport": "json"}', "INVALID_MESSAGE", "transport 'json'"),
            ('{"type": "start", "language": "Klingon"}', "INVALID_TEXT", "English, Japanese"),
            ('{"type": "speak", "text": " "}', "INVALID_TEXT", "1 to 10"),
            ('{"type": "speak", "text": "eleven char"}', "INVALID_TEXT", "1 to 10"),
            ('{"type": "speak", "text": "refuse"}', "INVALID_TEXT", "say something else"),
        ]
        for frame, code, said in cases:
            await connection.send(frame)
            error = await hear(connection)
            assert (error["type"], error["code"]) == ("error", code), frame
            assert said in error["message"], frame
        await say(connection, type="sing")  # ignored
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[0] == WHOLE


async def test_unknown_voice_is_told_and_the_default_is_used(voices: Path) -> None:
    tts = FakeTTS()
    async with running(voices, lambda: tts) as url, client(url) as connection:
        await say(connection, type="start", voice="nobody")
        error = await hear(connection)
        assert (error["code"], error["recoverable"]) == ("VOICE_NOT_FOUND", True)
        assert (await hear(connection))["voice"] == "makima"
        await say(connection, type="speak", text="Hello.", voice="anna")
        assert (await utterance(connection))[1]["type"] == "complete"
    assert tts.streams[0].request.voice.name == "anna"


async def test_cancel_lets_no_byte_follow(voices: Path) -> None:
    tts = FakeTTS(pieces=50, gate=threading.Semaphore(1))
    assert tts.gate is not None
    async with running(voices, lambda: tts) as url, client(url) as connection:
        await say(connection, type="speak", text="Long.", requestId="a")
        await say(connection, type="speak", text="Waiting.", requestId="b")
        assert isinstance(await asyncio.wait_for(connection.recv(), LIMIT), bytes)
        await say(connection, type="start")
        assert (await hear(connection))["message"] == "start is not possible while speaking"
        await say(connection, type="cancel")
        for request_id in ("a", "b"):
            error = await hear(connection)
            assert (error["code"], error["recoverable"], error["requestId"]) == ("CANCELLED", True, request_id)
        await say(connection, type="cancel")
        assert (await hear(connection))["message"] == "there was nothing to cancel"
        tts.gate.release(100)
        tts.pieces = 3
        await say(connection, type="start")
        assert (await hear(connection))["type"] == "started"
        await say(connection, type="speak", text="Short.")
        audio, complete = await utterance(connection)
        assert audio == WHOLE
        assert complete["type"] == "complete"
    assert [stream.request.text for stream in tts.streams] == ["Long.", "Short."]
    assert tts.streams[0].cancelled.is_set()


async def test_cancel_of_one_request(voices: Path) -> None:
    tts = FakeTTS(gate=threading.Semaphore(0))
    assert tts.gate is not None
    async with running(voices, lambda: tts) as url, client(url) as connection:
        for request_id in ("a", "b", "c"):
            await say(connection, type="speak", text=request_id, requestId=request_id)
        await say(connection, type="cancel", requestId="b")
        assert (await hear(connection))["requestId"] == "b"
        tts.gate.release(6)
        for request_id in ("a", "c"):
            audio, complete = await utterance(connection)
            assert (audio, complete["requestId"]) == (WHOLE, request_id)


async def test_too_many_waiting_utterances_are_refused(voices: Path) -> None:
    tts = FakeTTS(gate=threading.Semaphore(0))
    assert tts.gate is not None
    async with running(voices, lambda: tts, max_waiting=2) as url, client(url) as connection:
        for request_id in ("a", "b", "c"):
            await say(connection, type="speak", text="Hello.", requestId=request_id)
        error = await hear(connection)
        assert (error["code"], error["requestId"]) == ("RATE_LIMITED", "c")
        tts.gate.release(6)
        assert [(await utterance(connection))[1]["requestId"] for _ in range(2)] == ["a", "b"]


async def test_sessions_speak_in_turn(voices: Path) -> None:
    tts = FakeTTS(gate=threading.Semaphore(1))
    assert tts.gate is not None
    async with running(voices, lambda: tts, slots=1) as url, client(url) as first, client(url) as second:
        await say(first, type="speak", text="First.")
        assert isinstance(await asyncio.wait_for(first.recv(), LIMIT), bytes)
        await say(second, type="speak", text="Second.")
        tts.gate.release(5)
        assert (await utterance(first))[1]["type"] == "complete"
        audio, complete = await utterance(second)
        assert (audio, complete["type"]) == (WHOLE, "complete")
    assert [stream.request.text for stream in tts.streams] == ["First.", "Second."]


async def test_sessions_speak_at_once(voices: Path) -> None:
    """The second session hears its first piece while the first one is still in the middle of its utterance."""
    tts = FakeTTS(gate=threading.Semaphore(1))
    assert tts.gate is not None
    async with running(voices, lambda: tts, slots=2) as url, client(url) as first, client(url) as second:
        await say(first, type="speak", text="First.")
        assert isinstance(await asyncio.wait_for(first.recv(), LIMIT), bytes)
        await say(second, type="speak", text="Second.")
        tts.gate.release(1)  # a piece of either; the other session's thread waits for the next one
        assert await asyncio.to_thread(tts.twice.wait, LIMIT), "both utterances have begun, and neither has ended"
        tts.gate.release(4)
        for connection in (first, second):
            assert (await utterance(connection))[1]["type"] == "complete"


async def test_waiting_for_the_turn_has_a_limit(voices: Path) -> None:
    tts = FakeTTS(gate=threading.Semaphore(1))
    assert tts.gate is not None
    async with running(voices, lambda: tts, slots=1, turn_timeout=0.05) as url, client(url) as first, client(url) as second:
        await say(first, type="speak", text="First.")
        assert isinstance(await asyncio.wait_for(first.recv(), LIMIT), bytes)
        await say(second, type="speak", text="Second.", requestId="r")
        error = await hear(second)
        assert (error["code"], error["recoverable"], error["requestId"]) == ("TIMEOUT", True, "r")
        tts.gate.release(2)
        assert (await utterance(first))[1]["type"] == "complete"
    assert [stream.request.text for stream in tts.streams] == ["First."]


async def test_a_client_that_vanishes_ends_the_generation(voices: Path) -> None:
    tts = FakeTTS(pieces=1000, gate=threading.Semaphore(1))
    assert tts.gate is not None
    async with running(voices, lambda: tts) as url:
        async with client(url) as connection:
            await say(connection, type="speak", text="Hello.")
            assert isinstance(await asyncio.wait_for(connection.recv(), LIMIT), bytes)
            connection.transport.abort()
        assert await asyncio.to_thread(tts.streams[0].cancelled.wait, LIMIT)
        tts.gate.release(1)
        assert await asyncio.to_thread(tts.streams[0].closed.wait, LIMIT)
        tts.pieces = 3
        tts.gate.release(3)
        async with client(url) as connection:
            await say(connection, type="speak", text="Hello again.")
            assert (await utterance(connection))[0] == WHOLE


async def test_engine_error_is_told_and_the_next_utterance_is_spoken(voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(voices, FakeTTS) as url, client(url) as connection:
        await say(connection, type="speak", text="fail", requestId="r")
        audio, error = await utterance(connection)
        assert audio == to_pcm16(tone(0))
        assert (error["code"], error["recoverable"], error["requestId"]) == ("SYNTHESIS_ERROR", True, "r")
        assert "the fake failed" not in error["message"], "the inside is for the log"
        assert "the fake failed" in caplog.text
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[0] == WHOLE


async def test_a_fault_of_ours_closes_with_1011(voices: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("server.websocket.to_pcm16", lambda pcm: None / pcm)
    async with running(voices, FakeTTS) as url, client(url) as connection:
        await say(connection, type="speak", text="Hello.")
        error = await hear(connection)
        assert (error["code"], error["recoverable"]) == ("SYNTHESIS_ERROR", False)
        await asyncio.wait_for(connection.wait_closed(), LIMIT)
        assert connection.close_code == 1011
    assert "unsupported operand" in caplog.text


async def test_the_model_loads_in_the_background(voices: Path) -> None:
    gate = threading.Event()

    def load() -> FakeTTS:
        assert gate.wait(LIMIT)
        return FakeTTS()

    async with running(voices, load, wait=False) as url, connect(url) as connection:
        assert (await hear(connection))["voiceLoaded"] == ""
        await say(connection, type="speak", text="Hello.", requestId="r")
        error = await hear(connection)
        assert (error["code"], error["recoverable"], error["requestId"]) == ("MODEL_LOADING", True, "r")
        gate.set()


async def test_a_model_that_cannot_be_loaded_ends_the_server(voices: Path) -> None:
    def load() -> FakeTTS:
        raise FileNotFoundError("there is no checkpoint")

    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        async with running(voices, load, wait=False):
            pass


async def test_going_down_says_goodbye(voices: Path) -> None:
    tts = FakeTTS(gate=threading.Semaphore(1))
    assert tts.gate is not None
    async with asyncio.timeout(LIMIT):
        async with running(voices, lambda: tts) as url:
            connection = await connect(url)
            await hear(connection)
            await say(connection, type="speak", text="Hello.")
            assert isinstance(await connection.recv(), bytes)
        assert await hear(connection) == {"type": "stopped", "reason": "server_shutdown"}
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == 1012
        tts.gate.release(3)


async def test_frames_that_are_too_big_close_with_1009(voices: Path) -> None:
    async with running(voices, FakeTTS) as url, client(url) as connection:
        await say(connection, type="speak", text="x" * 70_000)
        await asyncio.wait_for(connection.wait_closed(), LIMIT)
        assert connection.close_code == 1009


async def test_no_compression_is_negotiated(voices: Path) -> None:
    async with running(voices, FakeTTS) as url, connect(url, compression="deflate") as connection:
        assert connection.response is not None
        assert "Sec-WebSocket-Extensions" not in connection.response.headers


async def test_preset_speakers_are_voices(tmp_path: Path) -> None:
    tts = FakeTTS(model_type="custom_voice", speakers=("eric", "ryan"))
    async with running(tmp_path, lambda: tts) as url, client(url) as connection:
        await say(connection, type="start", voice="ryan")
        assert (await hear(connection))["voice"] == "ryan"
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"
    assert tts.streams[0].request.voice == "ryan"


async def test_end_to_end_on_a_tiny_checkpoint(voices: Path, checkpoint: Callable[[str], Path]) -> None:
    """The real model behind the socket: the bytes are those of ``stream`` with the same seed, and come in several frames."""
    for name in ("anna", "makima"):
        samples = np.random.default_rng(1).normal(0, 0.1, 36000).astype(np.float32)
        write_wav(voices / name / "reference.wav", samples)
    tts = Qwen3TTS.from_pretrained(checkpoint("base"))
    voice = tts.create_voice(voices / "makima" / "reference.wav", "Good evening.")
    text = "Hello, this is all."
    stream = tts.stream(text, voice=voice, language="English", seed=2, sampling=Sampling(temperature=0.7))
    expected = np.concatenate(list(stream))
    async with running(voices, lambda: tts, limit=MINUTES, warmup="first") as url, connect(url) as connection:
        assert (await hear(connection))["voiceLoaded"] == "makima"
        await say(connection, type="speak", text=text, seed=2, temperature=0.7)
        frames = []
        while isinstance(frame := await asyncio.wait_for(connection.recv(), MINUTES), bytes):
            frames.append(frame)
        complete = json.loads(frame)
    assert complete["type"] == "complete"
    assert b"".join(frames) == to_pcm16(expected)
    assert len(frames[0]) == 2 * 1920, "the first piece is one frame"
    assert complete["audioLengthMs"] == round(len(expected) / 24)
    assert complete["finishReason"] == stream.finish_reason


async def test_several_sessions_share_a_batch(voices: Path, checkpoint: Callable[[str], Path]) -> None:
    """The engine behind the socket: three sessions at once hear what each would hear alone."""
    rng = np.random.default_rng(1)
    for name in ("anna", "makima"):
        write_wav(voices / name / "reference.wav", rng.normal(0, 0.1, 36000).astype(np.float32))
    plain = Qwen3TTS.from_pretrained(checkpoint("base"))
    voice = plain.create_voice(voices / "anna" / "reference.wav")
    expected = [plain.generate("Hello, this is all.", voice=voice, language="English", seed=seed).pcm for seed in range(3)]
    service = SpeechService(plain, slots=3, columns=320)

    async def one(url: str, seed: int) -> bytes:
        async with connect(url) as connection:
            await hear(connection)
            await say(connection, type="speak", text="Hello, this is all.", voice="anna", seed=seed)
            audio = b""
            while isinstance(frame := await asyncio.wait_for(connection.recv(), MINUTES), bytes):
                audio += frame
            assert json.loads(frame)["type"] == "complete"
            return audio

    async with running(voices, lambda: Served(service), limit=MINUTES, warmup="first", slots=3) as url:
        heard = await asyncio.gather(*(one(url, seed) for seed in range(3)))
    for got, pcm in zip(heard, expected, strict=True):
        assert np.abs(np.frombuffer(got, "<i2").astype(int) - np.frombuffer(to_pcm16(pcm), "<i2")).max() <= 1


async def test_health(voices: Path) -> None:
    tts = FakeTTS()
    app = create_app(Settings(voices_dir=voices), lambda: tts)
    async with app.test_app() as running_app:
        requests = running_app.test_client()
        assert (await requests.get("/healthz")).status_code == 200
        await asyncio.wait_for(app.extensions["engine"].loaded, LIMIT)
        response = await requests.get("/readyz")
        assert (response.status_code, await response.get_json()) == (200, {"status": "ready"})
