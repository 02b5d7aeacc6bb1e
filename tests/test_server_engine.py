"""The many-at-once engine: requests, voices and their prompts, turns, cancels, faults; and the real model behind the socket."""

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qwen3_jax import Sampling, Voice
from qwen3_jax.audio.samples import to_pcm16, write_wav
from qwen3_jax.engine import JaxDevice, NotFinite, plan
from qwen3_jax.model.model import Model
from qwen3_jax.service import LiveText
from qwen3_jax.voices.folder import VoiceGone
from server.engines import kept
from server.engines import slots as slots_of
from server.engines.base import EngineClosed, OutOfMemory, Refused, SpeechRequest
from server.engines.qwen3 import Qwen3Engine, load
from server.engines.qwen3_cloner import Cloner
from server.engines.qwen3_utterance import PIECE
from server.engines.slots import slots_for
from server.settings import Settings
from server.voices.store import VoiceStore
from tests.fake_engine import LIMIT
from tests.fake_service import FRAMES, LONG, FakeService
from tests.fake_tts import FakeTTS
from tests.serving import Clock, audio, client, connect, hear, prompts_of, running, say, until, utterance

MINUTES = 900.0  # where a real model compiles
SPOKEN = np.arange(FRAMES, dtype=np.float32).repeat(4)


@asynccontextmanager
async def engine_of(voices: Path, tts: FakeTTS | None = None, *, slots: int = 2, **chosen: Any) -> AsyncIterator[Qwen3Engine]:
    engine = Qwen3Engine(Settings(voices_dir=voices, **chosen), VoiceStore(voices), lambda _: FakeService(tts or FakeTTS(), slots))
    try:
        await asyncio.wait_for(engine.load(), LIMIT)
        yield engine
    finally:
        engine.close()


def service_of(engine: Any) -> FakeService:
    assert isinstance(engine._service, FakeService)
    return engine._service


def hold(engine: Any) -> threading.Semaphore:
    """From now on the device waits before each launch."""
    gate = service_of(engine).device.gate = threading.Semaphore(0)
    return gate


async def step_until(gate: threading.Semaphore, condition: Callable[[], bool]) -> None:
    """Let the device make one launch after another until it is true."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            gate.release()
            await asyncio.sleep(0.005)


def request(engine: Qwen3Engine, text: str, voice: str = "makima", **more: Any) -> SpeechRequest:
    return SpeechRequest(text=text, voice=engine._store.voices[voice], language="English", **more)


async def collect(handle: Any) -> list[np.ndarray]:
    async with asyncio.timeout(LIMIT):
        return [piece async for piece in handle]


async def test_a_request_reaches_the_model_and_its_pieces_come_back(voices: Path) -> None:
    tts = FakeTTS()
    async with engine_of(voices, tts) as engine:
        assert (engine.state, engine.languages, engine.presets) == ("ready", ("English", "German"), None)
        handle = engine.submit(request(engine, "Hello.", "anna", seed=5, draw={"temperature": 0.5}, high=True))
        np.testing.assert_array_equal(np.concatenate(await collect(handle)), SPOKEN)
        assert (handle.finish_reason, handle.failure) == ("eos", None)
        [(text, how)] = service_of(engine).said
        assert (text, how["voice"].name, how["language"], how["seed"]) == ("Hello.", "anna", "English", 5)
        assert (how["sampling"].temperature, how["sampling"].top_k) == (0.5, 50)
        assert handle.handle.request.priority == "high"
        await collect(engine.submit(request(engine, "Hello.", "anna", draw={"temperature": 0.0})))
        sampling = service_of(engine).said[1][1]["sampling"]
        assert not (sampling.do_sample or sampling.subtalker_dosample), "greedy decoding, of all books"
    assert tts.cloned == [("makima", "Good evening."), ("anna", None)]
    assert tts.prepared == ["makima", "anna"]


async def test_prompts_are_kept_in_the_cache_until_the_model_or_the_recording_changes(voices: Path) -> None:
    first = FakeTTS()
    async with engine_of(voices, first) as engine:
        await engine.prepare(engine._store.voices["makima"])
        assert len(first.cloned) == 1, "a voice is cloned once"
    [kept] = prompts_of(voices)
    second = FakeTTS()
    async with engine_of(voices, second) as engine:
        await collect(engine.submit(request(engine, "Hello.")))
        assert service_of(engine).said[0][1]["voice"].name == "makima"
    assert second.cloned == []
    other = FakeTTS(fingerprint="another model")
    async with engine_of(voices, other):
        assert len(other.cloned) == 1
    assert len(prompts_of(voices)) == 2 and kept in prompts_of(voices), "the first model's is of use to that"


async def test_the_least_recently_used_voice_leaves_the_cache(voices: Path) -> None:
    """The specification's 7.1.1: room for two; a, b, a, c -> b is gone."""
    for name in ("a", "b", "c"):
        (voices / name).mkdir()
        write_wav(voices / name / "reference.wav", np.full(80_000, 0.1, np.float32))
    async with engine_of(voices, voice_cache=2) as engine:
        for name in ("a", "b", "a", "c"):
            await engine.prepare(engine._store.voices[name])
        assert engine._prompts.voices == ["a", "c"]
        engine.forget("a")
        assert engine._prompts.voices == ["c"]


