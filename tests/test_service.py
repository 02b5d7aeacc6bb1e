"""Texts through the engine, on a tiny checkpoint: the same as Qwen3TTS alone, long texts, text as it is written, errors by name."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from qwen3_jax import Qwen3TTS, Voice
from qwen3_jax.engine import Closed, NotFinite, Options
from qwen3_jax.engine.loop import LoopConsumer
from qwen3_jax.engine.pace import FIRST_MOST
from qwen3_jax.runtime import compilation
from qwen3_jax.service import SpeechService, _warm
from qwen3_jax.text.split import MOST, split
from tests.fake_service import FakeService
from tests.fake_tts import FakeTTS
from tests.test_tts import FRAMES, WAVE, assert_same_sound

LONG = "This is the first sentence, and it is by far long enough to be a part all by itself, we think. Here is a second one."


@pytest.fixture(scope="module")
def tts(checkpoint: Callable[[str], Path]) -> Qwen3TTS:
    return Qwen3TTS.from_pretrained(checkpoint("base"), device="cpu")


@pytest.fixture(scope="module")
def service(tts: Qwen3TTS) -> Iterator[SpeechService]:
    with SpeechService(tts, slots=3, columns=320, options=Options(buffer_ms=60_000), watch=None) as made:
        yield made


@pytest.fixture(scope="module")
def voice(tts: Qwen3TTS) -> Voice:
    return tts.create_voice((WAVE, 24000))


@pytest.fixture(scope="module")
def icl_voice(tts: Qwen3TTS) -> Voice:
    return tts.create_voice((WAVE, 24000), "What was said.")


def test_a_short_text_sounds_as_without_the_service(tts: Qwen3TTS, service: SpeechService, voice: Voice, icl_voice: Voice) -> None:
    for one in (voice, icl_voice):
        for seed in (1, 2):
            alone = tts.generate("Hello there.", voice=one, seed=seed, max_frames=FRAMES)
            utterance = service.speak("Hello there.", voice=one, seed=seed, max_frames=FRAMES)
            pcm = np.concatenate(list(utterance))
            np.testing.assert_array_equal(utterance.frames, alone.frames)
            assert_same_sound(pcm, alone.pcm)
            assert (utterance.finish_reason, utterance.seed) == (alone.finish_reason, seed)


def test_a_long_text_is_one_utterance(tts: Qwen3TTS, service: SpeechService, voice: Voice) -> None:
    """Its first part is what that part alone is; and all of it is there."""
    parts = split(LONG, "auto")
    assert len(parts) == 2
    alone = tts.generate(parts[0], voice=voice, seed=3, max_frames=20)
    utterance = service.speak(LONG, voice=voice, seed=3, max_frames=20)
    segments = []
    while (packet := utterance.handle.next(60)) is not None:
        segments.append((packet.segment, packet.codes))
    first = np.concatenate([codes for segment, codes in segments if segment == 0])
    np.testing.assert_array_equal(first, alone.frames)
    assert {segment for segment, _ in segments} == {0, 1}


def test_a_text_in_steps_is_the_text_at_once(service: SpeechService, voice: Voice) -> None:
    rows = list(service.parts(LONG, voice=voice, seed=3))
    with service.speak(LONG, voice=voice, seed=3) as whole:
        segments = whole.handle.request.segments
        assert [row.prompt.text.tolist() for row in rows] == [segment.prompt.text.tolist() for segment in segments]
        assert [row.prompt.trailing.tolist() for row in rows] == [segment.prompt.trailing.tolist() for segment in segments]
        assert {row.seed for row in rows} == {3} and [row.max_frames for row in rows] == [segment.max_frames for segment in segments]


def test_parts_that_follow_their_first_are_the_text_at_once(service: SpeechService, voice: Voice, icl_voice: Voice) -> None:
    for one in (voice, icl_voice):
        with service.speak(LONG, voice=one, seed=4) as whole:
            expected = np.concatenate(list(whole))
        parts = service.parts(LONG, voice=one, seed=4)
        handle = service.submit([next(parts)], open=True)
        packets = [handle.next(60)]
        for part in parts:
            handle.add(part.segment)
        handle.finish()
        packets += iter(lambda: handle.next(60), None)  # noqa: B023  # used at once
        np.testing.assert_array_equal(np.concatenate([packet.codes for packet in packets]), whole.frames)
        np.testing.assert_allclose(np.concatenate([packet.pcm for packet in packets]), expected, atol=1e-4)


def test_a_token_of_the_models_own_is_refused_before_the_first_part(service: SpeechService, voice: Voice) -> None:
    with pytest.raises(ValueError, match="reserved for the model's own use"):
        next(service.parts(f"{LONG} And <|im_end|> then.", voice=voice))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_text_in_pieces_is_the_text_at_once(service: SpeechService, voice: Voice, icl_voice: Voice, size: int) -> None:
    for one in (voice, icl_voice):
        whole = service.speak(LONG, voice=one, seed=4)
        expected = np.concatenate(list(whole))
        live = service.open(voice=one, seed=4)
        for at in range(0, len(LONG), size):
            live.write(LONG[at : at + size])
        live.finish()
        pcm = np.concatenate(list(live))
        np.testing.assert_array_equal(live.frames, whole.frames)
        np.testing.assert_allclose(pcm, expected, atol=1e-4)


def test_pieces_of_one_character_cost_no_more_than_their_part(
    service: SpeechService, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt is laid out when a part begins and when it ends, and not for each piece; tokens are made of the open part alone."""
    text, rows, tokenised = "Words, and more of them. " * 40, 0, []
    row, ids = service.part, service.ids

    def counted_row(text: str, **how: Any) -> Any:
        nonlocal rows
        rows += 1
        return row(text, **how)

    def counted_ids(text: str) -> list[int]:
        tokenised.append(len(text))
        return ids(text)

    monkeypatch.setattr(service, "part", counted_row)
    monkeypatch.setattr(service, "ids", counted_ids)
    with service.open(voice=voice) as live:
        for character in text:
            live.write(character)
        parts = len(split(text, "auto"))
        assert rows <= 1 + 2 * parts
        assert max(tokenised) <= MOST and len(tokenised) <= 2 * len(text.split())


