"""Text and the sound that is made of it, while both come -> when each word is heard, without a recogniser.

    times = WordTimes(24000)
    times.write("It costs $12. ")        # the text as it was written, in pieces or at once
    times.add_part("It costs twelve dollars.")     # a part as it is read (text/parts.py), once its text is complete
    times.feed(pcm, 0)                   # the next sound, and the number of the part that it belongs to (Packet.segment)
    times.known()                        # [TimedWord("It", 120, 210), TimedWord("costs", 210, 540)]: those that have begun
    times.finish()                       # no more text, parts or sound
    times.spoken(600)                    # ("It costs", " $12. ")

A part's words are laid along its sound (word_trellis.py). While it is under way that is an estimate, made anew as the sound comes; at its
end, where all words must have been said, it is corrected, and the voice's rate is learnt for the next part. Work is done when something is
asked, a few ms for a second of sound; ``feed`` alone takes a tenth of that.
"""

from typing import NamedTuple

import numpy as np

from qwen3_jax.audio.samples import SAMPLE_RATE
from qwen3_jax.shapes import F32, F64
from qwen3_jax.speech.word_features import STEP_SECONDS, Features
from qwen3_jax.speech.word_sounds import LETTER, sounds
from qwen3_jax.speech.word_trellis import Trellis, Words, fits
from qwen3_jax.text.written_words import WrittenWords

PAUSES = {".": 0.95, "!": 0.95, "?": 0.95, "…": 0.8, "。": 0.95, "！": 0.95, "？": 0.95}  # probability of silence after a mark
PAUSES |= dict.fromkeys(",;:—–，、；：", 0.6)
NO_MARK = 0.04  # and after a word without one
AT_START = 0.9  # and before a part
LEARNT = 300.0  # steps of sound that the rate given at first counts for
FASTEST, SLOWEST = 0.6, 1.8  # of the rate
NEAR = 3  # words: with so few left of those that it knows, an open part is heard anew with those that have come


class TimedWord(NamedTuple):
    """A word as it was written, and when it is heard: ms from the first sample; None if nothing of it is said."""

    word: str
    start_ms: int | None
    end_ms: int | None


class _Heard:
    """A part that is heard: its sound as far as it has come, and the words that are laid along it."""

    def __init__(self, start: int) -> None:
        self.start = start  # sample
        self.features: list[F64[np.ndarray, "N 4"]] = []
        self.trellis: Trellis | None = None
        self.words: list[str] = []  # as they are read
        self.written: list[int] = []  # of each word: the index of the written word
        self.complete = False  # its text
        self.advanced = 0  # pieces of features that the trellis has
        self.times: list[tuple[float, float]] | None = None  # steps of each word, once the part is over


