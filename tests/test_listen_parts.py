"""The parts of hearing that have no socket: bytes -> windows -> turns, the echo guard, words that take no floor."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.listen import echo
from server.listen.audio_in import AudioIn
from server.listen.base import RATE, WINDOW
from server.listen.echo import EchoGuard
from server.listen.heard_turn import words_of
from server.listen.smart_turn import model_file
from server.listen.turns import MOST_WINDOWS, WINDOW_MS, Detection, TurnEvent, Turns
from server.listen.whisper import compression
from server.ws.heard import AudioFrame, HeardAudio
from server.ws.loudness import Loudness

SPEECH, SILENCE = np.full(WINDOW, 0.5, np.float32), np.zeros(WINDOW, np.float32)


@settings(max_examples=40)
@given(
    rate=st.sampled_from((8000, 11025, 16000, 22050, 48000)),
    encoding=st.sampled_from(("pcm16", "pcm32f")),
    cuts=st.lists(st.integers(1, 9000), max_size=12),
)
def test_windows_do_not_depend_on_how_the_bytes_are_cut(rate: int, encoding: str, cuts: list[int]) -> None:
    samples = np.sin(np.arange(rate // 2) * 2 * math.pi * 440 / rate).astype(np.float32) * 0.5
    data = samples.astype("<f4").tobytes() if encoding == "pcm32f" else (samples * 32767).astype("<i2").tobytes()
    places = [0, *sorted({min(len(data), place) for place in np.cumsum(cuts).tolist()}), len(data)]
    whole, cut = AudioIn(rate, encoding), AudioIn(rate, encoding)
    once = list(whole.feed(data))
    pieces = [window for first, last in itertools.pairwise(places) for window in cut.feed(data[first:last])]
    least = min(len(once), len(pieces))
    assert abs(len(once) - len(pieces)) <= 1  # the resampler may hand out the end sooner or later
    assert least >= 0.5 * RATE / WINDOW - 3
    np.testing.assert_allclose(np.concatenate(pieces[:least]), np.concatenate(once[:least]), atol=1e-5)


@pytest.mark.parametrize("playing", [False, True])
@pytest.mark.parametrize("end", [Turns.finish, Turns.clear])
def test_speech_that_goes_on_after_its_turn_was_ended_begins_there(end: Callable[[Turns], object], playing: bool) -> None:
    turns = Turns(Detection(type="none"))
    heard = [(SILENCE, 0.0)] * 40 + [(SPEECH, 1.0)] * 20
    events = [event for window, probability in heard for event in turns.feed(window, probability, playing=playing)]
    assert TurnEvent.BEGAN in events
    end(turns)
    at = turns.position_ms
    events = [event for _ in range(3) for event in turns.feed(SPEECH, 1.0, playing=playing)]
    assert events == [TurnEvent.BEGAN] and turns.begin_ms == at and turns.voiced_ms == 3 * WINDOW_MS


def test_bytes_of_a_message_that_is_refused_leave_the_next_ones_samples_whole() -> None:
    audio = AudioIn(encoding="pcm32f")
    speech = np.full(2 * WINDOW, 0.5, "<f4").tobytes()
    assert not list(audio.feed(speech[:1021]))
    with pytest.raises(ValueError, match="a sample of the audio is nan"):
        audio.feed(speech[1021:1024] + np.full(9, np.nan, "<f4").tobytes() + speech[:2])
    [window] = audio.feed(speech[2 : 4 * (WINDOW - 255) + 4])
    np.testing.assert_array_equal(window, SPEECH)


@settings(max_examples=60)
@given(
    probabilities=st.lists(st.tuples(st.sampled_from((0.0, 0.3, 0.45, 0.6, 1.0)), st.integers(1, 60)), max_size=20),
    kind=st.sampled_from(("vad", "semantic", "none")),
    playing=st.booleans(),
)
def test_events_of_a_turn_come_in_order_and_segments_cover_its_speech(
    probabilities: list[tuple[float, int]], kind: str, playing: bool
) -> None:
    turns = Turns(Detection(type=kind))
    is_open = paused = False
    for probability, times in probabilities:
        for _ in range(times):
            for event in turns.feed(SPEECH * max(probability, 1e-3), probability, playing=playing):
                if event is TurnEvent.SUSPECTED:
                    assert playing and not is_open
                    continue
                assert (event is TurnEvent.BEGAN) is not is_open
                assert event is not TurnEvent.RESUMED or paused
                paused = event is TurnEvent.PAUSED or (paused and event is TurnEvent.SETTLED)
                if event is TurnEvent.BEGAN:
                    is_open = True
                elif event is TurnEvent.SETTLED:
                    segment = turns.take()
                    assert segment is not None
                    assert 0 < len(segment.pcm()) <= WINDOW * MOST_WINDOWS
                elif event in (TurnEvent.OVER, TurnEvent.FALSE):
                    is_open = False
                    assert kind != "none"
                    assert 0 <= turns.begin_ms <= turns.end_ms <= turns.position_ms
                    turns.take()
                    turns.clear()
            assert turns.open is is_open
            assert turns.segment is None or len(turns.segment.windows) <= MOST_WINDOWS + 60


def test_speech_of_minutes_is_cut_where_it_is_least_like_speech() -> None:
    turns, segments = Turns(Detection()), []
    for number in range(60 * RATE // WINDOW):
        for event in turns.feed(SPEECH, 0.6 if number % 100 == 99 else 1.0):
            if event is TurnEvent.SETTLED:
                segments.append(turns.take())
    assert len(segments) == 2
    for one, following in zip(segments, [*segments[1:], turns.segment], strict=True):
        assert one is not None and following is not None
        assert one.start + WINDOW * len(one.windows) == following.start  # no sample is lost or heard twice
        assert (one.end // WINDOW) % 100 == 0  # after the window of .6


def test_minutes_of_silence_take_no_memory() -> None:
    audio, turns = AudioIn(), Turns(Detection(type="none"))
    for _ in range(40):
        turns.feed(SPEECH, 1.0)
    half_a_minute = bytes(2 * 16000 * 30)
    for _ in range(10):
        for window in audio.feed(half_a_minute):
            if TurnEvent.SETTLED in turns.feed(window, 0.0):
                turns.take()
    assert turns.open and turns.segment is None
    assert turns.position_ms > 290_000


def test_speech_begins_within_two_windows() -> None:
    clear, faint = Turns(Detection()), Turns(Detection())
    assert clear.feed(SPEECH, 0.95) == [TurnEvent.BEGAN]
    assert (faint.feed(SPEECH, 0.6), faint.feed(SPEECH, 0.6)) == ([], [TurnEvent.BEGAN])
    assert faint.begin_ms == 0


def noise(level_db: float, seed: int = 0) -> np.ndarray:
    return (10 ** (level_db / 20) * np.random.default_rng(seed).normal(size=WINDOW)).astype(np.float32)


def test_an_echo_is_no_speech_and_speech_over_it_is() -> None:
    turns, events = Turns(Detection()), list[TurnEvent]()
    for number in range(1000):  # 32 s of an answer, whose echo is clear speech, now louder, now softer
        events += turns.feed(noise(-30 - 10 * (number % 7 > 3), number), 0.99, playing=True)
    assert not events
    needed = 0
    while TurnEvent.BEGAN not in events:
        needed += 1
        events = turns.feed(noise(-18, needed), 0.99, playing=True)
        assert events == [[], [TurnEvent.SUSPECTED], [TurnEvent.BEGAN]][needed]
    assert needed == 2, "12 dB over the echo"
    assert turns.voiced_ms == 32 * needed
    for number in range(6):
        events += turns.feed(noise(-18, number), 0.99, playing=True)
    for number in range(40):
        events += turns.feed(noise(-30, number), 0.99, playing=True)  # the echo does not keep the turn open
    assert events[-1] is TurnEvent.OVER


def test_with_headphones_an_answer_hinders_nobody() -> None:
    guard = EchoGuard()
    for number in range(echo.LEARN_WINDOWS):
        guard.judge(noise(-65, number), 0.01, 0.5, playing=True, speaking=False)
    begun = [guard.judge(noise(-35), 0.9, 0.5, playing=True, speaking=False)[1]]
    assert begun == [1]


def test_what_may_be_speech_is_suspected_once_a_second_and_never_of_an_echo() -> None:
    turns, events = Turns(Detection()), list[TurnEvent]()
    for number in range(echo.LEARN_WINDOWS):  # the echo's first second
        events += turns.feed(noise(-40, number), 0.99, playing=True)
    for number in range(200):  # as loud as the echo, however much like speech; or louder, and none
        events += turns.feed(noise(-40, number), 0.79, playing=True) + turns.feed(noise(-15, number), 0.05, playing=True)
    assert not events
    turns = Turns(Detection())
    for number in range(echo.LEARN_WINDOWS):
        events += turns.feed(noise(-66, number), 0.01, playing=True)
    for number in range(2 * echo.SUSPECT_REST):  # it grows louder faster than it is learnt, so that it is never taken for echo
        events += turns.feed(noise(-44 + 2 * number, number), 0.3, playing=True)
    assert events == [TurnEvent.SUSPECTED] * 2 and not turns.open, "it flickers no more than that"
    assert turns.feed(noise(60), 0.99, playing=True) == [TurnEvent.BEGAN]


def test_a_consonant_without_voice_is_suspected_and_a_key_is_not() -> None:
    """The beginning of "she" is as improbable as noise; what tells it from a key or a click is that it lasts."""
    for lasts in (False, True):
        turns, events = Turns(Detection()), list[TurnEvent]()
        for number in range(echo.LEARN_WINDOWS):
            events += turns.feed(noise(-66, number), 0.0, playing=True)
        for number in range(4):
            level = -40 if lasts or number % 2 else -66
            sound = noise(level, number)
            sound[:56] = sound[456:] = 0  # 25 ms of it, if it does not last
            events += turns.feed(noise(level, number) if lasts else noise(-66, number) + sound, 0.0, playing=True)
        assert events == [TurnEvent.SUSPECTED] * lasts and not turns.open


@pytest.mark.parametrize(("seconds", "windows"), [(0.5, 2), (2.0, 1)])
def test_speech_is_noticed_after_many_interruptions_as_after_none(seconds: float, windows: int) -> None:
    """The user's speech is not learnt, little by little, as the echo: in turns that end while the answer sounds, and in longer ones."""
    turns, needed, number = Turns(Detection()), list[int](), 0

    def feed(level: float, probability: float, *, playing: bool) -> list[TurnEvent]:
        nonlocal number
        number += 1
        return turns.feed(noise(level, number), probability, playing=playing)

    for _ in range(20):
        for _ in range(60):
            assert not feed(-66, 0.01, playing=True)
        needed.append(1)
        while TurnEvent.BEGAN not in feed(-40, 0.9, playing=True):
            needed[-1] += 1
            assert needed[-1] < 5
        for window in range(round(seconds * 31)):
            feed(-18, 0.95, playing=window < 16)  # the answer is interrupted after half a second
        for _ in range(30):
            feed(-66, 0.01, playing=False)
        assert not turns.open
    assert max(needed) <= windows, needed


