"""``/api/v1/listen`` over a real socket, with a recogniser's process that has no model: order, limits, faults."""

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from server.http import schema
from tests.hearing import hear_until, listening, send, sound, start
from tests.serving import Clock, client, closed, connect, hear, say, until, utterance

WORD = sound((0, 0.32), (0.5, 0.32), (0, 0.64))  # a turn, as frames of 32 ms


async def test_a_turn_is_told_in_order(voices: Path) -> None:
    async with listening(voices) as server, connect(server.url) as connection:
        ready = await hear(connection)
        assert ready["capabilities"]["endOfTurn"] == ["vad", "semantic", "none"]
        assert await start(connection, language="en") == {
            "type": "started",
            "sampleRate": 16000,
            "encoding": "pcm16",
            "language": "English",
            "turnDetection": {"type": "vad", "threshold": 0.5, "silenceMs": 400, "minSpeechMs": 100, "eagerness": "medium"},
            "respond": False,
        }
        await send(connection, WORD)
        first = await hear_until(connection, "final")
        assert [message["type"] for message in first if message["type"] != "partial"] == ["speechStarted", "final"]
        assert first[0]["audioMs"] == 320
        assert first[-1] == {
            "type": "final",
            "text": "level50 3",
            "startMs": 320,
            "endMs": 640,
            "language": "English",
            "words": [{"word": "level50", "startMs": 320, "endMs": 410}, {"word": "3", "startMs": 420, "endMs": 510}],
        }
        await send(connection, sound((0.4, 0.64), (0, 0.64)) + sound((0.3, 0.32), (0, 0.64)))
        texts = [(await hear_until(connection, "final"))[-1] for _ in range(2)]
        assert [(one["text"], one["startMs"], one["endMs"]) for one in texts] == [("level40 6", 1280, 1920), ("level30 3", 2560, 2880)]
        await say(connection, type="stop", reason="bye")
        assert await hear(connection) == {"type": "stopped", "reason": "bye"}
        assert await closed(connection) == 1000
        async with server.http_client() as http:
            page = (await http.get("/metrics")).text
        assert 'tts_listen_turns_total{end="final"} 3.0' in page
        assert "tts_listen_final_seconds_count 3.0" in page


@pytest.mark.parametrize(("rate", "encoding"), [(8000, "pcm16"), (16000, "pcm32f"), (48000, "pcm32f"), (44100, "pcm16")])
async def test_any_rate_in_frames_of_any_length(voices: Path, rate: int, encoding: str) -> None:
    data = sound((0, 0.4), (0.5, 0.5), (0, 0.8), rate=rate, encoding=encoding)
    async with listening(voices) as server, client(server.url) as connection:
        await start(connection, sampleRate=rate, encoding=encoding)
        await send(connection, data, 7777)  # half a sample at its end
        final = (await hear_until(connection, "final"))[-1]
        assert final["text"] == "level50 5"
        assert abs(final["startMs"] - 400) <= 64


async def test_audio_in_json_is_the_same_bytes(voices: Path) -> None:
    async with listening(voices) as server, client(server.url) as connection:
        await start(connection)
        await say(connection, type="audio", data=base64.b64encode(WORD).decode())
        assert (await hear_until(connection, "final"))[-1]["text"] == "level50 3"
        await say(connection, type="audio", data="no base64")
        assert "data must be base64" in (await hear_until(connection, "error"))[-1]["message"]


async def test_audio_without_start_is_heard(voices: Path) -> None:
    async with listening(voices) as server, client(server.url) as connection:
        await send(connection, WORD)
        assert (await hear(connection))["type"] == "started"
        assert (await hear_until(connection, "final"))[-1]["text"] == "level50 3"