class WordTimes:
    """When the words of one utterance are heard. For one thread.

    Args:
        sample_rate: of the sound, Hz.
        rate: how long the voice takes for a sound, 1 for the voices that ship; ``rate`` of an earlier utterance of the same voice.
    """

    def __init__(self, sample_rate: int = SAMPLE_RATE, rate: float = 1.0) -> None:
        self.rate = rate
        self._sample_rate = sample_rate
        self._written = WrittenWords()
        self._features = Features(sample_rate)
        self._ready: list[str] = []  # parts whose text is complete, from `_assigned` on
        self._assigned: list[tuple[list[str], list[int]]] = []  # parts whose words have been found in the written text
        self._heard: list[_Heard] = []
        self._samples = 0
        self._over = self._text_over = False
        self._said, self._usual = LEARNT * rate, LEARNT

    @property
    def text(self) -> str:
        """All that was written."""
        return self._written.text

    def write(self, text: str) -> None:
        """More of the text as it was written."""
        self._written.write(text)

    def add_part(self, text: str) -> None:
        """The next part as it is read, complete."""
        self._ready.append(text)

    def end_text(self) -> None:
        """No part follows. Known early, the last part's words are all there; ``finish`` implies it."""
        self._text_over = True

    def feed(self, pcm: F32[np.ndarray, " F"], part: int = 0) -> None:
        """The next sound, of the part of that number; when the number rises, the parts before are over.

        Raises:
            ValueError: a part that has ended.
        """
        if part < len(self._heard) - 1:
            raise ValueError(f"sound of part {part} after that of part {len(self._heard) - 1}: parts are heard in order")
        while part > len(self._heard) - 1:
            self._heard.append(_Heard(self._samples))
            self._features.begin()
        self._heard[-1].features.append(self._features.feed(pcm))
        self._samples += len(pcm)

    def finish(self) -> None:
        """All has been said."""
        self._over = self._text_over = True

    def known(self) -> list[TimedWord]:
        """The words that have begun, in order; the last one's end may lie ahead."""
        found = self._steps()
        if not found:
            return []
        count = len(self._written.words) if self._over else max(found) + 1
        words = []
        for number, word in enumerate(self._written.words[:count]):
            begin, end = found.get(number, (None, None))
            words.append(TimedWord(word.text, begin, end))
        return words

    def spoken(self, ms: float) -> tuple[str, str]:
        """The text that has been heard after so many ms, and the rest: all characters, cut at a word's end.

        A word is heard once half of it has sounded.
        """
        at = -1
        for number, word in enumerate(self.known()):
            if word.start_ms is not None and word.end_ms is not None and word.start_ms + word.end_ms <= 2 * ms:
                at = number
        cut = 0 if at < 0 else self._written.words[at].end
        return self.text[:cut], self.text[cut:]

    def _steps(self) -> dict[int, tuple[int, int]]:
        """Index of a written word -> its (start, end) in ms."""
        self._assign()
        found: dict[int, tuple[int, int]] = {}
        for number, heard in enumerate(self._heard):
            over = self._over or number < len(self._heard) - 1
            for index, (begin, end) in zip(heard.written, self._times(number, heard, over=over), strict=False):
                start = 1000 * heard.start / self._sample_rate
                first, last = round(start + 1000 * STEP_SECONDS * begin), round(start + 1000 * STEP_SECONDS * end)
                known = found.get(index, (first, last))
                found[index] = (min(known[0], first), max(known[1], last))
        return found

    def _assign(self) -> None:
        """Find the words of complete parts in the written text."""
        while self._ready:
            last = self._text_over and len(self._ready) == 1
            words = _words(self._ready[0])
            self._assigned.append((words, self._written.add_part(words, last=last)))
            self._ready.pop(0)

    def _times(self, number: int, heard: _Heard, *, over: bool) -> list[tuple[float, float]]:
        """Steps of the words of a part that have begun, of all when it is over."""
        if heard.times is not None:
            return heard.times
        self._read(number, heard, over=over)
        trellis = heard.trellis
        if trellis is None:
            return []
        for features in heard.features[heard.advanced :]:
            trellis.advance(fits(features))
        heard.advanced = len(heard.features)
        times = trellis.times(over=over)
        if over:
            heard.times, heard.trellis, heard.features = times, None, []
            self._learn(heard.words, times)
        return times

    def _read(self, number: int, heard: _Heard, *, over: bool) -> None:
        """The part's words as they are known now."""
        if heard.complete:
            return
        if number < len(self._assigned):
            words, written = self._assigned[number]
            heard.complete = True
        else:
            settled = self._written.words[self._written.given :] if over or self._text_over else self._written.settled()
            words, written = [word.text for word in settled], list(range(self._written.given, self._written.given + len(settled)))
            if heard.trellis is not None and (
                len(words) <= len(heard.words) or (not over and len(heard.trellis.times(over=False)) + NEAR < len(heard.words))
            ):
                return
        heard.words, heard.written = words, written
        heard.trellis = Trellis(_script(words), self.rate) if words else None
        heard.advanced = 0

    def _learn(self, words: list[str], times: list[tuple[float, float]]) -> None:
        """The voice's rate, from a part that is over."""
        self._said += sum(end - begin for begin, end in times)
        self._usual += Trellis.usual(_script(words))
        self.rate = min(max(self._said / self._usual, FASTEST), SLOWEST)


def _words(text: str) -> list[str]:
    """The words of a part as it is read: as those of a written text are found."""
    found = WrittenWords()
    found.write(text)
    return [word.text for word in found.words]


def _script(words: list[str]) -> Words:
    """Their sounds, and the silence that their marks make likely; what is a mark alone is a short sound of any kind."""
    kinds, word, pause = [], [], [AT_START]
    for number, one in enumerate(words):
        these = sounds(one) or [LETTER]
        kinds += these
        word += [number] * len(these)
        pause.append(PAUSES.get(one.rstrip("\"'”’»)]）」』】")[-1:], NO_MARK))
    return Words(kinds, word, pause)
