"""The one-at-a-time engine: its thread, its queue, voices and their prompts, faults."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_jax.audio.samples import to_pcm16, write_wav
from server.engines import factory
from server.engines.base import Crowded, EngineClosed, OutOfMemory, Refused, SpeechRequest
from server.engines.qwen3 import Qwen3Engine
from server.engines.thread import ThreadEngine
from server.settings import Settings
from server.voices.store import VoiceStore
from tests.fake_engine import LIMIT
from tests.fake_synthesiser import FakeSynthesiser
from tests.fake_tts import FakeTTS, Gate, tone
from tests.serving import audio, client, hear, prompts_of, running, say, until, utterance


@asynccontextmanager
async def engine_of(voices: Path, tts: FakeTTS, **chosen: Any) -> AsyncIterator[ThreadEngine]:
    settings = Settings(voices_dir=voices, **chosen)

    def make(device: str | None) -> FakeSynthesiser:
        tts.device = device
        return FakeSynthesiser(tts)

    engine = ThreadEngine(settings, VoiceStore(voices), make)
    try:
        await asyncio.wait_for(engine.load(), LIMIT)
        yield engine
    finally:
        engine.close()


def request(engine: ThreadEngine, text: str, voice: str = "makima", **more: Any) -> SpeechRequest:
    return SpeechRequest(text=text, voice=engine._store.voices[voice], language="English", **more)


async def collect(handle: Any) -> list[np.ndarray]:
    async with asyncio.timeout(LIMIT):
        return [piece async for piece in handle]


async def test_a_request_reaches_the_model_and_its_pieces_come_back(voices: Path) -> None:
    tts = FakeTTS()
    async with engine_of(voices, tts) as engine:
        assert (engine.state, engine.languages, engine.presets) == ("ready", ("English", "German"), None)
        handle = engine.submit(request(engine, "Hello.", "anna", seed=5, draw={"temperature": 0.5}))
        pieces = await collect(handle)
        assert [piece[0] for piece in pieces] == [tone(index)[0] for index in range(3)]
        assert (handle.finish_reason, handle.failure) == ("eos", None)
    [stream] = [stream.request for stream in tts.streams]
    assert (stream.text, stream.voice.name, stream.language, stream.seed) == ("Hello.", "anna", "English", 5)
    assert (stream.sampling.temperature, stream.sampling.top_k) == (0.5, 50)
    assert tts.warm == ["makima"]
    assert tts.cloned == [("makima", "Good evening."), ("anna", None)]


async def test_prompts_are_kept_in_the_cache_until_the_model_or_the_recording_changes(voices: Path) -> None:
    first = FakeTTS()
    async with engine_of(voices, first) as engine:
        await engine.prepare(engine._store.voices["makima"])
        assert len(first.cloned) == 1, "a voice is cloned once"
    [kept] = prompts_of(voices)
    second = FakeTTS()
    async with engine_of(voices, second) as engine:
        await collect(engine.submit(request(engine, "Hello.")))
    assert second.cloned == []
    assert second.streams[0].request.voice.name == "makima"
    other = FakeTTS(fingerprint="another model")
    async with engine_of(voices, other):
        assert len(other.cloned) == 1
    assert len(prompts_of(voices)) == 2 and kept in prompts_of(voices), "the first model's is of use to that"
    (voices / "makima" / "transcript.txt").write_text("Good morning.", "utf-8")
    changed = FakeTTS(fingerprint="another model")
    async with engine_of(voices, changed):
        assert changed.cloned == [("makima", "Good morning.")]
    assert len(prompts_of(voices)) == 1, "nothing is kept of another transcript"
    assert sorted(path.name for path in (voices / "makima").iterdir()) == ["reference.wav", "transcript.txt"]


async def test_the_least_recently_used_voice_leaves_the_cache(voices: Path) -> None:
    """The specification's 7.1.1: room for two; a, b, a, c -> b is gone."""
    for name in ("a", "b", "c"):
        (voices / name).mkdir()
        write_wav(voices / name / "reference.wav", tone(3).repeat(40))
    async with engine_of(voices, FakeTTS(), voice_cache=2) as engine:
        for name in ("a", "b", "a", "c"):
            await engine.prepare(engine._store.voices[name])
        assert engine._prompts.voices == ["a", "c"]
        engine.forget("a")
        await engine.prepare(engine._store.voices["c"])
        assert engine._prompts.voices == ["c"]


async def test_high_goes_before_waiting_normal_ones(voices: Path) -> None:
    tts = FakeTTS(gate=threading.Semaphore(1))
    assert tts.gate is not None
    async with engine_of(voices, tts) as engine:
        handles = [engine.submit(request(engine, "first"))]
        await asyncio.wait_for(handles[0].begin(), LIMIT)
        handles += [engine.submit(request(engine, text, high=text == "high")) for text in ("normal", "high")]
        assert (engine.active, engine.queued) == (1, 2)
        tts.gate.release(8)
        for handle in handles:
            await collect(handle)
        assert [stream.request.text for stream in tts.streams] == ["first", "high", "normal"]


