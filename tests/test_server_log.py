"""What the log and /metrics say of clients: a line for whom was served and whom was not, bounded, without texts, tokens or escapes."""

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from qwen3_jax.messages import printable
from server.ops import access, logs
from server.ops.access import AccessLog
from server.ops.metrics import Metrics
from tests.fake_engine import FakeEngine
from tests.serving import audio, client, closed, connect, hear, running, say, until, utterance
from tests.test_server_auth import SECRET, token
from tests.test_server_voices import CONSENT, sound, speech

Lines = list[dict[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The server's log, as TTS_LOG_FORMAT=json has it."""
    kept: Lines = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = self.format(record)
            assert "\n" not in text
            kept.append(json.loads(text))

    handler, logger = Keep(), logging.getLogger("server")
    handler.setFormatter(logs.JsonLines())
    handler.addFilter(logs._Context())
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield kept
    logger.setLevel(before)
    logger.removeHandler(handler)


def of(lines: Lines, message: str) -> Lines:
    return [line for line in lines if line["message"] == message]


@pytest.mark.parametrize("shown", [False, True])
async def test_a_line_for_each_request_that_speaks(voices: Path, lines: Lines, shown: bool) -> None:
    async with running(voices, FakeEngine(), jwt_secret=SECRET, log_texts=shown) as server, server.http_client() as http:
        mine = token(sub="me\x1b")
        http.headers["Authorization"] = f"Bearer {mine}"
        wanted = {"input": "A private matter.", "voice": "anna", "response_format": "wav"}
        assert (await http.post("/v1/audio/speech", json=wanted)).status_code == 200
        assert (await http.post("/v1/audio/speech", json={"input": "break"})).status_code == 500
        assert (await http.post("/v1/audio/speech", json={"input": "memory"})).status_code == 503
        assert (await http.post("/v1/audio/speech", json={"input": "private " * 999})).status_code == 400
        page = (await http.get("/metrics")).text
    spoken, broken, full = [line for line in lines if line.get("route") == "/v1/audio/speech" and line["message"].startswith("utterance c")]
    assert (spoken["voice"], spoken["characters"], spoken["audio_ms"], spoken["finish_reason"]) == ("anna", 17, 240, "eos")
    assert (spoken["status"], spoken["principal"], spoken["level"]) == (200, "jwt:me\\x1b", "INFO") and spoken["ttfa_ms"] >= 0
    assert spoken.get("text") == ("A private matter." if shown else None)
    assert (broken["message"], broken["status"], broken["finish_reason"], broken["voice"]) == ("utterance cut", 500, "error", "makima")
    assert (full["message"], full["status"], full["finish_reason"]) == ("utterance cut", 503, "error")
    assert ("rivate" in json.dumps(lines)) is shown
    for status in (200, 400, 500, 503):
        assert f'tts_requests_total{{route="/v1/audio/speech",status="{status}"}} 1.0' in page


async def test_all_audio_of_another_speed_is_counted(voices: Path, lines: Lines) -> None:
    """Most of a short utterance comes out of the filter at its end."""
    pytest.importorskip("av")
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        answer = await http.post("/v1/audio/speech", json={"input": "Hello.", "speed": 0.5, "response_format": "pcm"})
        assert (answer.status_code, len(answer.content)) == (200, 2 * 24 * 480)
        await until(lambda: of(lines, "utterance complete") != [])
        assert "tts_audio_seconds_total 0.48" in server.context.metrics.render().decode()
    assert of(lines, "utterance complete")[0]["audio_ms"] == 480


async def test_an_utterance_that_a_client_leaves_has_its_line(voices: Path, lines: Lines) -> None:
    engine = FakeEngine(gate=asyncio.Semaphore(1), frames=99)
    async with running(voices, engine) as server, server.http_client() as http:
        async with http.stream("POST", "/v1/audio/speech", json={"input": "Hello.", "response_format": "pcm"}) as answer:
            await anext(answer.aiter_raw())
        await until(lambda: of(lines, "utterance cut") != [])
    [line] = of(lines, "utterance cut")
    assert (line["finish_reason"], line["audio_ms"], line["principal"]) == ("client_left", 80, "anonymous")


async def test_a_line_for_each_utterance_and_session_of_a_websocket(voices: Path, lines: Lines) -> None:
    engine = FakeEngine(gate=asyncio.Semaphore(3))
    async with running(voices, engine, jwt_secret=SECRET) as server:
        async with client(f"{server.url}?token={token(sub='me')}") as connection:
            await say(connection, type="speak", text="A private matter.", voice="anna", requestId="1")
            await utterance(connection)
            for text in ("A private matter.", "Another private one."):
                await say(connection, type="speak", text=text)
            engine.gate.release()
            await audio(connection)
            await say(connection, type="cancel")
            assert [(await hear(connection))["code"] for _ in range(2)] == ["CANCELLED"] * 2
            await until(lambda: len(of(lines, "utterance cut")) == 2)
            await say(connection, type="speak", text="fail")
            for _ in range(2):
                engine.gate.release()
            await audio(connection)
            assert (await hear(connection))["code"] == "SYNTHESIS_ERROR"
            await say(connection, type="speak", text="Hello.")
            engine.gate.release()
            await audio(connection)
            await connection.close(4000)
            await until(lambda: of(lines, "session closed") != [])
        async with client(f"{server.url}?token={token(sub='me')}") as connection:
            await say(connection, type="stop")
            await until(lambda: len(of(lines, "session closed")) == 2)
        async with client(f"{server.url}?token={token(sub='me')}") as connection:
            connection.transport.abort()
            await until(lambda: len(of(lines, "session closed")) == 3)
    spoken = [line for line in lines if line["message"].startswith("utterance c")]
    assert [line["finish_reason"] for line in spoken] == ["eos", "cancelled", "cancelled", "error", "client_left"]
    assert [line["audio_ms"] for line in spoken] == [240, 80, 0, 80, 80]
    assert [line["voice"] for line in spoken] == ["anna", *["makima"] * 4]
    for line in spoken:
        assert (line["principal"], line["route"], line["level"]) == ("jwt:me", "/api/v1/speak", "INFO") and line["session"] != "-"
    assert [(line["code"], line["utterances"], line["principal"]) for line in of(lines, "session closed")] == [
        (4000, 5, "jwt:me"),
        (1000, 0, "jwt:me"),
        (1006, 0, "jwt:me"),
    ]
    assert of(lines, "session closed")[0]["session"] == spoken[0]["session"] and of(lines, "session closed")[0]["seconds"] >= 0
    assert "rivate" not in json.dumps(lines)


async def test_a_line_for_each_voice_that_comes_and_goes(voices: Path, lines: Lines) -> None:
    async with running(voices, FakeEngine(), jwt_secret=SECRET) as server, server.http_client() as http:
        http.headers["Authorization"] = f"Bearer {token(sub='me')}"
        made = await http.post("/api/v1/voices", files={"audio": ("a.wav", sound(speech()))}, data=CONSENT)
        voice = made.json()["id"]
        assert (await http.delete(f"/api/v1/voices/{voice}")).status_code == 204
        assert (await http.delete(f"/api/v1/voices/{voice}")).status_code == 404
    for message in ("voice uploaded", "voice deleted"):
        [line] = of(lines, message)
        assert (line["voice"], line["principal"], line["seconds"]) == (voice, "jwt:me", made.json()["durationSeconds"])


async def test_a_flood_of_sessions_is_a_few_lines(lines: Lines) -> None:
    told = AccessLog(Metrics())
    for _ in range(access.LINES + 50):
        told.session_closed({"code": 1000})
    told.summarise()
    assert len(of(lines, "session closed")) == access.LINES
    assert [line["times"] for line in of(lines, "more sessions closed")] == [50]
    told.session_closed({"code": 1000})
    assert len(of(lines, "session closed")) == access.LINES + 1
    told.summarise()


async def test_refusals_over_http(voices: Path, lines: Lines) -> None:
    chosen = {"jwt_secret": SECRET, "limit_utterances": 1, "max_upload_bytes": 1024, "max_text_chars": 10, "max_message_bytes": 1024}
    async with running(voices, FakeEngine(), **chosen) as server, server.http_client() as http:
        good = {"Authorization": f"Bearer {token()}"}
        said = {"input": "Hello."}
        for status, options in (
            (401, {"json": said, "headers": {"Authorization": "Bearer a.b.not-to-be-seen"}}),
            (401, {"json": said, "params": {"token": "not-to-be-seen"}}),
            (403, {"json": said, "headers": good | {"Origin": "http://["}}),
            (413, {"content": b" " * 5000, "headers": good}),
            (200, {"json": said, "headers": good}),
            (429, {"json": said, "headers": good}),
            (400, {"json": {"input": "a private text"}, "headers": good}),
        ):
            assert (await http.post("/v1/audio/speech", **options)).status_code == status
        assert (await http.get("/metrics")).status_code == 401
        assert (await http.get("/no/such/" + "x" * 200, headers=good)).status_code == 404
        server.context.draining.set()
        assert (await http.post("/v1/audio/speech", json=said, headers=good)).status_code in (429, 503)
        for path in ("/healthz", "/readyz"):
            await http.get(path)
        page = (await http.get("/metrics", headers=good)).text
    refused = {line["status"]: line for line in of(lines, "refused")}
    assert refused.keys() >= {400, 401, 403, 404, 413, 429}
    for line in refused.values():
        assert (line["address"], line["level"]) == ("127.0.0.1", "WARNING")
    assert refused[403]["origin"] == "http://[" and "TTS_ALLOWED_ORIGINS" in refused[403]["why"]
    assert refused[413]["reason"] == "BODY_TOO_BIG"
    assert (refused[404]["route"], len(refused[404]["path"])) == ("other", 80 + len("... (209 characters)"))
    assert "more than 1 utterances in one minute" in refused[429]["why"]
    assert (refused[429]["principal"], refused[401].get("principal")) == ("jwt:user", None)
    everything = json.dumps(lines)
    assert "not-to-be-seen" not in everything and "private" not in everything and "Traceback" not in everything
    assert "healthz" not in everything and "readyz" not in everything
    [more] = [line for line in of(lines, "refused more often than told") if line["status"] == "401"]
    assert (more["times"], more["reason"]) == (2, "UNAUTHORIZED"), "a line at the end tells of those without one"
    assert 'tts_refusals_total{reason="UNAUTHORIZED",route="/v1/audio/speech",status="401"} 2.0' in page
    assert 'tts_refusals_total{reason="UNAUTHORIZED",route="/metrics",status="401"} 1.0' in page


async def test_refusals_over_websockets(voices: Path, lines: Lines) -> None:
    chosen = {"jwt_secret": SECRET, "limit_utterances": 1, "limit_sessions": 1, "max_message_bytes": 1024, "max_text_chars": 100}
    async with running(voices, FakeEngine(), **chosen) as server:
        with pytest.raises(InvalidStatus):
            await connect(server.url, origin="http://evil.example")
        async with connect(f"{server.url}?token=not-to-be-seen") as connection:
            assert await closed(connection) == 4401
        async with client(f"{server.url}?token={token()}") as connection:
            for bad, code in (
                ({"text": "private " * 99}, "INVALID_TEXT"),
                ({"text": "private", "seed": "private"}, "INVALID_MESSAGE"),
                ({"text": "private", "language": "private"}, "INVALID_MESSAGE"),
            ):
                await say(connection, type="speak", **bad)
                assert (await hear(connection))["code"] == code
            await say(connection, type="flush")
            assert (await hear(connection))["code"] == "INVALID_MESSAGE"
            await say(connection, type="start", voice="nobody-private")
            assert (await hear(connection))["code"] == "VOICE_NOT_FOUND" and (await hear(connection))["type"] == "started"
            await say(connection, type="cancel")
            assert (await hear(connection))["code"] == "CANCELLED"
            for _ in range(2):
                await say(connection, type="speak", text="A private matter.")
                await utterance(connection)
            async with connect(f"{server.url}?token={token()}") as second:
                assert await closed(second) == 4429
            await connection.send("x" * 2000)
            assert await closed(connection) == 1009
        server.context.draining.set()
        with pytest.raises(InvalidStatus):
            await connect(server.url)
        page = server.context.metrics.render().decode()
    refused = [(line["status"], line["reason"]) for line in of(lines, "refused")]
    assert refused == [
        (403, "ORIGIN_NOT_ALLOWED"),
        (4401, "UNAUTHORIZED"),
        ("-", "INVALID_TEXT"),
        ("-", "INVALID_MESSAGE"),
        ("-", "VOICE_NOT_FOUND"),
        ("-", "RATE_LIMITED"),
        (1009, "MESSAGE_TOO_BIG"),
        (503, "GOING_AWAY"),
    ]
    origin = of(lines, "refused")[0]
    assert origin["origin"] == "http://evil.example" and "TTS_ALLOWED_ORIGINS" in origin["why"]
    assert all(line["route"] == "/api/v1/speak" for line in of(lines, "refused"))
    everything = json.dumps(lines)
    assert "not-to-be-seen" not in everything and "private" not in everything and "Traceback" not in everything
    assert 'tts_refusals_total{reason="RATE_LIMITED",route="/api/v1/speak",status="4429"} 1.0' in page
    assert 'tts_refusals_total{reason="INVALID_MESSAGE",route="/api/v1/speak",status="-"} 3.0' in page


async def test_a_text_that_the_engine_refuses_is_told_of_over_both(voices: Path, lines: Lines) -> None:
    async with running(voices, FakeEngine()) as server, server.http_client() as http, client(server.url) as connection:
        assert (await http.post("/v1/audio/speech", json={"input": "refuse"})).status_code == 400
        server.context.access.summarise()  # one line a minute for each reason and address
        await say(connection, type="speak", text="refuse")
        assert (await hear(connection))["code"] == "INVALID_TEXT"
        page = server.context.metrics.render().decode()
    refused = [(line["route"], line["reason"], line["status"]) for line in of(lines, "refused")]
    assert refused == [("/v1/audio/speech", "INVALID_TEXT", 400), ("/api/v1/speak", "INVALID_TEXT", "-")]
    for route, status in (("/v1/audio/speech", "400"), ("/api/v1/speak", "-")):
        assert f'tts_refusals_total{{reason="INVALID_TEXT",route="{route}",status="{status}"}} 1.0' in page


async def test_a_flood_of_refusals_is_a_few_lines(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    told = AccessLog(Metrics())
    for address in range(access.LINES + 50):
        for _ in range(10):
            told.refused(route="/", status=401, reason="UNAUTHORIZED", address=str(address))
    told.refused(route="/", status=503, reason="GOING_AWAY", address="0")
    assert len(of(lines, "refused")) == access.LINES
    told.summarise()
    summary = {line["reason"]: line["times"] for line in of(lines, "refused more often than told")}
    assert summary == {"UNAUTHORIZED": (access.LINES + 50) * 10 - access.LINES, "GOING_AWAY": 1}
    lines.clear()
    monkeypatch.setattr(access, "WINDOW", 0.0)
    for _ in range(2):
        told.refused(route="/", status=401, reason="UNAUTHORIZED", address="0")
    await until(lambda: len(lines) == 2)
    assert [line.get("times") for line in lines] == [None, 1], "the minute's end tells by itself"


def test_a_record_is_one_line_whatever_a_client_sent() -> None:
    evil = "a\n2026 INFO b\x1b[31m\x9b\u2028\ud800"
    record = logging.makeLogRecord(
        {
            "msg": "said %s",
            "args": (evil,),
            "fields": {"voice": evil, "n": 2, "none": None, "path": Path("/a b")},
            "session": "s",
            "levelname": "INFO",
            "name": "server",
        }
    )
    text = logs.TextLines().format(record)
    assert text.isprintable() and "none" not in text and text.endswith("n=2 path='/a b'")
    line = json.loads(logs.JsonLines().format(record))
    assert line["message"] == "said " + printable(evil) and line["voice"] == "a\\n2026 INFO b\\x1b[31m\\x9b\\u2028\\ud800"
    assert (line["n"], line["path"], line["level"], line["logger"]) == (2, "/a b", "INFO", "server")
    assert line["time"].endswith("Z")


def test_a_field_does_not_take_a_name_that_every_line_has() -> None:
    record = logging.makeLogRecord({"msg": "refused", "levelname": "INFO", "fields": {"message": "x", "level": "x", "status": 401}})
    assert {"message": "refused", "level": "INFO", "status": 401}.items() <= json.loads(logs.JsonLines().format(record)).items()


def test_hypercorn_writes_as_we_do(capsys: pytest.CaptureFixture[str]) -> None:
    from server.settings import Settings
    from server.transport import configuration

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure("json")
        asyncio.run(configuration(Settings()).log.warning("odd"))
        assert json.loads(capsys.readouterr().err)["message"] == "odd"
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name in ("server", "qwen3_jax"):
            logging.getLogger(name).setLevel(logging.NOTSET)
