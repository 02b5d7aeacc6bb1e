"""What somebody meets who has never seen this server: its front page, its errors, its command line, its first start."""

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from server import __main__, run
from server.admission import loading
from server.app import create_app
from server.http.page import LINKS
from server.settings import Settings
from server.ws import protocol
from tests.fake_engine import FakeEngine
from tests.serving import client, hear, running, say, until
from tests.test_server_auth import SECRET


async def test_the_front_page(voices: Path) -> None:
    """Of whoever has no browser; tests/test_page_parts.py has the browser's."""
    async with running(voices, FakeEngine(), jwt_secret=SECRET) as server, server.http_client() as http:
        answer = await http.get("/")
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
        assert SECRET not in answer.text and f"{server.http}/v1/audio/speech" in answer.text
        assert "/api/v1/speak" in answer.text and "Bearer KEY" in answer.text
        links = re.findall(r"^(/\S+):", answer.text, re.M)
        assert links == [path for path, _ in LINKS]
        for link in links:
            assert (await http.get(link)).status_code in (200, 401)
        assert (await http.get("/", headers={"Origin": "http://evil.example"})).status_code == 403
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        assert "Bearer" not in (await http.get("/")).text
        for path in ("/", "/page/app.js"):
            assert (await http.get(path, headers={"Host": "evil.example"})).status_code == 403


async def test_the_websocket_opened_as_a_page(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        answer = await http.get("/api/v1/speak")
        assert (answer.status_code, answer.headers["Upgrade"]) == (426, "websocket")
        assert "this is a WebSocket" in answer.json()["error"]["message"]
        assert (await http.get("/v1/audio/models")).json() == (await http.get("/v1/models")).json()
        async with client(server.url):
            pass


async def test_a_method_that_a_path_has_not_is_told_those_that_it_has(voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        answer = await http.get("/v1/audio/speech")
        assert (answer.status_code, answer.headers["Allow"]) == (405, "OPTIONS, POST")
        assert answer.json()["error"]["message"] == "GET is not for this path: use OPTIONS, POST"


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"response_format": "ogg"}, "response_format", "response_format 'ogg' must be one of aac, flac, mp3, opus, pcm, wav"),
        ({"speed": 9}, "speed", "speed 9 must be a number from 0.25 to 4"),
        ({"speed": "fast"}, "speed", "speed 'fast' must be a number from 0.25 to 4"),
        ({"seed": 2**32}, "seed", "seed 4294967296 must be a whole number from -1 to 4294967295"),
        ({"voice": {"id": 5}}, "voice", "voice {'id': 5} must be a text of at most 128 characters or an object with id"),
        ({"input": None}, "input", "input is missing: input must be a text"),
        ({"input": ""}, "input", "must be 1 to 4096"),
        ({"voice": "nobody"}, "voice", "is not here"),
    ],
)
async def test_errors_say_what_is_allowed(body: dict[str, Any], param: str, said: str, voices: Path) -> None:
    async with running(voices, FakeEngine()) as server, server.http_client() as http:
        error = (await http.post("/v1/audio/speech", json={"input": "Hello."} | body)).json()["error"]
    assert error["param"] == param and said in error["message"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ('"text": "a", "temperature": 11', "temperature 11 must be a number from 0 to 10"),
        ('"text": "a", "topP": 2', "topP 2 must be a number from 1e-20 to 1"),
        ('"text": "a", "topK": "x"', "topK 'x' must be a whole number from 0 to 2048"),
        ('"text": "a", "priority": "urgent"', "priority 'urgent' must be one of high, normal"),
        ('"text": "a", "continue": 5', "continue 5 must be true or false"),
        ("", "text is missing: text must be a text"),
    ],
)
def test_messages_say_what_is_allowed(fields: str, said: str) -> None:
    with pytest.raises(protocol.InvalidMessage, match=f"^{re.escape(said)}$"):
        protocol.parse(f'{{"type": "speak"{"," if fields else ""} {fields}}}')
    with pytest.raises(protocol.InvalidMessage, match="^type is missing: type must be one of "):
        protocol.parse("{}")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SLOTS", "zero", "TTS_SLOTS = 'zero': must be a whole number from 1 to 256"),
        ("SLOTS", "257", "TTS_SLOTS = '257': must be a whole number from 1 to 256"),
        ("MAX_QUEUE", "0", "TTS_MAX_QUEUE = '0': must be a whole number of 1 or more"),
        ("GRACE", "x", "TTS_GRACE = 'x': must be a number more than 0, at most 3600"),
        ("LOAD", "later", "TTS_LOAD = 'later': must be one of start, lazy"),
        ("LOG_TEXTS", "maybe", "TTS_LOG_TEXTS = 'maybe': must be one of true, false"),
        ("SUPABASE_URL", "abc", "TTS_SUPABASE_URL = 'abc': must be the https address of a project: https://PROJECT.supabase.co"),
    ],
)
def test_settings_say_what_is_allowed(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"TTS_{name}", value)
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        run.settings_of()