def test_the_user_is_not_learnt_as_echo() -> None:
    """After a long turn over an answer, a second one in the same answer is noticed as soon as the first."""
    turns = Turns(Detection())
    for number in range(echo.LEARN_WINDOWS + 10):
        assert not turns.feed(noise(-30, number), 0.99, playing=True)
    for _ in range(2):
        needed, events = 0, []
        while TurnEvent.BEGAN not in events and needed < 20:
            needed += 1
            events = turns.feed(noise(-14, needed), 0.99, playing=True)
        assert needed == 2
        for number in range(100):
            events = turns.feed(noise(-14, number), 0.99, playing=True)
        assert turns.open
        for number in range(40):
            events += turns.feed(noise(-60, number), 0.01, playing=True)
        assert not turns.open


def test_speech_in_the_first_second_of_an_answer_is_no_echo_for_long() -> None:
    """With headphones: the first words may be lost, those after a pause are not, and in the next answer none are."""
    turns = Turns(Detection())
    for number in range(echo.LEARN_WINDOWS):
        turns.feed(noise(-25, number), 0.99, playing=True)
    for number in range(94):
        assert not turns.feed(noise(-60, number), 0.01, playing=True)
    assert TurnEvent.BEGAN in turns.feed(noise(-25), 0.99, playing=True) + turns.feed(noise(-25), 0.99, playing=True)
    for number in range(40):
        turns.feed(noise(-60, number), 0.01, playing=False)
    assert TurnEvent.BEGAN in turns.feed(noise(-25), 0.99, playing=True) + turns.feed(noise(-25), 0.99, playing=True)