@pytest.mark.parametrize("started", [True, False])
async def test_what_is_said_while_the_recogniser_is_loaded_is_heard(voices: Path, started: bool) -> None:
    async with listening(voices, "load") as server, client(server.url) as connection:
        if started:
            await say(connection, type="start", language="English")
        await send(connection, sound((0, 0.32), (0.3, 0.32), (0, 0.64), (0.4, 0.64), (0, 0.64)), 1024)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await connection.recv()
        (voices.parent / "go").touch()
        assert (await hear(connection))["type"] == "started"
        assert [(await hear_until(connection, "final"))[-1]["text"] for _ in range(2)] == ["level30 3", "level40 6"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sampleRate": 96000}, "sampleRate 96000 is not supported: use 8000, "),
        ({"encoding": "opus"}, "encoding 'opus' is not supported: use pcm16, pcm32f"),
        ({"language": "Klingon"}, "language 'Klingon': this recogniser understands English, German"),
        ({"turnDetection": {"type": "magic"}}, "turnDetection.type 'magic' must be one of vad, semantic, none"),
        ({"turnDetection": {"threshold": 2}}, "turnDetection.threshold 2.0 must be from 0.05 to 0.95"),
        ({"turnDetection": {"silenceMs": 5}}, "turnDetection.silenceMs 5 must be from 100 to 5000"),
        ({"turnDetection": {"type": "semantic", "eagerness": "very"}}, "turnDetection.eagerness 'very' must be one of low, medium, high"),
        ({"turnDetection": 3}, "turnDetection 3 must be an object"),
        ({"respond": True}, "respond needs a contractId"),
    ],
)
async def test_what_start_refuses_is_named(voices: Path, fields: dict[str, Any], told: str) -> None:
    async with listening(voices) as server, client(server.url) as connection:
        await say(connection, type="start", **fields)
        error = await hear(connection)
        assert (error["type"], error["code"]) == ("error", "INVALID_MESSAGE")
        assert told in error["message"]
        await send(connection, WORD)  # it is not heard as a session with the defaults
        assert (await start(connection, language="German"))["language"] == "German"  # it lives on
        await send(connection, WORD)
        assert (await hear_until(connection, "final"))[-1]["text"] == "level50 3"


async def test_nan_is_refused_by_name_and_nothing_of_it_is_heard(voices: Path) -> None:
    async with listening(voices) as server, client(server.url) as connection:
        await start(connection, encoding="pcm32f")
        for wrong in ("nan", "inf", "-inf"):
            await connection.send(sound((0.5, 0.5), (float(wrong), 0.001), encoding="pcm32f"))
            error = await hear(connection)
            assert (error["code"], error["recoverable"]) == ("INVALID_MESSAGE", True)
            assert f"a sample of the audio is {wrong}" in error["message"]
        await send(connection, sound((0, 0.32), (0.4, 0.32), (0, 0.64), encoding="pcm32f"))
        assert (await hear_until(connection, "final"))[-1]["text"] == "level40 3"


async def test_ten_hours_in_one_message_are_refused(voices: Path) -> None:
    async with listening(voices) as server, client(server.url, max_size=None) as connection:
        await start(connection)
        await connection.send(bytes(64 * 1024 + 1))
        assert await closed(connection) == 1009
        assert connection.close_reason == "at most 65536 bytes in one message: send smaller ones"
    async with listening(voices, max_message_bytes=4 * 1024 * 1024) as server, client(server.url) as connection:
        await start(connection, sampleRate=8000)
        for message in (bytes(2 * 120 * 8000), json.dumps({"type": "audio", "data": base64.b64encode(bytes(2 * 120 * 8000)).decode()})):
            await connection.send(message)
            error = await hear(connection)
            assert (error["code"], error["recoverable"]) == ("INVALID_MESSAGE", True)
            assert error["message"].startswith("120 s of audio in one message: at most 60 s")
        await send(connection, sound((0.5, 0.32), (0, 0.64), rate=8000))
        assert (await hear_until(connection, "final"))[-1]["text"] == "level50 3"