@pytest.mark.parametrize("setting", ["api_keys", "jwt_public_key", "jwt_rsa_public_key"])
def test_a_file_of_keys_that_is_not_there(setting: str, voices: Path, tmp_path: Path) -> None:
    for file in (tmp_path / "none", tmp_path):
        settings = Settings(voices_dir=voices, shipped_voices=False, **{setting: str(file)})
        with pytest.raises(OSError, match=f"^TTS_{setting.upper()} = .*: (No such file|Is a directory).*(key NAME|PEM)"):
            create_app(settings, FakeEngine())


async def test_a_wrong_key_is_no_such_key(voices: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"me:{'0' * 64}\n")
    both = {"api_keys": keys, "jwt_secret": SECRET}
    for chosen, token, said in (
        ({"api_keys": keys}, "tts-wrong", "no such key"),
        ({"api_keys": keys}, "a.b.c", "no such key"),
        (both, "tts-wrong", "no such key"),
        (both, "a.b.c", "the token is not valid"),
        ({"jwt_secret": SECRET}, "tts-wrong", "no such key: this server takes JWTs"),
    ):
        async with running(voices, FakeEngine(), **chosen) as server, server.http_client() as http:
            answer = await http.get("/v1/models", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 401 and answer.json()["error"]["message"].startswith(said)


async def test_a_first_start_says_what_takes_so_long(
    voices: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server")
    monkeypatch.setattr(loading, "LINE_SECONDS", 0.01)
    engine = FakeEngine(hold_loading=True)
    async with running(voices, engine, wait=False) as server, server.http_client() as http:
        async with client(server.url) as connection:
            for quick, wait in ((1e9, 2000), (0.0, 15000)):
                monkeypatch.setattr(loading, "QUICK_SECONDS", quick)
                answer = await http.post("/v1/audio/speech", json={"input": "Hello."})
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, str(wait // 1000))
                await say(connection, type="speak", text="Hello.")
                told = await hear(connection)
                assert (told["code"], told["retryAfterMs"]) == ("MODEL_LOADING", wait)
                for message in (told["message"], answer.json()["error"]["message"]):
                    assert "the first start compiles for about two minutes" in message
        await until(lambda: sum("still loading" in record.getMessage() for record in caplog.records) >= 2)
        engine.load().set_result(None)
        await asyncio.sleep(0)


@pytest.mark.parametrize("name", ["demo", "key", "settings", "warm", "health"])
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    __main__.command([name, "--help"])
    told = capsys.readouterr()
    assert f"python -m server {name}" in told.out and told.err == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--browser"], "error: demo takes --no-browser or nothing, and '--browser' was given: python -m server demo --no-browser"),
        (
            ["sttings"],
            "error: no command 'sttings': there are demo, health, key NAME, settings, warm and --help; without a command it serves",
        ),
        (["key"], "error: key needs one NAME"),
        (["key", "a", "b"], "error: key needs one NAME"),
        (["--port", "9000"], "error: no option '--port': settings are environment variables, such as TTS_PORT; "),
        (["--log-format=json"], "error: no option '--log-format=json': settings are environment variables, such as TTS_LOG_FORMAT; "),
        (["settings", "x"], "error: settings takes nothing else, and 'x' was given"),
    ],
)
def test_a_command_line_that_is_none_of_ours(arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        __main__.command(arguments)
    assert str(ended.value).startswith(said) and "\n" not in str(ended.value)