def syllables(windows: int, seed: int) -> list[float]:
    """Levels of a voice whose loudest syllables have -12 dB: syllables of 0.1 to 0.25 s with gaps, and a pause each 2 s or so."""
    rng, levels = np.random.default_rng(seed), list[float]()
    while len(levels) < windows:
        for _ in range(rng.integers(6, 10)):
            peak, size = rng.uniform(-22, -12), rng.integers(3, 8)
            levels += [peak - 10 * abs(2 * place / (size - 1) - 1) for place in range(size)] + [-45.0] * rng.integers(0, 3)
        levels += [-90.0] * rng.integers(8, 20)
    return levels[:windows]


def over_an_answer(interruptions: int, *, echo_db: float, late: int, known: bool, seed: int) -> tuple[int, int, list[int]]:
    """A session: an answer sounds, and 1.5 to 3.5 s later a user, as loud as it, speaks for 2.5 s, which interrupts it.

    Returns:
        Turns that began while the answer was alone; interruptions that were missed; windows until the others began.
    """
    rng, turns, number = np.random.default_rng(seed), Turns(Detection()), 0
    false = missed = 0
    needed = list[int]()
    for one in range(interruptions):
        answer, user = syllables(220, 1000 * seed + one), syllables(78, 1000 * seed + 500 + one)
        alone, began, left = int(rng.integers(47, 110)), 0, 0
        for window in range(alone + 110):
            playing = not began or window < alone + began + 16
            sounded = [answer[window - ago] - 6 * max(0, ago - late) for ago in range(late, min(window + 1, late + 6))] if playing else []
            said = user[window - alone] if alone <= window < alone + len(user) else -90.0
            together = [*(level + echo_db for level in sounded), said, -66.0]
            heard = noise(10 * math.log10(sum(10 ** (level / 10) for level in together)), number)
            number += 1
            events = turns.feed(
                heard,
                0.97 if echo.decibels(heard) > -50 else 0.02,
                playing=playing,
                answer_db=answer[window] if known and playing else None,
            )
            if TurnEvent.BEGAN in events and window < alone:
                false += 1
            elif TurnEvent.BEGAN in events and not began:
                began = window - alone + 1
            left += bool({TurnEvent.OVER, TurnEvent.FALSE} & set(events))
            if {TurnEvent.OVER, TurnEvent.FALSE} & set(events):
                turns.take()
                turns.clear()
        missed += not began
        needed += [began] if began else []
    return false, missed, needed