async def test_a_full_buffer_holds_the_thread_back(voices: Path) -> None:
    gate, held = Gate(0), threading.Event()
    async with engine_of(voices, FakeTTS(pieces=30, gate=gate), max_buffer_ms=400) as engine:
        handle = engine.submit(request(engine, "Long."))
        wait = handle._changed.wait

        def hold(timeout: float | None = None) -> bool:
            held.set()
            return wait(timeout)

        handle._changed.wait = hold  # type: ignore[method-assign]  # called where there is no room
        gate.release(30)
        await until(held.is_set)
        assert len(handle._pieces) == 5
        pieces = [await anext(handle)]
        await until(lambda: gate.asked == 7)  # it goes on with one more, and takes the next to where it waits again
        assert len(handle._pieces) <= 5
        pieces += await collect(handle)
        assert len(pieces) == 30


async def test_cancel_in_the_queue_and_while_speaking(voices: Path) -> None:
    tts = FakeTTS(pieces=50, gate=threading.Semaphore(1))
    assert tts.gate is not None
    async with engine_of(voices, tts) as engine:
        spoken, waiting = engine.submit(request(engine, "spoken")), engine.submit(request(engine, "waiting"))
        await anext(spoken)
        for handle in (spoken, waiting):
            handle.cancel()
        tts.gate.release(1)
        assert await collect(spoken) == []
        assert await collect(waiting) == []
        assert (spoken.finish_reason, waiting.finish_reason) == ("cancelled", "cancelled")
        assert [stream.request.text for stream in tts.streams] == ["spoken"]
        assert tts.streams[0].closed.is_set()


async def test_whatever_the_thread_dies_of_is_told_and_the_next_utterance_is_spoken(voices: Path) -> None:
    async with engine_of(voices, FakeTTS()) as engine:
        for text, kind in (("fail", RuntimeError), ("kill", SystemExit), ("refuse", Refused)):
            handle = engine.submit(request(engine, text))
            await collect(handle)
            assert isinstance(handle.failure, kind)
        assert len(await collect(engine.submit(request(engine, "Hello.")))) == 3


