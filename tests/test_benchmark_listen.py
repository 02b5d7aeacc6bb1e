"""The clients of benchmarks/listen.py: what they take for heard, for said and for told."""

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from benchmarks import listen_clients
from benchmarks.listen import told_words, words_heard
from benchmarks.listen_clients import Loudspeaker, Microphone
from benchmarks.listen_sounds import RATE, at_level, clicks, edges, music, room, typing


class Connection:
    """What a server sends, and what it was sent."""

    def __init__(self, *frames: bytes | dict[str, Any]) -> None:
        self.frames = [frame if isinstance(frame, bytes) else json.dumps(frame) for frame in frames]
        self.sent: list[Any] = []

    async def send(self, data: Any) -> None:
        self.sent.append(data)

    def __aiter__(self) -> "Connection":
        return self

    async def __anext__(self) -> bytes | str:
        if not self.frames:
            raise StopAsyncIteration
        return self.frames.pop(0)


def pcm(seconds: float) -> bytes:
    return np.full(round(24_000 * seconds), 8192, "<i2").tobytes()


async def test_a_loudspeaker_knows_what_has_sounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(listen_clients, "monotonic", lambda: now)
    connection = Connection(pcm(0.5), pcm(0.5))
    loudspeaker = Loudspeaker(connection)
    await loudspeaker.speak("Hello.", "a")
    await loudspeaker.run()
    assert loudspeaker.first_frames == [(100.0, "a")] and loudspeaker.played("a") == 0
    now = 100.75
    assert loudspeaker.played("a") == pytest.approx(0.75) and loudspeaker.sounding() == "a"
    assert loudspeaker.picked_up(100.9, 4800).tolist() == pytest.approx([0.25] * 2400 + [0.0] * 2400)
    connection.frames = [json.dumps({"type": "ducked", "requestId": "a", "atMs": 750})]
    await loudspeaker.run()
    assert loudspeaker.picked_up(100.9, 10).max() == pytest.approx(0.025)
    connection.frames = [json.dumps({"type": "interrupted", "requestId": "a"})]
    await loudspeaker.run()
    now = 101.5
    assert loudspeaker.played("a") == pytest.approx(0.75) and loudspeaker.sounding() is None
    assert not loudspeaker.picked_up(100.8, 2400).any() and loudspeaker.picked_up(100.5, 2400).all()


async def test_a_microphone_hears_the_user_the_loudspeaker_and_the_room() -> None:
    loudspeaker = Loudspeaker(Connection())
    microphone = Microphone(Connection(), np.full(1000, 0.001, np.float32), loudspeaker, echo_db=-20.0)
    microphone._begun = listen_clients.monotonic()
    loudspeaker._timeline = [(microphone._begun - 1, np.full(48_000, 0.5, np.float32), "a")]
    heard = [microphone._tick() for _ in range(11)]
    np.testing.assert_allclose(heard[-1], 0.051, atol=0.002)
    assert microphone.say(np.full(320, 0.3, np.float32)) == microphone._begun
    np.testing.assert_allclose([microphone._tick(), microphone._tick()], np.repeat([[0.351], [0.051]], 320, axis=1), atol=0.002)


async def test_what_was_told_is_waited_for() -> None:
    told = listen_clients.Told()
    waiting = asyncio.ensure_future(told.next(lambda one: one["type"] == "final"))
    told.add({"type": "partial"})
    told.add({"type": "final", "text": "a"})
    assert (await waiting)[1]["text"] == "a" and told.count("final", "partial") == 2
    with pytest.raises(TimeoutError):
        await told.next(lambda one: one["type"] == "final", since=listen_clients.monotonic() + 1, wait=0.01)


def test_words_are_told_again() -> None:
    one, two, three = ({"word": name, "startMs": at, "endMs": at + 9} for name, at in (("a", 0), ("b", 10), ("b", 20)))
    words, first = told_words([{"first": 0, "words": [one]}, {"first": 1, "words": [two]}, {"first": 1, "words": [three]}])
    assert words == [("a", 0, 9), ("b", 20, 29)] and first == [("a", 0, 9), ("b", 10, 19)]


def test_words_heard_are_those_of_which_half_has_sounded() -> None:
    class Judged:
        judged = ((0, 0.0, 100.0), (2, 200.0, 300.0))

    assert [words_heard(Judged(), ms) for ms in (49, 50, 249, 250)] == [0, 1, 1, 3]


@pytest.mark.parametrize("make", [typing, clicks, music, room])
def test_noises_are_as_loud_as_they_are_meant_to_be(make: Any) -> None:
    sound = make(4.0, np.random.default_rng(1))
    assert sound.dtype == np.float32 and len(sound) == 4 * RATE
    loud = at_level(sound, -30.0)
    assert np.abs(loud).max() <= 1
    steps = np.square(loud.reshape(-1, 160), dtype=np.float64).mean(1)
    assert 10 * np.log10(steps[steps > steps.max() * 1e-3].mean()) == pytest.approx(-30, abs=0.5)


def test_speech_begins_and_ends_where_it_is_loud() -> None:
    speech = np.zeros(RATE, np.float32)
    speech[3200:9600] = 0.3
    assert edges(speech) == (3200, 9600)