async def test_base64_that_would_not_be_heard_is_not_decoded(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = list[int]()

    def decode(data: str, **options: bool) -> bytes:
        lengths.append(len(data))
        return real(data, **options)

    real = base64.b64decode
    fitting = base64.b64encode(bytes(2 * 60 * 8000)).decode()
    async with listening(voices, max_message_bytes=4 * 1024 * 1024) as server, client(server.url) as connection:
        await start(connection, sampleRate=8000)
        monkeypatch.setattr(base64, "b64decode", decode)
        await say(connection, type="audio", data=fitting + 4 * "A")
        assert (await hear(connection))["message"].startswith("60 s of audio in one message: at most 60 s")
        await say(connection, type="start", sampleRate=1)
        assert "sampleRate 1 is not supported" in (await hear(connection))["message"]
        await say(connection, type="audio", data="after a start that was refused nothing is heard")
        await start(connection, sampleRate=8000)
        assert lengths == []
        await say(connection, type="audio", data=fitting)
        await say(connection, type="commit")
        assert (await hear_until(connection, "final"))[-1]["endMs"] == pytest.approx(60_000, abs=64)
        assert lengths == [len(fitting)]


async def test_commit_ends_a_turn_and_is_always_answered(voices: Path) -> None:
    async with listening(voices) as server, client(server.url) as connection:
        await start(connection, turnDetection={"type": "none"})
        await send(connection, sound((0.5, 0.32), (0, 3), (0.5, 0.32), (0, 3)))
        await say(connection, type="commit")
        final = (await hear_until(connection, "final"))[-1]
        assert final["text"] == "level50 3 level50 3"
        assert [word["startMs"] // 1000 for word in final["words"]] == [0, 0, 3, 3]
        await say(connection, type="commit")
        empty = await hear(connection)
        assert (empty["type"], empty["text"], empty["startMs"]) == ("final", "", empty["endMs"])


async def test_clear_forgets(voices: Path) -> None:
    async with listening(voices, "hold") as server, client(server.url) as connection:
        await start(connection)
        await send(connection, WORD)  # over, and its final is held
        await until(lambda: server.context.ears.queued_seconds > 0)
        await send(connection, sound((0.4, 0.5)))  # open
        await say(connection, type="clear")
        await say(connection, type="commit")
        (voices.parent / "go").touch()
        assert (await hear_until(connection, "final"))[-1]["text"] == ""
        await send(connection, sound((0, 0.32), (0.3, 0.32), (0, 0.64)))
        assert (await hear_until(connection, "final"))[-1]["text"] == "level30 3"


async def test_a_model_ends_a_turn_or_silence_does(voices: Path) -> None:
    async with listening(voices) as server, client(server.url) as connection:
        await start(connection, turnDetection={"type": "semantic", "eagerness": "high"})
        await send(connection, sound((0.9, 0.32), (0, 0.256)))
        heard = [message for message in await hear_until(connection, "final") if message["type"] not in ("partial",)]
        assert [message["type"] for message in heard] == ["speechStarted", "turnPredicted", "final"]
        assert heard[1]["probability"] == 0.9
        await send(connection, sound((0.2, 0.32), (0, 0.256)))
        assert (await hear_until(connection, "turnPredicted"))[-1]["probability"] == 0.2
        await send(connection, sound((0.2, 0.32), (0, 1.1)))
        heard = await hear_until(connection, "final")
        assert [message["type"] for message in heard if message["type"] in ("turnResumed", "final")] == ["turnResumed", "final"]
        assert heard[-1]["text"] == "level20 6"


async def test_a_turn_whose_audio_stops_is_over(voices: Path) -> None:
    async with listening(voices, stalls=0.1) as server, client(server.url) as connection:
        await start(connection)
        await send(connection, sound((0.5, 0.64)))
        assert (await hear_until(connection, "final"))[-1]["text"] == "level50 6"


async def test_speech_that_is_too_short_is_none(voices: Path) -> None:
    async with listening(voices) as server, client(server.url) as connection:
        await start(connection, turnDetection={"minSpeechMs": 200})
        await send(connection, sound((0, 0.32), (0.5, 0.128), (0, 0.64)) + sound((0, 0.32), (0.09, 0.32), (0, 0.64)) + WORD)
        finals = await hear_until(connection, "final")
        assert [message["type"] for message in finals].count("speechStarted") == 3
        assert finals[-1]["text"] == "level50 3"


async def test_a_recogniser_that_dies_is_named_and_started_again_once(voices: Path) -> None:
    async with listening(voices, "die") as server, client(server.url) as connection, client(server.url.replace("listen", "speak")) as speak:
        await start(connection)
        await send(connection, WORD)
        error = (await hear_until(connection, "error"))[-1]
        assert (error["code"], error["recoverable"]) == ("RECOGNITION_ERROR", True)
        assert error["message"] == "the recogniser's process has died (signal 9); it is started again"
        await say(speak, type="speak", text="Hello.")
        assert (await utterance(speak))[1]["type"] == "complete"
        await send(connection, WORD)
        assert (await hear_until(connection, "final"))[-1]["text"] == "level50 3"
        async with server.http_client() as http:
            assert "tts_recogniser_restarts 1.0" in (await http.get("/metrics")).text


async def test_a_recogniser_that_dies_again_is_given_up(voices: Path) -> None:
    async with listening(voices, "die always") as server, client(server.url) as connection:
        await start(connection)
        for told in ("it is started again", "it died before, and is given up", "it is tried again after 60 s"):
            await send(connection, WORD)
            assert told in (await hear_until(connection, "error"))[-1]["message"]
        await say(connection, type="stop")
        assert (await hear(connection))["type"] == "stopped"


@pytest.mark.parametrize(("behaviour", "told"), [("refuse", "no such model: name another one"), ("fail", "the recogniser failed")])
async def test_a_recogniser_that_cannot_says_why(voices: Path, behaviour: str, told: str) -> None:
    async with listening(voices, behaviour) as server, client(server.url) as connection:
        await say(connection, type="start")
        if behaviour == "fail":
            assert (await hear(connection))["type"] == "started"
            await send(connection, WORD)
        error = (await hear_until(connection, "error"))[-1]
        assert error["code"] == "RECOGNITION_ERROR"
        assert told in error["message"]
        if behaviour == "refuse":
            await send(connection, WORD)
            await say(connection, type="stop")
            assert (await hear(connection))["type"] == "stopped", "and no second error for what was not heard"


async def test_a_recogniser_that_falls_behind_says_so_and_grows_no_more(voices: Path) -> None:
    async with listening(voices, "hold", most_seconds=3.0) as server, client(server.url) as connection:
        await start(connection)
        turn = sound((0.5, 0.96), (0, 0.64))
        for _ in range(4):  # two fit
            await send(connection, turn)
        await until(lambda: server.context.ears.queued_seconds > 1.5)
        assert server.context.ears.queued_seconds <= 3.0
        (voices.parent / "go").touch()
        heard: list[dict[str, Any]] = []
        while len(heard) < 4:
            message = await hear(connection)
            if message["type"] in ("final", "error"):
                heard.append(message)
        lost = [message for message in heard if message["type"] == "error"]
        assert {message["type"] for message in heard[:1]} == {"final"}
        assert lost
        assert all(message["code"] == "OVERLOADED" and message["recoverable"] for message in lost)
        await send(connection, WORD)
        assert (await hear_until(connection, "final"))[-1]["text"] == "level50 3"


async def test_stop_waits_for_the_texts_of_turns_that_are_over(voices: Path) -> None:
    async with listening(voices, "hold", grace=30.0) as server, client(server.url) as connection:
        await start(connection)
        await send(connection, WORD)
        await until(lambda: server.context.ears.queued_seconds > 0)
        await say(connection, type="stop")
        (voices.parent / "go").touch()
        heard = await hear_until(connection, "stopped")
        assert [message["type"] for message in heard][-2:] == ["final", "stopped"]


async def test_a_server_that_goes_down_tells_what_it_has_heard(voices: Path) -> None:
    async with listening(voices, "hold", grace=30.0) as server, client(server.url) as connection:
        await start(connection)
        await send(connection, WORD)
        await until(lambda: server.context.ears.queued_seconds > 0)
        pid = server.context.ears.process._process.pid
        server.stop.set()
        await until(server.context.draining.is_set)
        (voices.parent / "go").touch()
        heard = await hear_until(connection, "stopped")
        assert [message["type"] for message in heard][-2:] == ["final", "stopped"]
        assert heard[-1]["reason"] == "server_shutdown"
        assert await closed(connection) == 1012
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_nothing_is_loaded_for_somebody_unauthorised(voices: Path, tmp_path: Path) -> None:
    async with listening(voices, jwt_secret="x" * 32) as server:
        async with client(server.url) as connection:
            await say(connection, type="start", authToken="wrong")
            error = await hear(connection)
            assert (error["code"], await closed(connection)) == ("UNAUTHORIZED", 4401)
        async with client(server.url) as connection:
            await connection.send(WORD)
            assert ((await hear(connection))["code"], await closed(connection)) == ("UNAUTHORIZED", 4401)
        async with client(server.url) as connection:
            await say(connection, type="commit")
            assert ((await hear(connection))["code"], await closed(connection)) == ("UNAUTHORIZED", 4401)
        assert server.context.ears.process._running is None


async def test_without_the_extra_the_command_is_named_and_speech_works(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.listen.ears.PACKAGES", ("faster_whisper_that_is_not_there",))
    async with listening(voices) as server, connect(server.url) as connection:
        error = await hear(connection)
        assert (error["code"], error["recoverable"]) == ("RECOGNITION_ERROR", False)
        assert "pip install 'qwen3-jax[listen]'" in error["message"]
        assert await closed(connection) == 1011
        async with client(server.url.replace("listen", "speak")) as speak:
            await say(speak, type="speak", text="Hello.")
            assert (await utterance(speak))[1]["type"] == "complete"


async def test_two_clients_are_heard_side_by_side(voices: Path) -> None:
    async with listening(voices) as server, client(server.url) as one, client(server.url) as other:
        await asyncio.gather(start(one), start(other))
        await asyncio.gather(send(one, WORD), send(other, sound((0.3, 0.64), (0, 0.64))))
        assert (await hear_until(one, "final"))[-1]["text"] == "level50 3"
        assert (await hear_until(other, "final"))[-1]["text"] == "level30 6"


async def test_half_an_hour_of_silence_is_fine(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("server.ws.connected.monotonic", clock)
    async with listening(voices) as server, client(server.url) as connection:
        await start(connection)
        for _ in range(9):
            clock.now += 200  # of 300 that a client may be idle
            await connection.send(sound((0, 0.2)))
            await say(connection, type="commit")
            assert (await hear(connection))["text"] == ""
        await send(connection, WORD)
        assert (await hear_until(connection, "final"))[-1]["text"] == "level50 3"


async def test_messages_are_as_described(voices: Path) -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="comes with schemathesis")
    described = schema.asyncapi()
    names = {one.__struct_config__.tag: one.__name__ for one in schema.LISTEN_SERVER}
    told: list[dict[str, Any]] = [{"type": "start", "turnDetection": {"type": "semantic"}, "contractId": "c"}]
    async with listening(voices) as server, connect(server.url) as connection:
        heard = [await hear(connection)]
        await connection.send(json.dumps(told[0]))
        await send(connection, sound((0.9, 0.32), (0, 0.256)))
        heard += await hear_until(connection, "final")
        await say(connection, type="stop", reason=3)
        heard += await hear_until(connection, "error")
        await say(connection, type="stop")
        heard += await hear_until(connection, "stopped")
    for message in heard:
        part = {"$ref": f"#/components/schemas/{names[message['type']]}", "components": described["components"]}
        jsonschema_rs.validator_for(part).validate(message)
    assert {message["type"] for message in heard} >= {"ready", "started", "speechStarted", "turnPredicted", "final", "error", "stopped"}