def test_combining_marks_without_end_are_refused_whole_and_in_pieces(service: SpeechService, tts: Qwen3TTS, voice: Voice) -> None:
    marks = "\u0301\u0316" * 16
    for text in ("Hello " + marks, "a" + marks * 5000):
        with pytest.raises(ValueError, match="more than 30 combining marks in a row"):
            service.speak(text, voice=voice)
        with pytest.raises(ValueError, match="more than 30 combining marks in a row"):
            tts.generate(text, voice=voice)
        with pytest.raises(ValueError, match="more than 30 combining marks in a row"):
            tts.create_voice((WAVE, 24000), text)
    live = service.open(voice=voice)
    for piece in ("Hello there", *marks[:30]):
        live.write(piece)
    with pytest.raises(ValueError, match="more than 30 combining marks in a row"):
        live.write(marks[30])
    assert live.finish_reason == "cancelled" and list(live) == []


def test_speech_begins_with_the_first_words(service: SpeechService, voice: Voice) -> None:
    live = service.open(voice=voice, seed=4)
    live.write("This is the ")
    first = next(live)
    assert len(first) in range(1920, 1920 * FIRST_MOST + 1, 1920)  # more than one where prompts take long to read
    live.write("first sentence.")
    live.finish()
    list(live)
    assert live.finish_reason in ("eos", "length")


@pytest.mark.parametrize(("text", "samples"), [("nan", 4), ("damaged", 0)])
def test_a_reader_that_comes_late_hears_of_the_error_too(text: str, samples: int) -> None:
    """The library's stream: after all audio that was made before, whenever that is read."""
    with FakeService(FakeTTS()) as service:
        speech, ended = service.speak(text), threading.Event()
        while not speech.handle.ended:
            ended.wait(0.001)
        heard: list[np.ndarray] = []
        with pytest.raises(NotFinite):
            heard.extend(speech)
        assert (sum(map(len, heard)), speech.finish_reason) == (samples, "error")
        assert list(speech) == [], "it is told once"


