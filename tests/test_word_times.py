"""Word times of speech: sounds of a spelling, written words of what is read, and where words lie in sound of known times."""

import numpy as np
import pytest

from qwen3_jax.speech.word_features import Features
from qwen3_jax.speech.word_sounds import BREATH, LETTER, SIBILANT, SONORANT, STOP, SYLLABLE, VOWEL, sounds
from qwen3_jax.speech.word_times import TimedWord, WordTimes
from qwen3_jax.text.spoken import spoken
from qwen3_jax.text.written_words import WrittenWords

RATE = 24000
STEP = 240
SOUNDS = {VOWEL: (80, (200.0, 700.0), 0.2), SONORANT: (70, (200.0,), 0.12), BREATH: (60, (), 0.02), SIBILANT: (100, (), 0.06)}


def sound(word: str, rng: np.random.Generator) -> np.ndarray:
    """A word as tones and noise: vowels and sonorants hum, sibilants hiss, stops are a gap of 50 ms."""
    pieces = []
    for kind in sounds(word):
        ms, tones, size = SOUNDS.get(kind, (50, (), 0.0))
        count = RATE * ms // 1000
        piece = rng.normal(0, 1, count)
        if kind == SIBILANT:
            piece = np.diff(piece, prepend=0.0)  # louder above 3.5 kHz
        elif tones:
            piece = sum((np.sin(2 * np.pi * tone * np.arange(count) / RATE) for tone in tones), np.zeros(count))
        pieces.append(size * piece + rng.normal(0, 1e-4, count))
    return np.concatenate([np.zeros(0), *pieces]).astype(np.float32)


