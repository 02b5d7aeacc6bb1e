"""The default language and voice that an operator sets, and languages that a model does not speak: refused with what there is."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.engines import qwen3
from server.engines.qwen3 import Qwen3Engine
from server.engines.thread import ThreadEngine
from server.settings import Settings
from server.voices.store import VoiceStore
from tests.fake_engine import LIMIT, FakeEngine
from tests.fake_service import FakeService
from tests.fake_synthesiser import FakeSynthesiser
from tests.fake_tts import FakeTTS
from tests.serving import client, connect, hear, make_voices, running, say, utterance

ELSEWHERE = "Qwen/Qwen3-TTS-12Hz-0.6B-Base speaks German"
ENGLISH = ("English",)


def many(tts: FakeTTS) -> Callable[[Settings, VoiceStore], Any]:
    return lambda settings, store: Qwen3Engine(settings, store, lambda _: FakeService(tts))


def one(tts: FakeTTS) -> Callable[[Settings, VoiceStore], Any]:
    return lambda settings, store: ThreadEngine(settings, store, lambda _: FakeSynthesiser(tts))


async def served(voices: Path, make: Callable[..., Any], **chosen: Any) -> None:
    """Return when a server has ended by itself; a client speaks, in case that it has not begun to load."""
    async with running(voices, make, **chosen) as server:
        async with connect(server.url) as connection:
            await hear(connection)
            await say(connection, type="speak", text="Hello.")
            assert (await hear(connection))["code"] in ("MODEL_LOADING", "SYNTHESIS_ERROR")
        assert server.task is not None
        await asyncio.wait_for(server.task, LIMIT)


@pytest.mark.parametrize("load", ["start", "lazy"])
async def test_a_default_language_that_the_model_does_not_speak_ends_the_server(
    load: str, voices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tts = FakeTTS(languages=("english",))
    monkeypatch.setattr(qwen3, "load_for", lambda *_, **__: tts)  # and what compiles comes later: nothing of it is there
    chosen = {"default_language": "de", "load": load}
    for make in (lambda settings, store: Qwen3Engine(settings, store, qwen3.load), one(tts)):
        with pytest.raises(ValueError, match=f"^TTS_DEFAULT_LANGUAGE: language 'de': this model speaks English, or Auto; {ELSEWHERE}$"):
            await served(voices, make, wait=load == "start", **chosen)


@pytest.mark.parametrize("make", [many, one])
async def test_a_default_voice_that_is_not_there_is_an_error_only_where_it_was_set(make: Callable[..., Any], tmp_path: Path) -> None:
    voices = make_voices(tmp_path / "voices", "anna", "berta")
    models = [(FakeTTS(), "anna, berta")]
    if make is many:
        models.append((FakeTTS(model_type="custom_voice", speakers=("Ryan", "Vivian")), "Ryan, Vivian"))
    for tts, there in models:
        with pytest.raises(ValueError, match=f"^TTS_DEFAULT_VOICE = 'nobody': no such voice: use one of {there}$"):
            async with running(voices, make(tts), default_voice="nobody"):
                pass
        async with running(voices, make(tts)) as server:
            assert server.context.default_voice(None) == there.split(", ")[0]


async def test_makima_speaks_where_the_default_voice_has_gone(voices: Path) -> None:
    async with running(voices, FakeEngine(), default_voice="zoe") as server:
        assert server.context.default_voice(None) == "makima"


async def test_a_language_that_the_model_does_not_speak_is_refused_alike(voices: Path) -> None:
    engine = FakeEngine(languages=ENGLISH)
    async with running(voices, engine) as server, server.http_client() as http, client(server.url) as connection:
        for language, said in (("German", f"this model speaks English, or Auto; {ELSEWHERE}"), ("Klingon", "speaks English, or Auto")):
            answer = (await http.post("/v1/audio/speech", json={"input": "Hello.", "language": language})).json()["error"]
            assert (answer["code"], answer["param"]) == ("INVALID_LANGUAGE", "language") and answer["message"].endswith(said)
            for message in ({"type": "start"}, {"type": "speak", "text": "Hello."}, {"type": "speak", "text": "Hel", "continue": True}):
                await say(connection, **message, language=language)
                error = await hear(connection)
                assert (error["code"], error["message"]) == ("INVALID_MESSAGE", answer["message"])
        assert engine.requests == [], "nothing is spoken"
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"
    assert [request.language for request in engine.requests] == ["English"]


async def test_a_model_without_english_chooses_where_nobody_has_set_a_language(voices: Path) -> None:
    engine = FakeEngine(languages=("Chinese",))
    async with running(voices, engine) as server, server.http_client() as http, client(server.url) as connection:
        assert (await http.post("/v1/audio/speech", json={"input": "Hello."})).status_code == 200
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"
    assert [request.language for request in engine.requests] == ["Auto", "Auto"]