@pytest.mark.parametrize(("echo_db", "known", "soon"), [(-10.0, True, 4), (-20.0, True, 2), (-20.0, False, 3)])
def test_no_interruption_is_missed_however_many_there_were(echo_db: float, known: bool, soon: int) -> None:
    """Speech that is as loud as the page, over its echo, sixteen times in a session; ``soon``: the median of the windows that it takes."""
    for seed in (1, 2):
        false, missed, needed = over_an_answer(16, echo_db=echo_db, late=5, known=known, seed=seed)
        assert (false, missed) == (0, 0)
        assert np.median(needed) <= soon, needed


def test_between_the_words_of_an_answer_a_user_is_heard_at_once() -> None:
    """An echo is expected where the answer has sounded a moment ago, whatever that moment is."""
    for late in (0, 4, 12):
        guard, answer = EchoGuard(), syllables(300, 7)
        for window, level in enumerate(answer):
            heard = noise(answer[window - late] - 10 if window >= late else -90, window) + noise(-66, window + 1)
            speech = 0.97 if echo.decibels(heard) > -50 else 0.02
            judged = guard.judge(heard, speech, 0.5, playing=True, speaking=False, answer_db=level)
            assert not judged.begun and not judged.suspect
        for window in range(late + 10):  # the answer pauses
            guard.judge(noise(-66, window), 0.02, 0.5, playing=True, speaking=False, answer_db=-90)
        assert guard.judge(noise(-38, 1), 0.9, 0.5, playing=True, speaking=False, answer_db=-90).begun == 1, "20 dB below its loudest echo"


