"""``/api/v1/speak`` over a real socket: Hypercorn on 127.0.0.1, the ``websockets`` client, an engine that the test holds step by step."""

import asyncio
import base64
from pathlib import Path

import numpy as np
import pytest
import soxr

from tests.fake_engine import FRAME, LIMIT, FakeEngine, pcm16, tone
from tests.serving import Clock, Message, audio, client, closed, connect, hear, running, say, utterance


async def test_happy_path(voices: Path) -> None:
    engine = FakeEngine()
    async with running(voices, engine) as server, connect(server.url) as connection:
        ready = await hear(connection)
        assert (ready["type"], ready["voiceLoaded"], len(ready["sessionId"])) == ("ready", "makima", 36)
        capabilities = ready["capabilities"]
        assert capabilities["streaming"] is True
        assert len(capabilities["languages"]) == 10
        assert (capabilities["encodings"], capabilities["sampleRates"]) == (["pcm16", "pcm32f"], [8000, 16000, 22050, 24000, 44100, 48000])
        assert capabilities["voices"] == ["anna", "makima"]
        assert ready["limits"] == {"maxMessageBytes": 65536, "maxWaiting": 8, "idleTimeoutMs": 300_000}
        await say(connection, type="start", sampleRate=24000, encoding="pcm16", voice="anna", language="english", contractId="c")
        assert await hear(connection) == {
            "type": "started",
            "sampleRate": 24000,
            "encoding": "pcm16",
            "voice": "anna",
            "language": "English",
            "transport": "binary",
        }
        await say(connection, type="speak", text="  Hello. ", requestId="one", seed=5, temperature=0.5, topK=3, topP=0.9, priority="high")
        heard, complete = await utterance(connection)
        assert heard == pcm16(1, 3)
        assert (complete["type"], complete["requestId"], complete["finishReason"]) == ("complete", "one", "eos")
        assert (complete["charactersProcessed"], complete["audioLengthMs"]) == (6, 240)
        assert 0 <= complete["ttfaMs"] <= complete["durationMs"]
        await say(connection, type="stop", reason="done")
        assert await hear(connection) == {"type": "stopped", "reason": "done"}
        assert await closed(connection) == 1000
    [request] = engine.requests
    assert (request.text, request.voice.id, request.language, request.seed, request.high) == ("Hello.", "anna", "English", 5, True)
    assert request.draw == {"temperature": 0.5, "top_k": 3, "top_p": 0.9}
    assert not (request.incremental or request.whole)


async def test_speak_without_start_uses_the_defaults(voices: Path) -> None:
    engine = FakeEngine()
    async with running(voices, engine) as server, client(server.url) as connection:
        for number in (1, 2):
            await say(connection, type="speak", text="Hello.")
            heard, complete = await utterance(connection)
            assert heard == pcm16(number, 3)
            assert complete["type"] == "complete"
            assert "requestId" not in complete
    assert [request.voice.id for request in engine.requests] == ["makima", "makima"]


async def test_audio_comes_while_it_is_made(voices: Path) -> None:
    gate = asyncio.Semaphore(1)
    engine = FakeEngine(gate=gate)
    async with running(voices, engine) as server, client(server.url) as connection:
        await say(connection, type="speak", text="Hello.")
        assert await audio(connection) == pcm16(1, 1)
        assert engine.handles[0].made == 1
        gate.release()
        gate.release()
        heard, complete = await utterance(connection)
        assert heard == pcm16(1, 3, first=1)
        assert complete["type"] == "complete"


