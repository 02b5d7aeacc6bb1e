"""The life of a voice beside a running server: added, changed, replaced and deleted by others, at once, and while the disk fails."""

import asyncio
import errno
import os
import shutil
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from qwen3_jax.audio.samples import write_wav
from qwen3_jax.voices.choice import find_voice
from qwen3_jax.voices.layers import VoiceLayers
from server.engines.qwen3 import Qwen3Engine
from server.engines.thread import ThreadEngine
from server.settings import Settings
from server.voices.store import VoiceStore
from tests.fake_engine import LIMIT, FakeEngine
from tests.fake_service import FakeService
from tests.fake_synthesiser import FakeSynthesiser
from tests.fake_tts import FakeTTS
from tests.serving import client, hear, make_voices, prompts_of, running, say, until, utterance
from tests.test_server_voices import CONSENT, sound, speech

NEVER = 3600.0  # seconds between two looks: the test says when
CLIP = sound(speech())


def engine(tts: FakeTTS) -> Callable[[Settings, VoiceStore], Qwen3Engine]:
    return lambda settings, store: Qwen3Engine(settings, store, lambda _: FakeService(tts))


def one_at_a_time(tts: FakeTTS) -> Callable[[Settings, VoiceStore], ThreadEngine]:
    return lambda settings, store: ThreadEngine(settings, store, lambda _: FakeSynthesiser(tts))


def spoken(server: Any) -> list[str]:
    """Names of the voices of all utterances so far."""
    return [how["voice"].name for _, how in server.context.engine._service.said]


async def upload(http: httpx.AsyncClient, **more: str) -> httpx.Response:
    return await http.post("/api/v1/voices", files={"audio": ("a.wav", CLIP)}, data=CONSENT | more)


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_what_another_process_does_is_seen_within_a_moment(voices: Path) -> None:
    tts = FakeTTS()
    async with running(voices, engine(tts)) as server, client(server.url) as connection:
        store, kept = server.context.store, server.context.engine._prompts
        store.interval = 0.02
        await say(connection, type="start", voice="anna")
        assert (await hear(connection))["voice"] == "anna"
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"
        write_wav(voices / "anna" / "reference.wav", np.random.default_rng(9).normal(0, 0.1, 84000).astype(np.float32))
        before = store.voices["anna"].revision
        await until(lambda: store.voices["anna"].revision != before and "anna" not in kept.voices)
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"
        assert [name for name, _ in tts.cloned] == ["makima", "anna", "anna"], "the new recording is spoken"
        (voices / "anna" / "transcript.txt").write_text("Words.", "utf-8")
        await until(lambda: store.voices["anna"].transcript == "Words.")
        (voices / "anna" / "metadata.json").write_text('{"name": "Anna A."}', "utf-8")
        await until(lambda: store.voices["anna"].metadata.name == "Anna A.")
        await say(connection, type="speak", text="Hello.")
        await utterance(connection)
        assert tts.cloned[-1] == ("anna", "Words.")
        shutil.rmtree(voices / "anna")
        await until(lambda: "anna" not in store.voices and "anna" not in kept.voices)
        assert len(prompts_of(voices)) == 1
        async with server.http_client() as http:
            assert code(await http.get("/api/v1/voices/anna/sample.wav")) == (404, "VOICE_NOT_FOUND")
            assert [one["id"] for one in (await http.get("/api/v1/voices")).json()["voices"]] == ["makima"]
            assert code(await http.post("/v1/audio/speech", json={"input": "Hi.", "voice": "anna"})) == (404, "VOICE_NOT_FOUND")
        for number in ("1", "2"):  # the session lives on, and hears of it each time
            await say(connection, type="speak", text="Hello.", requestId=number)
            error = await hear(connection)
            assert (error["code"], error["requestId"], error["recoverable"]) == ("VOICE_NOT_FOUND", number, True)
            assert (await utterance(connection))[1]["requestId"] == number
        make_voices(voices.parent / "again")
        (voices.parent / "again" / "anna").rename(voices / "anna")
        await until(lambda: "anna" in store.voices)
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"
        await say(connection, type="speak", text="Hello.", voice="gone")
        assert (await hear(connection))["code"] == "VOICE_NOT_FOUND"
        assert (await utterance(connection))[1]["type"] == "complete"
        assert spoken(server) == ["anna", "anna", "anna", "makima", "makima", "anna", "anna"], "the session's own voice is its default"