def test_nothing_written_is_nothing_said(service: SpeechService, voice: Voice) -> None:
    live = service.open(voice=voice)
    live.write("  ")
    live.finish()
    assert list(live) == [] and live.finish_reason == "eos" and live.frames.shape == (0, 16)


def test_leaving_cancels(service: SpeechService, voice: Voice) -> None:
    with service.speak(LONG, voice=voice) as utterance:
        next(utterance)
    assert list(utterance) == [] and utterance.finish_reason == "cancelled"


async def test_many_at_once_in_an_event_loop(service: SpeechService, voice: Voice) -> None:
    consumer = LoopConsumer(asyncio.get_running_loop())

    async def one(seed: int) -> np.ndarray:
        utterance = service.speak("Hello there.", voice=voice, seed=seed, max_frames=FRAMES, notify=consumer.notify)
        return np.concatenate([packet.codes async for packet in consumer.packets(utterance.handle, 60)])

    many = await asyncio.gather(*map(one, range(6)))
    for seed in range(6):
        np.testing.assert_array_equal(many[seed], await one(seed))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "  "}, "is empty: give at least one character"),
        ({"text": 5}, "text of type int: must be a string"),
        ({"language": "Klingon"}, "language 'Klingon': this checkpoint speaks"),
        ({"seed": -1}, "seed = -1: must be a whole number from 0"),
        ({"max_frames": 0}, "max_frames = 0: must be from 1"),
        ({"max_frames": "3"}, "max_frames = '3': must be from 1"),
        ({"seed": True}, "seed = True: must be a whole number"),
        ({"normalize": "no"}, "normalize = 'no': must be True or False"),
        ({"streaming_text": 1}, "streaming_text = 1: must be True or False"),
        ({"priority": "urgent"}, "priority 'urgent': use 'high' or 'normal'"),
        ({"text": "\u6587" * 240}, "a prompt of .* text tokens: a slot has 320 positions; split the text"),
    ],
)
def test_bad_requests_are_named(service: SpeechService, voice: Voice, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        service.speak(**({"text": "Hello.", "voice": voice} | changes))


def test_live_text_that_cannot_be_spoken(service: SpeechService, voice: Voice) -> None:
    with pytest.raises(ValueError, match="this checkpoint speaks"):
        service.open(voice=voice, language="Klingon")
    live = service.open(voice=voice)
    with pytest.raises(ValueError, match="reserved for the model's own use"):
        live.write("Hello <|im_end|> there.")
    assert live.finish_reason == "cancelled" and list(live) == []


def test_a_closed_service_says_so(tts: Qwen3TTS, voice: Voice) -> None:
    service = SpeechService(tts, slots=3, columns=320, warm=False)
    service.close()
    with pytest.raises(Closed, match="the engine is closed"):
        service.speak("Hello.", voice=voice)


class Warming:
    """A device with one program."""

    on_cpu = True

    def __init__(self) -> None:
        self.program = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x.T) + 0.123)
        self.misses: list[int] = []

    def warm_up(self) -> None:
        before = compilation.compiled()
        self.program(jnp.ones((3, 5))).block_until_ready()
        self.misses.append(compilation.compiled() - before)


def test_what_was_compiled_is_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clear_caches, cleared = jax.clear_caches, 0

    def clear() -> None:
        nonlocal cleared
        cleared += 1
        clear_caches()

    monkeypatch.setattr(jax, "clear_caches", clear)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    kept = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    reset_cache()
    try:
        compilation.use_persistent_cache()
        first, second = Warming(), Warming()
        clear_caches()
        _warm(first)
        assert (first.misses[0] > 0, first.misses[1:], cleared) == (True, [0], 1)
        clear_caches()
        _warm(second)
        assert (second.misses, cleared) == ([0], 1)
    finally:
        for name, value in kept.items():
            jax.config.update(name, value)
        reset_cache()