async def test_json_transport(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, client(server.url) as connection:
        await say(connection, type="start", transport="json")
        assert (await hear(connection))["transport"] == "json"
        for number in (1, 2):
            await say(connection, type="speak", text="Hello.", requestId="r")
            chunks: list[Message] = []
            while (message := await hear(connection))["type"] == "audioChunk":
                chunks.append(message)
            assert message["type"] == "complete"
            assert [chunk["sequenceNumber"] for chunk in chunks] == list(range(1, len(chunks) + 1))
            assert [chunk["isFinal"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
            assert b"".join(base64.b64decode(chunk["data"]) for chunk in chunks) == pcm16(number, 3)
            assert all(chunk["requestId"] == "r" and chunk["timestampMs"] > 1.7e12 for chunk in chunks)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
async def test_other_rates_are_resampled_without_a_seam(voices: Path, rate: int) -> None:
    async with running(voices, FakeEngine(frames=10)) as server, client(server.url) as connection:
        await say(connection, type="start", sampleRate=rate, encoding="pcm32f")
        assert (await hear(connection))["sampleRate"] == rate
        await say(connection, type="speak", text="Hello.")
        heard, complete = await utterance(connection)
    whole = soxr.resample(np.concatenate([tone(1, index) for index in range(10)]), 24000, rate, quality="HQ")
    samples = np.frombuffer(heard, "<f4")
    assert len(samples) == len(whole)
    np.testing.assert_allclose(samples, whole, atol=2e-7)
    assert complete["audioLengthMs"] == 800


async def test_bad_messages_are_answered_and_the_session_lives_on(voices: Path) -> None:
    async with running(voices, FakeEngine(), max_text_chars=10) as server, client(server.url) as connection:
        cases: list[tuple[str | bytes, str, str]] = [
            ("nonsense", "INVALID_MESSAGE", "malformed"),
            (b"\1\2", "INVALID_MESSAGE", "binary"),
            (b"", "INVALID_MESSAGE", "binary"),
            ('{"type": "speak"}', "INVALID_MESSAGE", "text"),
            ('{"type": "flush"}', "INVALID_MESSAGE", "flush"),
            ('{"type": "start", "sampleRate": 11025}', "INVALID_MESSAGE", "sampleRate 11025"),
            ('{"type": "start", "encoding": "mp3"}', "INVALID_MESSAGE", "encoding 'mp3'"),
            ('{"type": "start", "transport": "smoke"}', "INVALID_MESSAGE", "transport 'smoke'"),
            ('{"type": "start", "language": "Klingon"}', "INVALID_MESSAGE", "English, Japanese"),
            ('{"type": "speak", "text": " "}', "INVALID_TEXT", "1 to 10"),
            ('{"type": "speak", "text": "eleven char"}', "INVALID_TEXT", "1 to 10"),
            ('{"type": "speak", "text": "refuse"}', "INVALID_TEXT", "say something else"),
        ]
        for frame, code, said in cases:
            await connection.send(frame)
            error = await hear(connection)
            assert (error["type"], error["code"], error["recoverable"]) == ("error", code, code != "INVALID_TEXT"), frame
            assert said in error["message"], frame
        await say(connection, type="sing")  # ignored
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[0] == pcm16(2, 3)


async def test_unknown_voice_is_told_and_the_default_is_used(voices: Path) -> None:
    engine = FakeEngine()
    async with running(voices, engine) as server, client(server.url) as connection:
        await say(connection, type="start", voice="nobody")
        error = await hear(connection)
        assert (error["code"], error["recoverable"]) == ("VOICE_NOT_FOUND", True)
        assert (await hear(connection))["voice"] == "makima"
        await say(connection, type="speak", text="Hello.", voice="anna")
        assert (await utterance(connection))[1]["type"] == "complete"
        await say(connection, type="speak", text="Hello.", voice="nobody", requestId="r")
        error = await hear(connection)
        assert (error["code"], error["requestId"]) == ("VOICE_NOT_FOUND", "r")
        assert (await utterance(connection))[1]["type"] == "complete"
    assert [request.voice.id for request in engine.requests] == ["anna", "makima"]


async def test_cancel_lets_no_byte_follow(voices: Path) -> None:
    gate = asyncio.Semaphore(1)
    engine = FakeEngine(frames=50, gate=gate)
    async with running(voices, engine) as server, client(server.url) as connection:
        await say(connection, type="speak", text="Long.", requestId="a")
        await say(connection, type="speak", text="Waiting.", requestId="b")
        await audio(connection)
        await say(connection, type="start")
        assert (await hear(connection))["message"] == "start is not possible while speaking"
        await say(connection, type="cancel")
        for request_id in ("a", "b"):
            error = await hear(connection)
            assert (error["code"], error["recoverable"], error["requestId"]) == ("CANCELLED", True, request_id)
        await say(connection, type="cancel")
        assert (await hear(connection))["message"] == "there was nothing to cancel"
        for _ in range(100):
            gate.release()
        engine.frames = 3
        await say(connection, type="start")
        assert (await hear(connection))["type"] == "started"
        await say(connection, type="speak", text="Short.")
        heard, complete = await utterance(connection)
        assert heard == pcm16(2, 3)
        assert complete["type"] == "complete"
    assert [request.text for request in engine.requests] == ["Long.", "Short."]
    assert engine.handles[0].cancelled.is_set()


async def test_cancel_of_one_request(voices: Path) -> None:
    gate = asyncio.Semaphore(0)
    async with running(voices, FakeEngine(gate=gate)) as server, client(server.url) as connection:
        for request_id in ("a", "b", "c"):
            await say(connection, type="speak", text=request_id, requestId=request_id)
        await say(connection, type="cancel", requestId="b")
        assert (await hear(connection))["requestId"] == "b"
        for _ in range(6):
            gate.release()
        for number, request_id in enumerate(("a", "c"), 1):
            heard, complete = await utterance(connection)
            assert (heard, complete["requestId"]) == (pcm16(number, 3), request_id)


async def test_high_priority_goes_first(voices: Path) -> None:
    gate = asyncio.Semaphore(1)
    engine = FakeEngine(gate=gate)
    async with running(voices, engine) as server, client(server.url) as connection:
        await say(connection, type="speak", text="first", requestId="first")
        await audio(connection)
        await say(connection, type="speak", text="normal", requestId="normal")
        await say(connection, type="speak", text="high", requestId="high", priority="high")
        for _ in range(20):
            gate.release()
        assert [(await utterance(connection))[1]["requestId"] for _ in range(3)] == ["first", "high", "normal"]


async def test_text_as_it_is_written(voices: Path) -> None:
    engine = FakeEngine()
    async with running(voices, engine) as server, client(server.url) as connection:
        await say(connection, type="speak", text="  One tw", **{"continue": True}, requestId="r")
        assert await audio(connection) == pcm16(1, 1), "audio starts on the first words"
        await say(connection, type="speak", text="o thre", **{"continue": True})
        assert await audio(connection) == pcm16(1, 2, first=1)
        await say(connection, type="speak", text="wrong", **{"continue": True}, requestId="other")
        assert (await hear(connection))["code"] == "INVALID_MESSAGE"
        await say(connection, type="speak", text="After it.", requestId="next")
        await say(connection, type="speak", text="e \u0065", **{"continue": True}, requestId="r")
        assert await audio(connection) == pcm16(1, 3, first=2)
        await say(connection, type="speak", text="\u0301 ", **{"continue": True}, requestId="r")
        await say(connection, type="flush", requestId="r")
        heard, complete = await utterance(connection)
        assert (heard, complete["requestId"]) == (pcm16(1, 4, first=3), "r")
        assert complete["charactersProcessed"] == len("One two three é") + 1, "of what came before the end, the space is kept"
        assert (await utterance(connection))[1]["requestId"] == "next"
        await say(connection, type="flush")
        assert "no such text is open" in (await hear(connection))["message"]
    assert engine.handles[0].text == "One two three é "


async def test_text_that_is_never_finished_ends(voices: Path) -> None:
    async with running(voices, FakeEngine(), text_timeout=0.1) as server, client(server.url) as connection:
        await say(connection, type="speak", text="One two", **{"continue": True}, requestId="r")
        heard, error = await utterance(connection)
        assert heard == pcm16(1, 1)
        assert (error["code"], error["requestId"]) == ("TIMEOUT", "r")
        assert "flush" in error["message"]
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[0] == pcm16(2, 3)


async def test_open_text_can_be_cancelled_and_has_a_limit(voices: Path) -> None:
    async with running(voices, FakeEngine(), max_text_chars=10) as server, client(server.url) as connection:
        await say(connection, type="speak", text="One ", **{"continue": True}, requestId="r")
        await audio(connection)
        await say(connection, type="speak", text="is too long", **{"continue": True}, requestId="r")
        error = await hear(connection)
        assert (error["code"], error["requestId"]) == ("INVALID_TEXT", "r")
        await say(connection, type="cancel", requestId="r")
        assert (await hear(connection))["code"] == "CANCELLED"
        await say(connection, type="speak", text=" ", **{"continue": True}, requestId="s")
        await say(connection, type="flush")
        error = await hear(connection)
        assert (error["code"], error["requestId"]) == ("INVALID_TEXT", "s")
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"


async def test_a_failure_before_any_audio_is_tried_again_in_one_piece(voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine(healed=True)
    async with running(voices, engine) as server, client(server.url) as connection:
        for number, text in ((2, "break"), (4, "memory")):
            await say(connection, type="speak", text=text, requestId="r")
            heard, complete = await utterance(connection)
            assert (heard, complete["type"]) == (pcm16(number, 3), "complete")
    assert [request.whole for request in engine.requests] == [False, True] * 2


async def test_failures_are_told_and_the_next_utterance_is_spoken(voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    async with running(voices, engine) as server, client(server.url) as connection:
        for text, code, audible in (
            ("fail", "SYNTHESIS_ERROR", 1),
            ("break", "SYNTHESIS_ERROR", 0),
            ("memory", "GPU_OUT_OF_MEMORY", 0),
            ("nan", "SYNTHESIS_ERROR", 0),
        ):
            await say(connection, type="speak", text=text, requestId="r")
            heard, error = await utterance(connection)
            assert len(heard) == audible * 2 * FRAME
            assert (error["code"], error["recoverable"], error["requestId"]) == (code, True, "r")
            assert "the fake" not in error["message"], "the inside is for the log"
        assert "the fake failed" in caplog.text
        assert [request.text for request in engine.requests] == ["fail", "break", "break", "memory", "memory", "nan", "nan"]
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"


async def test_too_many_waiting_utterances_are_refused(voices: Path) -> None:
    gate = asyncio.Semaphore(0)
    async with running(voices, FakeEngine(gate=gate), max_waiting=2) as server, client(server.url) as connection:
        for request_id in ("a", "b", "c"):
            await say(connection, type="speak", text="Hello.", requestId=request_id)
        error = await hear(connection)
        assert (error["code"], error["requestId"], error["retryAfterMs"]) == ("RATE_LIMITED", "c", 1000)
        for _ in range(6):
            gate.release()
        assert [(await utterance(connection))[1]["requestId"] for _ in range(2)] == ["a", "b"]


async def test_a_piece_of_audio_has_a_limit(voices: Path) -> None:
    engine = FakeEngine(gate=asyncio.Semaphore(0))
    async with running(voices, engine, chunk_timeout=0.05) as server, client(server.url) as connection:
        await say(connection, type="speak", text="Hello.", requestId="r")
        error = await hear(connection)
        assert (error["code"], error["recoverable"], error["requestId"]) == ("TIMEOUT", True, "r")
    assert engine.handles[0].cancelled.is_set()


async def test_audio_is_paced(voices: Path, clock: Clock) -> None:
    """A frame goes out while what was sent is at most half a second ahead of a listener, and none is lost."""
    engine = FakeEngine(frames=25)
    async with running(voices, engine, lead=0.5) as server, client(server.url) as connection:
        await say(connection, type="speak", text="Hello.")
        heard = 0
        for seconds, frames in ((0.0, 7), (0.07, 8), (0.57, 14), (2.0, 21), (9.0, 25)):
            clock.now = seconds
            while heard < frames:
                heard += len(await audio(connection)) // (2 * FRAME)
            if frames < 25:
                await say(connection, type="cancel", requestId="nobody")
                assert (await hear(connection))["code"] == "CANCELLED", "the session's next frame is no audio"
                assert engine.handles[0].made == frames + 1
        assert (heard, (await hear(connection))["type"]) == (25, "complete")


async def test_a_cancel_does_not_wait_for_the_pace(voices: Path, clock: Clock) -> None:
    """The clock stands still: nothing that waits for the pace would ever go on."""
    async with running(voices, FakeEngine(frames=99), lead=0.1) as server, client(server.url) as connection:
        await say(connection, type="speak", text="Hello.")
        await audio(connection)
        await audio(connection)
        await say(connection, type="cancel")
        assert (await utterance(connection))[1]["code"] == "CANCELLED"
        await say(connection, type="speak", text="Hello.")
        await audio(connection)


async def test_a_client_that_vanishes_ends_the_generation(voices: Path) -> None:
    engine = FakeEngine(frames=1000, gate=asyncio.Semaphore(1))
    async with running(voices, engine) as server:
        async with client(server.url) as connection:
            await say(connection, type="speak", text="Hello.")
            await audio(connection)
            connection.transport.abort()
        await asyncio.wait_for(engine.handles[0].cancelled.wait(), LIMIT)
        assert engine.active == 0


async def test_a_fault_of_ours_closes_with_1011(voices: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("server.ws.audio_out.to_pcm16", lambda pcm: None / pcm)
    async with running(voices, FakeEngine()) as server, client(server.url) as connection:
        await say(connection, type="speak", text="Hello.")
        error = await hear(connection)
        assert (error["code"], error["recoverable"]) == ("SYNTHESIS_ERROR", False)
        assert await closed(connection) == 1011
    assert "unsupported operand" in caplog.text


async def test_the_model_loads_in_the_background(voices: Path) -> None:
    engine = FakeEngine(hold_loading=True)
    async with running(voices, engine, wait=False) as server, connect(server.url) as connection:
        assert (await hear(connection))["voiceLoaded"] == ""
        await say(connection, type="speak", text="Hello.", requestId="r")
        error = await hear(connection)
        assert (error["code"], error["recoverable"], error["requestId"]) == ("MODEL_LOADING", True, "r")
        engine.load().set_result(None)
        await say(connection, type="speak", text="Hello.", requestId="r")
        assert (await utterance(connection))[1]["type"] == "complete"


async def test_lazy_loading_begins_with_the_first_utterance(voices: Path) -> None:
    engine = FakeEngine(hold_loading=True)
    async with running(voices, engine, wait=False, load="lazy") as server, client(server.url) as connection:
        await say(connection, type="start")
        assert (await hear(connection))["type"] == "started"
        assert engine.loads == 0
        await say(connection, type="speak", text="Hello.")
        assert (await hear(connection))["code"] == "MODEL_LOADING"
        assert engine.loads == 1


async def test_a_model_that_cannot_be_loaded_ends_the_server(voices: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        async with running(voices, FakeEngine(loading_error=FileNotFoundError("there is no checkpoint")), wait=False):
            pass


async def test_deadlines_close_with_4408(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("server.ws.connected.START_SECONDS", 0.1)
        async with running(voices, FakeEngine()) as server, client(server.url) as connection:
            assert "neither start nor speak" in (await hear(connection))["message"]
            assert await closed(connection) == 4408
    async with running(voices, FakeEngine(), idle_timeout=0.1) as server, client(server.url) as connection:
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"
        error = await hear(connection)
        assert (error["code"], error["recoverable"]) == ("TIMEOUT", False)
        assert "nothing to do" in error["message"]
        assert await closed(connection) == 4408


async def test_too_many_sessions_close_with_1013(voices: Path) -> None:
    async with running(voices, FakeEngine(), max_sessions=1) as server, client(server.url), connect(server.url) as second:
        assert (await hear(second))["code"] == "RATE_LIMITED"
        assert await closed(second) == 1013


async def test_preset_speakers_are_voices(tmp_path: Path) -> None:
    engine = FakeEngine(presets=("eric", "ryan"))
    async with running(tmp_path, engine) as server, client(server.url) as connection:
        await say(connection, type="start", voice="ryan")
        assert (await hear(connection))["voice"] == "ryan"
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"
    assert engine.requests[0].voice == "ryan"


async def test_a_message_of_a_type_that_nobody_knows_is_ignored_and_logged_for_debugging(
    voices: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "server")
    async with running(voices, FakeEngine()) as server, client(server.url) as connection:
        await say(connection, type="dance", text="A private matter.")
        await say(connection, type="cancel")
        assert (await hear(connection))["code"] == "CANCELLED", "nothing is answered to the first"
    [record] = [record for record in caplog.records if "nobody knows" in record.getMessage()]
    assert record.levelname == "DEBUG" and "private" not in caplog.text


async def test_an_engine_of_fewer_languages_names_them(voices: Path) -> None:
    async with running(voices, FakeEngine(languages=("English",))) as server, client(server.url) as connection:
        await say(connection, type="start", language="German")
        error = await hear(connection)
        assert error["code"] == "INVALID_MESSAGE"
        assert error["message"].endswith("this model speaks English, or Auto; Qwen/Qwen3-TTS-12Hz-0.6B-Base speaks German")


LONG = "x" * 11
REFUSALS: list[tuple[Message, str, bool, bool]] = [  # what is sent, the code, recoverable, final
    ({"type": "speak", "text": " "}, "INVALID_TEXT", False, True),
    ({"type": "speak", "text": LONG}, "INVALID_TEXT", False, True),
    ({"type": "speak", "text": "refuse"}, "INVALID_TEXT", False, True),
    ({"type": "speak"}, "INVALID_MESSAGE", True, True),
    ({"type": "speak", "text": 5}, "INVALID_MESSAGE", True, True),
    ({"type": "speak", "text": "Hi.", "temperature": "warm"}, "INVALID_MESSAGE", True, True),
    ({"type": "speak", "text": "Hi.", "language": "Klingon"}, "INVALID_MESSAGE", True, True),
    ({"type": "speak", "text": "Hi.", "voice": "nobody"}, "VOICE_NOT_FOUND", True, False),
    ({"type": "speak", "text": "break"}, "SYNTHESIS_ERROR", True, True),
    ({"type": "speak", "text": "memory"}, "GPU_OUT_OF_MEMORY", True, True),
    ({"type": "start", "language": "Klingon"}, "INVALID_MESSAGE", True, False),
    ({"type": "start", "encoding": "mp3"}, "INVALID_MESSAGE", True, False),
    ({"type": "start", "voice": "nobody"}, "VOICE_NOT_FOUND", True, False),
    ({"type": "flush"}, "INVALID_MESSAGE", True, True),
    ({"type": "cancel"}, "CANCELLED", True, True),
]


@pytest.mark.parametrize(("message", "code", "recoverable", "final"), REFUSALS)
async def test_every_error_has_its_code_and_says_what_follows(
    voices: Path, message: Message, code: str, recoverable: bool, final: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine()
    async with running(voices, engine, max_text_chars=10) as server, client(server.url) as connection:
        request_id = {} if message["type"] == "start" else {"requestId": "r"}
        await say(connection, **message, **request_id)
        error = await hear(connection)
        assert (error["type"], error["code"], error["recoverable"], error["final"]) == ("error", code, recoverable, final)
        assert error.get("requestId") == request_id.get("requestId")
        if not final and message["type"] == "speak":
            assert (await utterance(connection))[1]["type"] == "complete"
        if code == "VOICE_NOT_FOUND" and message["type"] == "start":
            assert (await hear(connection))["voice"] == "makima"
        spoken = len(engine.requests)
        await say(connection, type="speak", text="Hello.", requestId="next")
        heard, last = await utterance(connection)
        assert (heard, last["type"], last["requestId"]) == (pcm16(spoken + 1, 3), "complete", "next"), "the session lives on"


async def test_a_refused_piece_leaves_its_text_open(voices: Path) -> None:
    async with running(voices, FakeEngine(), max_text_chars=10) as server, client(server.url) as connection:
        await say(connection, type="speak", text="One ", **{"continue": True}, requestId="r")
        await audio(connection)
        for bad in ({"text": "is too long"}, {"text": 5}):
            await say(connection, type="speak", **bad, **{"continue": True}, requestId="r")
            error = await hear(connection)
            assert (error["requestId"], error["final"]) == ("r", False)
        await say(connection, type="flush", requestId="r")
        assert (await utterance(connection))[1]["type"] == "complete"


async def test_a_speak_in_a_language_and_by_a_name_of_openais(voices: Path) -> None:
    engine = FakeEngine()
    async with running(voices, engine, voice_aliases={"Nova": "anna"}) as server, client(f"{server.url}/") as connection:
        for language, voice in (("de-DE", "NOVA"), ("en_US", "onyx"), (None, "Anna")):
            await say(connection, type="speak", text="Hello.", language=language, voice=voice, seed=-1)
            assert (await utterance(connection))[1]["type"] == "complete"
    assert [(request.language, request.voice.id, request.seed) for request in engine.requests] == [
        ("German", "anna", None),
        ("English", "makima", None),
        ("English", "anna", None),
    ]


async def test_blanks_around_a_text_are_not_counted(voices: Path) -> None:
    async with running(voices, FakeEngine(), max_text_chars=10, limit_characters=20) as server, client(server.url) as connection:
        for _ in range(2):
            await say(connection, type="speak", text=f"  {'x' * 10}\n\n")
            complete = (await utterance(connection))[1]
            assert (complete["type"], complete["charactersProcessed"]) == ("complete", 10)
        await say(connection, type="speak", text="x", requestId="r")
        error = await hear(connection)
        assert (error["code"], error["recoverable"], error["final"], error["requestId"]) == ("RATE_LIMITED", True, True, "r")