@pytest.mark.parametrize("make", [engine, one_at_a_time])
async def test_a_voice_that_went_a_moment_ago_is_not_found_either(make: Callable[..., Any], voices: Path) -> None:
    """The listing still has it."""
    async with running(voices, make(FakeTTS())) as server, client(server.url) as connection:
        server.context.store.interval = NEVER
        await asyncio.to_thread(server.context.store.refresh, now=True)
        for name in ("anna", "boris"):
            if name == "boris":
                (make_voices(voices.parent / "again") / "anna").rename(voices / "boris")
                await asyncio.to_thread(server.context.store.refresh, now=True)
            shutil.rmtree(voices / name)
            async with server.http_client() as http:
                assert code(await http.get(f"/api/v1/voices/{name}/sample.wav")) == (404, "VOICE_NOT_FOUND")
                assert code(await http.post("/v1/audio/speech", json={"input": "Hi.", "voice": name})) == (404, "VOICE_NOT_FOUND")
            await say(connection, type="speak", text="Hello.", voice=name, requestId="r")
            error = await hear(connection)
            assert (error["code"], error["requestId"], error["recoverable"]) == ("VOICE_NOT_FOUND", "r", True)
            assert str(voices) not in error["message"]
            heard, complete = await utterance(connection)
            assert heard and (complete["type"], complete["requestId"]) == ("complete", "r"), "in the default voice"
        assert server.context.engine._prompts.voices == ["makima"]
        assert len(prompts_of(voices)) == 1


async def test_the_last_voice_goes(voices: Path) -> None:
    """The session says so, and lives on."""
    async with running(voices, engine(FakeTTS())) as server, client(server.url) as connection:
        for name in ("anna", "makima"):
            shutil.rmtree(voices / name)
        await until(lambda: not server.context.store.voices)
        for _ in range(2):
            await say(connection, type="speak", text="Hello.", requestId="r")
            error = await hear(connection)
            assert (error["code"], error["requestId"]) == ("VOICE_NOT_FOUND", "r")


async def test_text_that_is_still_being_written_goes_on_in_the_default_voice(voices: Path) -> None:
    async with running(voices, engine(FakeTTS())) as server, client(server.url) as connection:
        server.context.store.interval = NEVER
        await asyncio.to_thread(server.context.store.refresh, now=True)
        shutil.rmtree(voices / "anna")
        await say(connection, type="speak", text="Words as ", voice="anna", requestId="r", **{"continue": True})
        assert (await hear(connection))["code"] == "VOICE_NOT_FOUND"
        await say(connection, type="speak", text="they come.", requestId="r", **{"continue": True})
        await say(connection, type="flush", requestId="r")
        heard, complete = await utterance(connection)
        assert (complete["type"], complete["charactersProcessed"]) == ("complete", len("Words as they come."))
        assert len(heard) == 2 * 4 * (len("Words as they come.") + 1)


async def test_deletes_at_once_and_twice(voices: Path) -> None:
    async with running(voices, engine(FakeTTS())) as server, server.http_client() as http:
        made = [(await upload(http)).json()["id"] for _ in range(4)]
        assert len(prompts_of(voices)) == 5
        paths = [f"/api/v1/voices/{one}" for one in made]
        statuses = [answer.status_code for answer in await asyncio.gather(*(http.delete(path) for path in paths[:2]))]
        assert statuses == [204, 204]
        for path in paths[2:]:
            statuses = sorted(answer.status_code for answer in await asyncio.gather(*(http.delete(path) for _ in range(4))))
            assert statuses == [204, 404, 404, 404]
        assert code(await http.delete(paths[0])) == (404, "VOICE_NOT_FOUND")
        assert server.context.engine._prompts.voices == ["makima"]
        assert len(prompts_of(voices)) == 1
        assert sorted(os.listdir(voices)) == ["anna", "makima"]


async def test_deletes_by_two_servers_at_once(voices: Path) -> None:
    async with running(voices, FakeEngine()) as one, running(voices, FakeEngine()) as other:
        async with one.http_client() as http, other.http_client() as second:
            made = [(await upload(http)).json()["id"] for _ in range(6)]
            await asyncio.to_thread(other.context.store.refresh, now=True)
            calls = [asking.delete(f"/api/v1/voices/{name}") for name in made for asking in (http, second)]
            answers = await asyncio.gather(*calls)
    pairs = [sorted(answer.status_code for answer in answers[start : start + 2]) for start in range(0, 12, 2)]
    assert pairs == [[204, 404]] * 6
    assert sorted(os.listdir(voices)) == ["anna", "makima"]