async def test_out_of_memory_clears_the_caches_and_then_moves_to_the_cpu(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cleared = []
    monkeypatch.setattr(FakeSynthesiser, "clear", lambda self: cleared.append(1))
    tts = FakeTTS()
    async with engine_of(voices, tts) as engine:
        for _ in range(2):
            handle = engine.submit(request(engine, "memory"))
            await collect(handle)
            assert isinstance(handle.failure, OutOfMemory)
        await until(lambda: tts.device == "cpu")
        assert cleared == [1, 1]
        assert len(await collect(engine.submit(request(engine, "memory")))) == 3


async def test_an_engine_that_cannot_recover_is_not_ready(
    voices: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(self: FakeSynthesiser) -> None:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(FakeSynthesiser, "clear", lost)
    async with engine_of(voices, FakeTTS()) as engine:
        handle = engine.submit(request(engine, "memory"))
        await collect(handle)
        assert isinstance(handle.failure, OutOfMemory)
        await until(lambda: engine.state == "failed")
        assert "the device is lost" in caplog.text


async def test_whole_is_handed_out_when_all_of_it_is_made(voices: Path) -> None:
    gate = Gate(2)
    async with engine_of(voices, FakeTTS(gate=gate)) as engine:
        handle = engine.submit(request(engine, "Hello.", whole=True))
        await until(lambda: gate.asked == 3)
        assert not handle._pieces, "two are made, the third is not"
        gate.release()
        assert len(await collect(handle)) == 3


async def test_text_in_pieces_is_spoken_by_sentences(voices: Path) -> None:
    tts = FakeTTS(pieces=1)
    async with engine_of(voices, tts) as engine:
        handle = engine.submit(request(engine, "One. Tw", incremental=True))
        await anext(handle)
        assert [stream.request.text.strip() for stream in tts.streams] == ["One."]
        handle.append("o. Three")
        await anext(handle)
        handle.append(" and four")
        handle.finish()
        assert len(await collect(handle)) == 1
        assert handle.finish_reason == "eos"
    assert [stream.request.text.strip() for stream in tts.streams] == ["One.", "Two.", "Three and four"]


async def test_a_text_in_other_letters_is_refused_whole_and_in_pieces(voices: Path) -> None:
    async with engine_of(voices, tts := FakeTTS()) as engine:
        spoken = len(tts.streams)
        handle = engine.submit(request(engine, "\u4f60\u597d\uff0c\u4e16\u754c\u3002"))
        assert await collect(handle) == [] and isinstance(handle.failure, Refused)
        assert "4 of the text's 4 letters are Chinese characters, and this model speaks English, German" in str(handle.failure)
        handle = engine.submit(request(engine, "\u4f60\u597d\u3002", incremental=True))
        handle.finish()
        assert await collect(handle) == [] and isinstance(handle.failure, Refused)
        assert len(tts.streams) == spoken
        handle = engine.submit(request(engine, "How are you, my friend? ", incremental=True))
        handle.append("\u4f60\u597d\u3002 That is a greeting.")
        handle.finish()
        assert await collect(handle) != [] and handle.failure is None


async def test_what_is_not_finite_is_not_handed_out(voices: Path) -> None:
    async with engine_of(voices, FakeTTS()) as engine:
        for whole, heard in ((False, 1), (True, 0)):
            handle = engine.submit(request(engine, "nan", whole=whole))
            assert len(await collect(handle)) == heard
            assert isinstance(handle.failure, FloatingPointError)
        assert engine.not_finite == 2
        assert len(await collect(engine.submit(request(engine, "Hello.")))) == 3


async def test_closing_ends_what_runs_and_waits(voices: Path) -> None:
    tts = FakeTTS(gate=threading.Semaphore(1))
    assert tts.gate is not None
    async with engine_of(voices, tts) as engine:
        handles = [engine.submit(request(engine, text)) for text in ("a", "b")]
        await anext(handles[0])
        engine.close()
        for handle in handles:
            await collect(handle)
            assert isinstance(handle.failure, EngineClosed)
        tts.gate.release(1)


async def test_a_model_without_voices_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="voices add"):
        async with engine_of(tmp_path, FakeTTS()):
            pass


def test_the_factory_knows_both_engines(voices: Path) -> None:
    for name, kind in (("qwen3", Qwen3Engine), ("chatterbox", ThreadEngine)):
        assert isinstance(factory.create(Settings(engine=name, voices_dir=voices), VoiceStore(voices)), kind)


async def test_sessions_speak_in_turn_and_the_turn_has_a_limit(voices: Path) -> None:
    tts = FakeTTS(gate=threading.Semaphore(1))
    assert tts.gate is not None

    def make(settings: Settings, store: VoiceStore) -> ThreadEngine:
        return ThreadEngine(settings, store, lambda _: FakeSynthesiser(tts))

    async with running(voices, make, turn_timeout=0.1) as server, client(server.url) as first, client(server.url) as second:
        patient = server.context.settings.model_copy(update={"turn_timeout": LIMIT})
        for session, _ in server.context.sessions:
            session._playback._settings = patient
        await say(first, type="speak", text="First.")
        await audio(first)
        for session, _ in server.context.sessions:
            session._playback._settings = server.context.settings
        await say(second, type="speak", text="Second.", requestId="late")
        error = await hear(second)
        assert (error["code"], error["requestId"]) == ("TIMEOUT", "late")
        for session, _ in server.context.sessions:
            session._playback._settings = patient
        await say(second, type="speak", text="Third.")
        tts.gate.release(5)
        assert (await utterance(first))[1]["type"] == "complete"
        heard, complete = await utterance(second)
        assert (heard, complete["type"]) == (b"".join(to_pcm16(tone(index)) for index in range(3)), "complete")
    assert [stream.request.text for stream in tts.streams] == ["First.", "Third."]


async def test_texts_that_are_open_and_say_no_more_hold_up_nobody(voices: Path) -> None:
    """Waiting for text is nobody's turn: before the first word, and between two sentences."""
    tts = FakeTTS(pieces=1)
    async with engine_of(voices, tts) as engine:
        silent = [engine.submit(request(engine, "", incremental=True)) for _ in range(3)]
        begun = engine.submit(request(engine, "One. Tw", incremental=True))
        for handle in silent:
            await asyncio.wait_for(handle.begin(), LIMIT)
        await anext(begun)
        for text in ("Hello.", "And again."):
            assert len(await collect(engine.submit(request(engine, text)))) == 1
        assert [stream.request.text.strip() for stream in tts.streams] == ["One.", "Hello.", "And again."]
        begun.append("o.")
        begun.finish()
        silent[0].append("Late.")
        silent[0].finish()
        silent[1].finish()
        silent[2].cancel()
        assert [len(await collect(handle)) for handle in (begun, *silent)] == [1, 1, 0, 0]
        assert [handle.finish_reason for handle in (begun, *silent)] == ["eos", "eos", "eos", "cancelled"]
        assert (engine.active, engine.queued) == (0, 0)


async def test_turns_go_round_between_owners_and_a_full_line_is_shared(voices: Path) -> None:
    tts = FakeTTS(gate=threading.Semaphore(1), pieces=1)
    assert tts.gate is not None
    async with engine_of(voices, tts, max_queue=4) as engine:
        spoken = engine.submit(request(engine, "loud 0.", owner="loud"))
        await anext(spoken)
        loud = [engine.submit(request(engine, f"loud {number}.", owner="loud")) for number in range(1, 6)]
        with pytest.raises(Crowded, match="whose share is 4"):
            engine.check_line("loud")
        engine.check_line("quiet")
        quiet = engine.submit(request(engine, "quiet.", owner="quiet"))
        tts.gate.release(20)
        await collect(quiet)
        for handle in (spoken, *loud):
            await collect(handle)
        assert [stream.request.text for stream in tts.streams][:3] in (["loud 0.", "loud 1.", "quiet."], ["loud 0.", "quiet.", "loud 1."])
        assert sum(isinstance(handle.failure, Crowded) for handle in loud) >= 1