def test_the_less_speech_is_louder_than_the_echo_the_longer_it_takes() -> None:
    for louder, windows in ((22, 1), (12, 2), (6, 3), (1, None)):
        guard = EchoGuard()
        for number in range(echo.LEARN_WINDOWS):
            guard.judge(noise(-40, number), 0.99, 0.5, playing=True, speaking=False)
        begun = [guard.judge(noise(-40 + louder, number), 0.99, 0.5, playing=True, speaking=False)[1] for number in range(4)]
        assert next((number + 1 for number, began in enumerate(begun) if began), None) == windows, louder


@pytest.mark.parametrize(
    ("text", "words"),
    [("", 0), ("Mm-hm.", 0), ("Uh-huh, mhm", 0), ("Um, stop!", 1), ("It's ten o'clock", 3), ("はい", 1), ("Nein.", 1)],
)
def test_words_that_take_the_floor(text: str, words: int) -> None:
    assert words_of(text) == words


def test_text_that_repeats_itself_is_noticed() -> None:
    assert compression("Turn off the lights in the kitchen. " * 12) > 2.4 > compression("What time does the next train leave today?")


def test_a_file_for_smart_turn_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="TTS_SMART_TURN = .*no such file"):
        model_file(tmp_path / "none.onnx")
    assert WINDOW_MS == 32


def test_the_loudest_moment_of_an_utterance_does_not_depend_on_its_pieces() -> None:
    pcm = np.concatenate([np.full(24_000, level, np.float32) for level in (0.01, 0.1, 0.001)])
    whole, pieces = Loudness(), Loudness()
    whole.feed(pcm)
    for first in range(0, len(pcm), 1000):
        pieces.feed(pcm[first : first + 1000])
    for loudness in (whole, pieces):
        found = [loudness.loudest(begin, end) for begin, end in ((0.5, 0.5), (0.5, 1.2), (2.5, 2.5), (4, 5))]
        assert found == pytest.approx([-40, -20, -60, -100], abs=0.1)


def test_where_an_utterance_sounds_is_known_within_bounds() -> None:
    heard = HeardAudio()
    heard.sent(AudioFrame(0, bytes(2), 5.0, 0.0))
    assert heard.about(0.0, 2.0) == (2.5, 3.0), "without a report a client may be half a second behind an ideal one"
    heard.report(2.0, now=10.0)
    assert heard.about(10.1, 0.0) == pytest.approx((2.1, 2.1))
    assert heard.about(10.4, 0.0) == pytest.approx((2.25, 2.4)), "the next report is late; the sound may have stopped"
    assert heard.about(9.9, 0.0) == pytest.approx((2.0, 2.0))