async def test_an_upload_that_is_deleted_while_it_is_prepared(voices: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(FakeTTS):
        def create_voice(self, *given: Any, **more: Any) -> Any:
            if more["name"].startswith("v-"):
                begun.set()
                assert go_on.wait(LIMIT)
            return super().create_voice(*given, **more)

    async with running(voices, engine(Slow())) as server, server.http_client() as http:
        uploading = asyncio.create_task(upload(http))
        assert await asyncio.to_thread(begun.wait, LIMIT)
        [made] = [name for name in os.listdir(voices) if name.startswith("v-")]
        assert (await http.delete(f"/api/v1/voices/{made}")).status_code == 204
        go_on.set()
        assert code(await uploading) == (404, "VOICE_NOT_FOUND")
        assert server.context.engine._prompts.voices == ["makima"]
        assert len(prompts_of(voices)) == 1
        assert sorted(os.listdir(voices)) == ["anna", "makima"]


async def test_an_upload_that_is_refused_when_it_has_been_deleted(voices: Path) -> None:
    class Deleting(FakeEngine):
        async def prepare(self, voice: Any) -> None:
            shutil.rmtree(voices / voice.id)
            await super().prepare(voice)

    async with running(voices, Deleting(refuses_voice=True)) as server, server.http_client() as http:
        assert code(await upload(http)) == (422, "VOICE_REFUSED")
        server.context.engine.refuses_voice = False
        assert code(await upload(http)) == (404, "VOICE_NOT_FOUND")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
async def test_a_folder_that_cannot_be_listed_for_a_moment(
    number: int, voices: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(voices, engine(FakeTTS())) as server, client(server.url) as connection:
        async with server.http_client() as http:
            store, kept = server.context.store, server.context.engine._prompts
            listed, failing = os.listdir, True

            def fail(path: Any) -> list[str]:
                if failing and os.fspath(path) == str(voices):
                    raise OSError(number, os.strerror(number))
                return listed(path)

            monkeypatch.setattr("os.listdir", fail)
            store.interval = 0.02
            await until(lambda: store.failures >= 3)
            assert [one["id"] for one in (await http.get("/api/v1/voices")).json()["voices"]] == ["anna", "makima"]
            await say(connection, type="speak", text="Hello.", voice="anna")
            assert (await utterance(connection))[1]["type"] == "complete"
            assert set(kept.voices) == {"anna", "makima"} and len(prompts_of(voices)) == 2
            counted = next(line for line in (await http.get("/metrics")).text.splitlines() if line.startswith("tts_voice_failures "))
            assert float(counted.split()[1]) >= 3
            failing = False
            shutil.rmtree(voices / "anna")
            await until(lambda: "anna" not in store.voices)
    told = [record for record in caplog.records if "cannot be listed" in record.getMessage()]
    assert len(told) == 1 and told[0].levelname == "ERROR", "a long outage is one line"


@pytest.mark.parametrize("make", [engine, one_at_a_time])
async def test_what_is_broken_at_start_is_left_out(make: Callable[..., Any], voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    (voices / "makima" / "metadata.json").write_text("[]", "utf-8")
    (voices / "x[y]").mkdir()
    shutil.copy(voices / "anna" / "reference.wav", voices / "x[y]")
    async with running(voices, make(FakeTTS())) as server, client(server.url) as connection:
        await say(connection, type="start", voice="makima")
        assert (await hear(connection))["code"] == "VOICE_NOT_FOUND"
        assert (await hear(connection))["voice"] == "anna"
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"
    assert "makima/metadata.json is not a voice's metadata" in caplog.text
    assert "an id is 1 to 64 letters" in caplog.text


@pytest.mark.parametrize("make", [engine, one_at_a_time])
async def test_a_default_voice_that_cannot_be_cloned_does_not_stop_the_server(make: Callable[..., Any], voices: Path) -> None:
    class Picky(FakeTTS):
        def create_voice(self, audio_in: Any, transcript: str | None = None, **more: Any) -> Any:
            if more["name"] == "makima":
                raise ValueError("reference audio is silent: -90 dBFS RMS")
            return super().create_voice(audio_in, transcript, **more)

    class Synthesiser(FakeSynthesiser):
        def clone(self, wav: bytes, transcript: str | None, name: str) -> Any:
            from server.engines.base import Refused

            try:
                return super().clone(wav, transcript, name)
            except ValueError as error:
                raise Refused(str(error)) from error

    chosen = make(Picky()) if make is engine else lambda settings, store: ThreadEngine(settings, store, lambda _: Synthesiser(Picky()))
    async with running(voices, chosen) as server, client(server.url) as connection:
        assert list(server.context.store.voices) == ["anna"]
        await say(connection, type="speak", text="Hello.")
        assert (await utterance(connection))[1]["type"] == "complete"


@pytest.mark.parametrize("make", [engine, one_at_a_time])
async def test_damaged_prompts_are_nobodys_error(make: Callable[..., Any], voices: Path) -> None:
    async with running(voices, make(FakeTTS())) as server:
        await server.context.engine.prepare(server.context.store.voices["anna"])
    assert len(prompts_of(voices)) == 2
    for path in prompts_of(voices):
        path.write_bytes(path.read_bytes()[:-5])
    tts = FakeTTS()
    async with running(voices, make(tts)) as server, client(server.url) as connection:
        await say(connection, type="speak", text="Hello.", voice="anna")
        assert (await utterance(connection))[1]["type"] == "complete"
    assert [name for name, _ in tts.cloned] == ["makima", "anna"]


async def test_an_upload_where_nothing_can_be_written(voices: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    async with running(voices, FakeEngine()):
        assert "cannot be kept" not in caplog.text
    async with running(tmp_path / "file" / "voices", FakeEngine(), shipped_voices=True) as server:
        assert f"new voices cannot be kept in {tmp_path / 'file' / 'voices'}, so uploads will fail: let the server's user" in caplog.text
        async with server.http_client() as http:
            answer = await upload(http)
            assert code(answer) == (500, "STORAGE_FAILED")
            assert str(tmp_path) not in answer.text
            assert server.context.store.failures >= 2, "one for the folder, which cannot be listed either"
    [line] = [record for record in caplog.records if "could not be kept" in record.getMessage()]
    assert str(tmp_path / "file" / "voices") in line.getMessage() and "TTS_VOICES_DIR" in line.getMessage()
    assert line.exc_info is None, "a line, no traceback"


async def test_what_is_uploaded_is_there_for_the_shell_and_the_other_way_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server in an empty folder, without any setting."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    user = tmp_path / "data" / "qwen3-jax" / "voices"
    async with running(None, engine(FakeTTS()), shipped_voices=True) as server:
        async with server.http_client() as http:
            made = (await upload(http)).json()["id"]
            assert (user / made / "reference.wav").is_file() and os.listdir(tmp_path / "work") == []
            tts = FakeTTS()
            find_voice(tts, made, VoiceLayers.of())
            assert [name for name, _ in tts.cloned] == [made]
            make_voices(tmp_path / "more")
            (tmp_path / "more" / "anna").rename(user / "anna")
            server.context.store.interval = 0.02
            await until(lambda: "anna" in server.context.store.voices)
            listed = [one["id"] for one in (await http.get("/api/v1/voices")).json()["voices"]]
            assert listed == sorted([made, "anna", "emma", "george", "heart", "makima"])
            find_voice(tts, None, VoiceLayers.of(), tell=lambda _: None)
            assert tts.cloned[-1][0] == "makima", "what the server has done hides nothing"


@pytest.mark.parametrize("name", ["My Voice", "Élise", "声音", "a link"])
async def test_names_of_any_script_over_the_socket_and_http(name: str, tmp_path: Path, voices: Path) -> None:
    folder = tmp_path / "[a] *" / "voices"
    shutil.copytree(voices, folder)
    if name == "a link":
        (folder / name).symlink_to(voices / "anna", target_is_directory=True)
    else:
        shutil.copytree(folder / "anna", folder / unicodedata.normalize("NFD", name))
    async with running(folder, engine(FakeTTS())) as server, client(server.url) as connection:
        assert sorted(VoiceLayers.of(folder, shipped=False).look().voices) == sorted([name, "anna", "makima"])
        async with server.http_client() as http:
            assert name in [one["id"] for one in (await http.get("/api/v1/voices")).json()["voices"]]
            for form in ("NFC", "NFD"):
                asked = unicodedata.normalize(form, name)
                assert (await http.get(f"/api/v1/voices/{quote(asked)}/sample.wav")).status_code == 200
                answer = await http.post("/v1/audio/speech", json={"input": "Hi.", "voice": asked.upper(), "response_format": "wav"})
                assert answer.status_code == 200
                await say(connection, type="start", voice=asked)
                assert (await hear(connection))["voice"] == name
                await say(connection, type="speak", text="Hello.")
                assert (await utterance(connection))[1]["type"] == "complete"
        assert set(spoken(server)) == {name}


async def test_a_disk_that_does_not_answer_holds_nobody_up(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(voices, engine(FakeTTS())) as server, client(server.url) as connection:
        store, released, looking = server.context.store, threading.Event(), threading.Event()
        look = store.layers.look

        def hang(*given: Any) -> Any:
            looking.set()
            released.wait(LIMIT)
            return look(*given)

        monkeypatch.setattr(store.layers, "look", hang)
        monkeypatch.setattr("server.voices.store.PATIENCE", 0.05)
        store.interval = 0.02
        assert await asyncio.to_thread(looking.wait, LIMIT)
        try:
            async with server.http_client() as http:
                assert (await http.get("/healthz")).status_code == 200
                assert len((await http.get("/api/v1/voices")).json()["voices"]) == 2
            await say(connection, type="speak", text="Hello.", voice="gone")
            assert (await hear(connection))["code"] == "VOICE_NOT_FOUND"
            assert (await utterance(connection))[1]["type"] == "complete"
        finally:
            released.set()