async def test_a_voice_that_many_want_is_cloned_once(voices: Path) -> None:
    tts = FakeTTS()
    async with engine_of(voices, tts, slots=4) as engine:
        await asyncio.gather(*(collect(engine.submit(request(engine, "Hello.", "anna"))) for _ in range(4)))
    assert [name for name, _ in tts.cloned] == ["makima", "anna"]


async def test_a_voice_that_cannot_be_cloned_any_more_is_left_out_until_its_recording_changes(
    voices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_of(voices) as engine:
        with monkeypatch.context() as broken:

            def refuse(*_: Any, **__: Any) -> None:
                raise ValueError("the recording is silent")

            broken.setattr(FakeTTS, "create_voice", refuse)
            anna = engine._store.voices["anna"]
            with pytest.raises(Refused, match="silent"):
                await engine.prepare(anna)
            handle = engine.submit(request(engine, "Hello.", "anna"))
            assert await collect(handle) == []
            assert isinstance(handle.failure, VoiceGone) and "cannot be cloned any more: the recording is silent" in str(handle.failure)
        assert engine._store.find("anna") is None and "silent" in engine._store.left_out["anna"]
        write_wav(voices / "anna" / "reference.wav", np.full(90_000, 0.2, np.float32))
        engine._store.refresh(now=True)
        assert await collect(engine.submit(request(engine, "Hello.", "anna")))


async def test_as_many_speak_at_once_as_there_are_slots_and_high_goes_first(voices: Path) -> None:
    async with engine_of(voices) as engine:
        gate = hold(engine)
        first = [engine.submit(request(engine, text)) for text in ("long a", "long b")]
        await step_until(gate, lambda: engine.active == 2)
        gate.release(2)  # what has happened in a turn is told at its end
        for handle in first:
            await asyncio.wait_for(handle.begin(), LIMIT)
        late = [engine.submit(request(engine, "normal", seed=1)), engine.submit(request(engine, "high", seed=2, high=True))]
        await until(lambda: all(handle.handle is not None for handle in late))
        assert engine.queued == 2
        log = service_of(engine).device.log
        before = [entry[0] for entry in log]
        await step_until(gate, lambda: [entry[0] for entry in log].count("launch") >= before.count("launch") + 3)
        assert engine.queued == 2 and [entry[0] for entry in log].count("open") == before.count("open"), "they wait while others speak"
        first[0].cancel()
        gate.release(10_000)
        heard = await asyncio.gather(*map(collect, [first[1], *late]))
        assert [len(np.concatenate(pieces)) for pieces in heard] == [4 * LONG, 4 * FRAMES, 4 * FRAMES]
        opened = [entry[2] for entry in service_of(engine).device.log if entry[0] == "open"]
        assert opened[-2:] == [2, 1], "by their seeds"
        assert (first[0].finish_reason, engine.queued, engine.active) == ("cancelled", 0, 0)


async def test_cancel_in_the_queue_while_speaking_and_before_anything(voices: Path) -> None:
    async with engine_of(voices, slots=1) as engine:
        gate = hold(engine)
        spoken, waiting, barely = (engine.submit(request(engine, text)) for text in ("long", "waiting", "barely"))
        barely.cancel()
        gate.release(2)
        await asyncio.wait_for(spoken.begin(), LIMIT)
        assert waiting in engine._utterances
        for handle in (spoken, waiting):
            handle.cancel()
        assert [await collect(handle) for handle in (spoken, waiting, barely)] == [[], [], []]
        assert {handle.finish_reason for handle in (spoken, waiting, barely)} == {"cancelled"}
        gate.release(10_000)
        assert len(np.concatenate(await collect(engine.submit(request(engine, "Hello."))))) == len(SPOKEN)
        await until(lambda: not engine._utterances)


async def test_a_fault_is_told_to_everybody_and_the_engine_begins_again_once(voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with engine_of(voices) as engine:
        for expected, after in (("is being restarted", "ready"), ("could not be restarted", "failed")):
            gate = hold(engine)
            handles = [engine.submit(request(engine, text)) for text in ("long a", "long b", "waits")]
            await step_until(gate, lambda: engine.active == 2 and engine.queued == 1)  # awaited at once
            service_of(engine).device.poison = RuntimeError("the device is lost")
            gate.release(10_000)
            for handle in handles:
                await collect(handle)
                assert expected in str(handle.failure)
            await until(lambda: engine.state == after)  # noqa: B023  # awaited at once
            if after == "ready":
                assert engine.restarts == 1
                assert len(np.concatenate(await collect(engine.submit(request(engine, "Hello."))))) == len(SPOKEN)
        handle = engine.submit(request(engine, "Hello."))
        await collect(handle)
        assert isinstance(handle.failure, EngineClosed)
    assert "the device is lost" in caplog.text


async def test_out_of_memory_has_its_own_name_and_halves_the_slots(voices: Path) -> None:
    async with engine_of(voices) as engine:
        service_of(engine).device.poison = MemoryError()
        handle = engine.submit(request(engine, "Hello."))
        assert await collect(handle) == []
        assert isinstance(handle.failure, OutOfMemory)
        await until(lambda: engine.state == "ready")
        assert (service_of(engine).engine.stats().slots, engine.restarts) == (1, 0)


async def test_speech_without_end_is_made_again_and_counted(voices: Path) -> None:
    async with engine_of(voices) as engine:
        np.testing.assert_array_equal(np.concatenate(await collect(engine.submit(request(engine, "loop")))), SPOKEN)
        assert engine.runaways == 1


async def test_what_is_not_finite_fails_and_the_next_utterance_speaks(voices: Path) -> None:
    async with engine_of(voices, slots=1) as engine:
        for text, heard in (("nan", 4), ("damaged", 0)):
            handle = engine.submit(request(engine, text))
            assert sum(map(len, await collect(handle))) == heard
            assert isinstance(handle.failure, NotFinite)
            np.testing.assert_array_equal(np.concatenate(await collect(engine.submit(request(engine, "Hello.")))), SPOKEN)
        assert (engine.not_finite, engine.restarts, engine.state) == (2, 0, "ready")


async def test_clients_hear_of_what_is_not_finite_and_the_session_lives_on(voices: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Over the WebSocket and HTTP: one more try before any sound, none after some; metrics count, the log names each."""

    def make(settings: Settings, store: VoiceStore) -> Qwen3Engine:
        return Qwen3Engine(settings, store, lambda _: FakeService(FakeTTS()))

    async with running(voices, make) as server, client(server.url) as connection, server.http_client() as http:
        for number, (text, sound, failed) in enumerate((("damaged", 0, 2), ("nan", 2 * 4, 3))):
            await say(connection, type="speak", text=text, requestId="r")
            heard, error = await utterance(connection)
            assert (len(heard), error["type"], error["code"]) == (sound, "error", "SYNTHESIS_ERROR")
            assert (error["requestId"], error["recoverable"]) == ("r", True)
            assert server.context.engine.not_finite == failed
            assert caplog.text.count("NotFinite: what the model computed is NaN or infinite") == failed, number
            await say(connection, type="speak", text="Hello.")
            assert (await utterance(connection))[1]["type"] == "complete"
        answer = await http.post("/v1/audio/speech", json={"input": "damaged", "voice": "makima", "response_format": "pcm"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "SYNTHESIS_ERROR")
        assert "tts_not_finite 5.0" in (await http.get("/metrics")).text
        answer = await http.post("/v1/audio/speech", json={"input": "Hello.", "voice": "makima", "response_format": "pcm"})
        assert answer.content == to_pcm16(SPOKEN)


def test_a_kept_prompt_that_is_damaged_is_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    voice = Voice(np.zeros(4, np.float32), np.zeros((1, 16), np.int32), "Words.")
    kept, cloner = voice.to_bytes(), Cloner(FakeTTS())
    assert cloner.from_bytes(kept).mode == "icl"
    for damaged in (kept[:-1], kept[: len(kept) // 2], b"", kept[:-64] + b"\xff" * 64):
        with pytest.raises(ValueError, match="is not a voice file"):
            cloner.from_bytes(damaged)

    def refuse(voice: Voice) -> None:
        raise ValueError("codes that the checkpoint does not have")

    monkeypatch.setattr(cloner._tts, "prepare", refuse)  # as Qwen3TTS.prepare does
    with pytest.raises(ValueError, match="does not have"):
        cloner.from_bytes(kept)


async def test_whole_is_handed_out_in_one_piece(voices: Path) -> None:
    async with engine_of(voices) as engine:
        [piece] = await collect(engine.submit(request(engine, "Hello.", whole=True)))
        np.testing.assert_array_equal(piece, SPOKEN)


async def test_text_in_pieces(voices: Path) -> None:
    """Each piece is spoken as far as it is settled; a text without a word yet does not wait for a slot, but for its writer."""
    async with engine_of(voices) as engine:
        handle = engine.submit(request(engine, "", incremental=True))
        await asyncio.wait_for(handle.begin(), LIMIT)
        handle.append("One ")
        first = 0
        async with asyncio.timeout(LIMIT):
            while first < 4 * len("One"):
                first += len(await anext(handle))
        assert first == 4 * len("One")
        handle.append("two.")
        handle.finish()
        rest = np.concatenate(await collect(handle))
        assert len(rest) == 4 * (len("One two.") + 1) - first
        assert (handle.finish_reason, handle.failure) == ("length", None)


async def test_text_that_came_before_the_engine_took_it_is_not_lost(voices: Path) -> None:
    async with engine_of(voices) as engine:
        handle = engine.submit(request(engine, "One ", incremental=True))
        handle.append("two.")
        handle.finish()
        assert len(np.concatenate(await collect(handle))) == 4 * (len("One two.") + 1)


async def test_text_in_pieces_that_is_refused_ends_the_utterance(voices: Path) -> None:
    async with engine_of(voices) as engine:
        handle = engine.submit(request(engine, "One ", incremental=True))
        await anext(handle)
        handle.append("refuse ")
        await collect(handle)
        assert isinstance(handle.failure, Refused)


PART = "This sentence has more than enough letters to be a part of a text all by itself, which it is here. "


def laid_out_late(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """What lets a part be laid out in which "the end" is."""
    last, part = threading.Event(), FakeService.part

    def slow(service: FakeService, text: str, **how: Any) -> Any:
        assert "the end" not in text or last.wait(LIMIT)
        return part(service, text, **how)

    monkeypatch.setattr(FakeService, "part", slow)
    return last


async def test_a_text_is_heard_before_its_last_part_is_laid_out(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = laid_out_late(monkeypatch)
    async with engine_of(voices) as engine:
        handle = engine.submit(request(engine, 2 * PART + "This is the end."))
        async with asyncio.timeout(LIMIT):
            await handle.begin()
            heard = [await anext(handle)]
        assert (handle.finish_reason, handle.failure, last.is_set()) == (None, None, False)
        last.set()
        heard += await collect(handle)
        np.testing.assert_array_equal(np.concatenate(heard), np.tile(SPOKEN, 3))
        assert handle.finish_reason == "eos"


@pytest.mark.parametrize("before", [0, 2])
async def test_a_text_with_a_part_that_is_refused_ends_with_it(voices: Path, before: int) -> None:
    """However many parts are spoken already; the slot is free then."""
    async with engine_of(voices, slots=1) as engine:
        gate = hold(engine)
        handle = engine.submit(request(engine, before * PART + "refuse this. " + PART))
        assert await collect(handle) == []
        assert isinstance(handle.failure, Refused) and handle.finish_reason is None
        gate.release(10_000)
        np.testing.assert_array_equal(np.concatenate(await collect(engine.submit(request(engine, "Hello.")))), SPOKEN)
        await until(lambda: not engine._utterances)


async def test_over_http_a_text_with_a_last_part_that_is_refused_is_refused(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Audio of its first part is there long before that; not one byte of it goes out."""
    last = laid_out_late(monkeypatch)

    def make(settings: Settings, store: VoiceStore) -> Qwen3Engine:
        return Qwen3Engine(settings, store, lambda _: FakeService(FakeTTS()))

    async with running(voices, make) as server, server.http_client() as http:
        utterances = server.context.engine._utterances
        for end, status, code in (("refuse this at the end.", 400, "INVALID_TEXT"), ("This is the end.", 200, None)):
            last.clear()
            asked = asyncio.create_task(
                http.post("/v1/audio/speech", json={"input": 2 * PART + end, "voice": "makima", "response_format": "pcm"})
            )
            await until(lambda: any(one.handle is not None and one.handle.begun for one in utterances))
            last.set()
            answer = await asked
            assert answer.status_code == status
            if code is None:
                assert answer.content == to_pcm16(np.tile(SPOKEN, 3))
            else:
                assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, "input")
            await until(lambda: not utterances)


async def test_a_cancel_ends_a_text_that_is_being_laid_out(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of it is not laid out, and its slot is free."""
    last = laid_out_late(monkeypatch)
    async with engine_of(voices, slots=1) as engine:
        handle = engine.submit(
            request(engine, PART + "This is the end, and a sentence that has enough letters to be a part of a text by itself. " + PART)
        )
        async with asyncio.timeout(LIMIT):
            await anext(handle)
            reading = asyncio.ensure_future(collect(handle))
            await asyncio.sleep(0)
            handle.cancel()
            await reading
            assert (handle.finish_reason, handle.failure) == ("cancelled", None)
            await until(lambda: engine.active == engine.queued == 0)
        last.set()
        await until(lambda: not engine._utterances)
        assert len(service_of(engine).said) <= 2, "of three parts"


async def test_a_long_text_makes_nobody_else_wait(voices: Path) -> None:
    """Its parts are laid out one at a time, and whoever comes then has his turn in between."""
    parts = 40
    async with engine_of(voices) as engine:
        heavy = [
            request(engine, f"This sentence, which nobody ends, has number {number} and goes on and on, for long. " * parts)
            for number in "ab"
        ]
        handles = [*map(engine.submit, heavy), engine.submit(request(engine, "Hello."))]
        await asyncio.gather(*map(collect, handles))
        said = [text for text, _ in service_of(engine).said]
        assert len(said) > parts
        assert said.index("Hello.") <= 4, "behind one or two parts of each of the others"


async def test_many_small_pieces_are_taken_together(voices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "A word and one more. " * 96
    sizes: list[int] = []
    write = LiveText.write

    def counted(live: LiveText, piece: str) -> None:
        sizes.append(len(piece))
        write(live, piece)

    monkeypatch.setattr(LiveText, "write", counted)
    async with engine_of(voices) as engine:
        handle = engine.submit(request(engine, "", incremental=True))
        for character in text:
            handle.append(character)
        handle.finish()
        await collect(handle)
        assert (handle.failure, sum(sizes)) == (None, len(text))
        assert max(sizes) <= PIECE and len(sizes) <= len(text) / PIECE + 2


async def test_closing_ends_what_runs_and_waits(voices: Path) -> None:
    async with engine_of(voices, slots=1) as engine:
        gate = hold(engine)
        handles = [engine.submit(request(engine, text)) for text in ("long", "b")]
        gate.release(2)
        await asyncio.wait_for(handles[0].begin(), LIMIT)
        engine.close()
        for handle in handles:
            assert await collect(handle) == []
            assert isinstance(handle.failure, EngineClosed)
        gate.release(10_000)
        await until(lambda: service_of(engine).engine.state == "closed")


async def test_a_model_without_voices_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="voices add"):
        async with engine_of(tmp_path):
            pass


async def test_sessions_speak_at_once_and_hear_of_a_fault(voices: Path) -> None:
    def make(settings: Settings, store: VoiceStore) -> Qwen3Engine:
        return Qwen3Engine(settings, store, lambda _: FakeService(FakeTTS()))

    async with running(voices, make) as server, client(server.url) as first, client(server.url) as second:
        gate = hold(server.context.engine)
        for connection in (first, second):
            await say(connection, type="speak", text="A long story.")
        await step_until(gate, lambda: server.context.engine.active == 2)
        gate.release(10_000)
        for connection in (first, second):
            heard, complete = await utterance(connection)
            assert (len(heard), complete["type"]) == (2 * 4 * LONG, "complete")
        gate = hold(server.context.engine)
        await say(first, type="speak", text="A long story.", requestId="r")
        gate.release(3)
        await audio(first)
        service_of(server.context.engine).device.poison = RuntimeError("the device is lost")
        gate.release(10_000)
        _, error = await utterance(first)
        assert (error["code"], error["requestId"], error["recoverable"]) == ("SYNTHESIS_ERROR", "r", True)
        await until(lambda: server.context.engine.is_ready)
        await say(first, type="speak", text="Hello.")
        assert (await utterance(first))[1]["type"] == "complete"


def test_slots_by_the_device_and_its_memory(model: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = model("base")
    monkeypatch.setattr(kept.compilation, "folder", lambda: None)
    monkeypatch.setattr(slots_of, "step_seconds", lambda *_: 0.05)
    assert slots_for(tiny, 320, "") == 10
    monkeypatch.setattr(slots_of, "LARGE", 1000)
    assert slots_for(tiny, 320, "") == 4
    small = plan.plan(tiny, 2, 320).total / plan.SHARE
    monkeypatch.setattr(plan, "memory", lambda _: int(small) + 1)
    assert slots_for(tiny, 320, "") == 2
    monkeypatch.setattr(plan, "memory", lambda _: 1000)
    assert slots_for(tiny, 320, "") == 1


def test_no_more_slots_than_a_cpu_speaks_smoothly(model: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, tried = model("base"), []
    monkeypatch.setattr(kept.compilation, "folder", lambda: None)

    def paced(_: Model, slots: int, columns: int, __: float) -> float:
        tried.append((slots, columns))
        return 0.01 + 0.0075 * slots

    monkeypatch.setattr(slots_of, "step_seconds", paced)
    assert slots_for(tiny, 320, "") == 4
    assert tried == [(10, 320), (4, 320)], "6 would do, but a batch of 6 is one of 8"
    monkeypatch.setattr(slots_of, "step_seconds", lambda *_: 1.0)
    assert slots_for(tiny, 320, "") == 1, "too slow for anybody, but it speaks"


def test_a_step_is_timed_whatever_is_said(model: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that a step moves by 30 ms, and one by a second: every slot says a frame in each."""
    clock, said = Clock(), []

    class Timed(JaxDevice):
        def collect(self, launched: Any) -> Any:
            outcome = super().collect(launched)
            said.append(outcome.counts.tolist())
            clock.now += 1.0 if len(said) == 5 else 0.03
            return outcome

    monkeypatch.setattr(slots_of, "JaxDevice", Timed)
    monkeypatch.setattr(slots_of, "time", SimpleNamespace(perf_counter=clock))
    assert slots_of.step_seconds(model("base"), 4, 320, 0.04) == pytest.approx(0.03), "good enough at once"
    assert said == [[1] * 4] * (slots_of.LAUNCHES + 1)


def test_the_best_of_several_timings_counts(model: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch) -> None:
    clock, launches = Clock(), itertools.count()

    class Timed(JaxDevice):
        def collect(self, launched: Any) -> Any:
            clock.now += (0.09, 0.06, 0.08)[min(2, next(launches) // slots_of.LAUNCHES)]
            return super().collect(launched)

    monkeypatch.setattr(slots_of, "JaxDevice", Timed)
    monkeypatch.setattr(slots_of, "time", SimpleNamespace(perf_counter=clock))
    assert slots_of.step_seconds(model("base"), 4, 320, 0.05) == pytest.approx(0.06)
    assert next(launches) == slots_of.TIMINGS * slots_of.LAUNCHES + 1


def test_what_was_timed_is_kept_and_beside_other_work_never_lowered(
    model: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny, tried, step, others = model("base"), [], 0.01, 1.9

    def paced(_: Model, slots: int, *__: object) -> float:
        tried.append(slots)
        return step * slots

    def start(fingerprint: str = "a") -> tuple[int, list[int]]:
        tried.clear()
        return slots_for(tiny, 320, fingerprint), list(tried)

    class Watched(kept.OtherWork):
        def __exit__(self, *_: object) -> None:
            self.cores, self.others, self.load = 2, others, (3.0, 2.0, 1.0)

    monkeypatch.setattr(slots_of, "step_seconds", paced)
    monkeypatch.setattr(slots_of, "OtherWork", Watched)
    monkeypatch.setattr(slots_of, "LOOK", 0.0)
    monkeypatch.setattr(kept.compilation, "folder", lambda: tmp_path / "compiled")
    assert start() == (4, [10, 4])
    assert "4 slots, timed while other programs took 1.9 of 2 cores (load average 3.0)" in caplog.text
    others, step = 1.0, 0.0
    assert start() == (4, []), "not timed again beside the same work"
    others, step = 0.9, 0.0069
    assert start() == (8, [10, 8]), "room that other work had hidden"
    assert start("b") == (8, [10, 8]), "another checkpoint"
    others, step = 0.1, 0.02
    assert start() == (8, [10]), "fewer than before are not even tried"
    step = 0.0
    assert start() == (8, []), "for good: nobody else was at work"
    assert start("b") == (10, [10])
    others = 1.9
    assert start("b") == (10, []), "for good: all slots"
    others, step = 0.1, 0.01
    assert start("c") == (4, [10, 4])
    assert start("c") == (4, [])
    files = sorted((tmp_path / "compiled").iterdir())
    assert len(files) == 3, "and nothing else is left there"
    for damaged in (b"", b"{", b'{"slots": 5}', b'{"slots":99,"quiet":true,"others":0.0,"load":[]}', b"\xff"):
        for file in files:
            file.write_bytes(damaged)
        assert start("c") == (4, [10, 4])
        assert start("c") == (4, [])


def test_other_work_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By /proc/stat, of which what we use ourselves, and what nobody uses, is left out."""
    clock, stat, second = Clock(), tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(kept, "_STAT", stat)
    monkeypatch.setattr(kept, "_own_seconds", clock)
    monkeypatch.setattr(kept.time, "monotonic", clock)
    for busy, others, quiet in ((10, 0.0, True), (11, 0.1, True), (25, 1.5, False)):
        stat.write_text("cpu 1 2 3 999 5 6 7 8 9 10\n", "ascii")
        with kept.OtherWork() as machine:
            machine.cores = 2
            clock.now += 10
            ticks = busy * second
            stat.write_text(f"cpu {1 + ticks // 2} 2 3 {999 + 77 * second} 5 6 7 {8 + ticks - ticks // 2} 9 10\n", "ascii")
        assert (machine.others, machine.quiet) == (pytest.approx(others), quiet)
    stat.unlink()
    with kept.OtherWork() as machine:
        clock.now += 1
    assert machine.others == max(0.0, machine.load[0] - machine.cores), "where there is no such file, the load average says it"


@pytest.mark.slow
async def test_end_to_end_on_a_tiny_checkpoint(voices: Path, checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    """The real model behind the socket: three sessions at once hear what each would hear alone, while a fourth one is cancelled."""
    caplog.set_level(logging.INFO)
    text, sampling = "Hello, this is all.", Sampling(temperature=0.7)
    chosen = Settings(voices_dir=voices, model_id=str(checkpoint("base")), slots=4, columns=320, warmup="first")
    service = load(chosen)
    voice = service.tts.create_voice(voices / "makima" / "reference.wav", "Good evening.")
    expected = []
    for seed in range(3):
        speech = service.speak(text, voice=voice, language="English", seed=seed, sampling=sampling)
        expected.append((to_pcm16(np.concatenate(list(speech))), speech.finish_reason))

    def make(settings: Settings, store: VoiceStore) -> Qwen3Engine:
        return Qwen3Engine(settings, store, lambda _: service)

    async def one(url: str, seed: int) -> list[bytes | str]:
        async with connect(url) as connection:
            await hear(connection)
            await say(connection, type="speak", text=text, seed=seed, temperature=0.7)
            frames: list[bytes | str] = []
            while not frames or isinstance(frames[-1], bytes):
                frames.append(await asyncio.wait_for(connection.recv(), MINUTES))
                if seed == 3:
                    await say(connection, type="cancel")
            return frames

    async with running(voices, make, limit=MINUTES, lead=60) as server:
        heard = await asyncio.gather(*(one(server.url, seed) for seed in range(4)))
    for frames, (pcm, reason) in zip(heard, expected, strict=False):
        got = b"".join(frame for frame in frames if isinstance(frame, bytes))
        assert np.abs(np.frombuffer(got, "<i2").astype(int) - np.frombuffer(pcm, "<i2")).max() <= 1
        assert 0 < len(frames[0]) <= 4 * 2 * 1920 and len(frames[0]) % (2 * 1920) == 0
        assert f'"finishReason":"{reason}"' in str(frames[-1])
    assert '"CANCELLED"' in str(heard[3][-1])
    assert len(prompts_of(voices)) == 1
    assert "memory: " in caplog.text and "4 slots x 320 positions" in caplog.text