def silence(ms: int) -> np.ndarray:
    return np.random.default_rng(2).normal(0, 1e-4, RATE * ms // 1000).astype(np.float32)


def speech(words: list[str], pause: int = 300) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Words with a silence after each comma or full stop, and the ms of each."""
    rng = np.random.default_rng(1)
    pieces, at, times = [silence(100)], 100.0, []
    for word in words:
        pieces.append(sound(word, rng))
        ms = 1000 * len(pieces[-1]) / RATE
        times.append((at, at + ms))
        at += ms
        if word[-1] in ".,":
            pieces.append(silence(pause))
            at += pause
    return np.concatenate(pieces), times


def errors(words: list[TimedWord], times: list[tuple[float, float]]) -> list[float]:
    """Of starts and ends, in ms."""
    found = []
    for word, (begin, end) in zip(words, times, strict=False):
        assert word.start_ms is not None and word.end_ms is not None
        found += [abs(word.start_ms - begin), abs(word.end_ms - end)]
    return found


TEXT = "She sells six seashells, but nobody knows where. Moss stays soft, and sand stings."


@pytest.mark.parametrize("chunk", [STEP * 8, 1000, 50 * STEP])
def test_words_are_found_where_they_are(chunk: int) -> None:
    words = TEXT.split()
    pcm, times = speech(words)
    found = WordTimes(RATE)
    found.write(TEXT)
    found.add_part(TEXT)
    for start in range(0, len(pcm), chunk):
        found.feed(pcm[start : start + chunk])
    found.finish()
    known = found.known()
    assert [word.word for word in known] == words
    assert np.median(errors(known, times)) <= 20 and np.percentile(errors(known, times), 90) <= 80


def test_the_running_estimate_follows_and_says_nothing_of_what_has_not_come() -> None:
    words = TEXT.split()
    pcm, times = speech(words)
    found, wrong = WordTimes(RATE), []
    found.write(TEXT)
    found.add_part(TEXT)
    for start in range(0, len(pcm), 8 * STEP):
        found.feed(pcm[start : start + 8 * STEP])
        known = found.known()
        now = 1000 * min(start + 8 * STEP, len(pcm)) / RATE
        assert all(word.start_ms is not None and word.start_ms <= now for word in known)
        wrong.append(abs(len(known) - sum(begin < now for begin, _ in times)))
    assert np.mean(wrong) <= 0.8 and max(wrong) <= 3


def test_parts_begin_where_they_are_said_to_and_pauses_count() -> None:
    first, second = "She sells six seashells.", "Nobody knows where."
    found = WordTimes(RATE)
    found.write(f"{first} {second}")
    found.add_part(first)
    one, times = speech(first.split(), pause=0)
    found.feed(one, 0)
    found.add_part(second)
    two, more = speech(second.split(), pause=0)
    found.feed(np.concatenate([silence(1000), two]), 1)
    found.finish()
    offset = 1000 * len(one) / RATE + 1000
    known = found.known()
    assert np.median(errors(known, [*times, *((begin + offset, end + offset) for begin, end in more)])) <= 20
    with pytest.raises(ValueError, match="sound of part 0 after that of part 1"):
        found.feed(two, 0)


@pytest.mark.parametrize("ms", [0, 1, 350, 900, 1500, 10**9])
@pytest.mark.parametrize("text", [TEXT, "  She\tsells  (six) “seashells”…\n\nNobody — knows  "])
def test_spoken_and_remaining_are_the_text(text: str, ms: float) -> None:
    pcm, _ = speech(text.split())
    found = WordTimes(RATE)
    for letter in text:
        found.write(letter)
    found.add_part(text)
    found.feed(pcm[: len(pcm) // 2])
    for _ in range(2):
        said, rest = found.spoken(ms)
        assert said + rest == text
        assert not said or (not said[-1].isspace() and (not rest or rest[0].isspace()))
        found.feed(pcm[len(pcm) // 2 :])
        found.finish()
    assert (said.rstrip(" —") == text.rstrip(" —")) == (ms == 10**9)
    if ms == 0:
        assert said == ""


def test_a_word_is_heard_once_half_of_it_has_sounded() -> None:
    words = TEXT.split()
    pcm, times = speech(words)
    found = WordTimes(RATE)
    found.write(TEXT)
    found.feed(pcm)
    found.finish()
    for number, (begin, end) in enumerate(times):
        middle = (begin + end) / 2
        assert abs(len(found.spoken(middle + 60)[0].split()) - (number + 1)) <= 1
    assert [len(found.spoken(ms)[0]) for ms in range(0, 6000, 50)] == sorted(len(found.spoken(ms)[0]) for ms in range(0, 6000, 50))


def test_text_that_is_still_written_has_times() -> None:
    words = TEXT.split()
    pcm, times = speech(words)
    found, written = WordTimes(RATE), 0
    for start in range(0, len(pcm), 8 * STEP):
        now = 1000 * start / RATE
        while written < len(words) and times[written][0] < now + 500:  # text comes half a second before it is spoken
            found.write(words[written] + " ")
            written += 1
        found.feed(pcm[start : start + 8 * STEP])
        found.known()
    found.add_part(TEXT)
    found.finish()
    assert np.median(errors(found.known(), times)) <= 20


@pytest.mark.parametrize(
    "pcm", [np.zeros(0, np.float32), np.zeros(RATE, np.float32), np.ones(100, np.float32), np.full(RATE, 1.0, np.float32)]
)
def test_sound_that_is_no_speech_breaks_nothing(pcm: np.ndarray) -> None:
    found = WordTimes(RATE)
    assert found.known() == [] and found.spoken(100) == ("", "")
    found.write("Hello there.")
    found.feed(pcm)
    found.known()
    found.finish()
    assert [word.word for word in found.known()] in ([], ["Hello", "there."])
    assert "".join(found.spoken(500)) == "Hello there."


def test_the_rate_is_learnt() -> None:
    pcm, _ = speech(TEXT.split())
    rates = []
    for stretch in (1, 2):
        found = WordTimes(RATE)
        found.write(TEXT)
        found.feed(np.repeat(pcm, stretch))
        found.finish()
        found.known()
        rates.append(found.rate)
    assert rates[1] > 1.1 * rates[0]


def test_features_do_not_depend_on_the_pieces() -> None:
    pcm = np.random.default_rng(3).normal(0, 0.1, 30 * STEP + 77).astype(np.float32)
    whole, pieces = Features(RATE), Features(RATE)
    cut = [pieces.feed(piece) for piece in np.split(pcm, [1, 100, 241, 3000, 3001, 7000])]
    np.testing.assert_allclose(np.concatenate(cut), whole.feed(pcm))


@pytest.mark.parametrize(
    ("word", "kinds"),
    [
        ("seashell", [SIBILANT, VOWEL, SIBILANT, VOWEL, SONORANT]),
        ("The", [BREATH, VOWEL]),
        ("bread.", [STOP, SONORANT, VOWEL, STOP]),
        ("é", [VOWEL]),
        ("—", []),
        ("12", [LETTER] * 8),
        ("да", [LETTER, LETTER]),
        ("你", [SYLLABLE]),
    ],
)
def test_sounds_of_a_word(word: str, kinds: list[int]) -> None:
    assert sounds(word) == kinds


PAIRS = [  # a text, and for each of its written words what is read of it
    ("It costs $12. Thank you.", ["It", "costs", "twelve dollars", "Thank", "you"]),
    ("On March 4, 2026, we met.", ["On", "March", "fourth", "twenty twenty six", "we", "met"]),
    ("**Note** that 1,234 people came!", ["Note", "that", "one thousand two hundred and thirty four", "people", "came"]),
    ("See https://example.com/a now.", ["See", None, "now"]),
    ("Well 🙂 done - truly.", ["Well", "", "done", "", "truly"]),
]


@pytest.mark.parametrize(("text", "read"), PAIRS, ids=[text for text, _ in PAIRS])
def test_written_words_of_what_is_read(text: str, read: list[str | None]) -> None:
    words = WrittenWords()
    words.write(text)
    said = " ".join(piece for piece in spoken(text) if isinstance(piece, str)).split()
    of = words.add_part(said, last=True)
    assert of == sorted(of) and len(of) == len(said)
    for number, expected in enumerate(read):
        theirs = [word.strip(".,!?").casefold() for word, index in zip(said, of, strict=True) if index == number]
        if expected is None:
            assert theirs
        elif len(expected.split()) <= 1:
            assert theirs == expected.casefold().split()
        else:  # what is shared out by length may be a word off
            assert set(theirs) & set(expected.casefold().split())


def test_parts_share_out_the_written_words() -> None:
    words = WrittenWords()
    words.write("It costs $12. Thank you. 7 came; ")
    assert words.add_part(["It", "costs", "twelve", "dollars."], last=False) == [0, 1, 2, 2]
    assert words.add_part(["Thank", "you."], last=False) == [3, 4]
    assert [word.text for word in words.settled()] == ["7", "came;"]
    words.write("8 we")
    words.write("nt.")
    assert words.add_part(["Seven", "came;", "eight", "went."], last=True) == [5, 6, 7, 8]


@pytest.mark.parametrize("text", ["你好，世界。", "今日は、いい天気。", "안녕 하세요.", "Это дом."])
def test_words_of_other_scripts(text: str) -> None:
    words = WrittenWords()
    words.write(text)
    assert "".join(word.text for word in words.words) == text.replace(" ", "")
    assert len(words.words) >= 2
    assert words.add_part([word.text for word in words.words], last=True) == list(range(len(words.words)))
