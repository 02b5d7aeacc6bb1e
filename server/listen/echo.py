"""The page's own voice, which the microphone hears, is no speech of the user's. Pure; all parameters are here.

While an answer sounds at the client, speech must be clearer and longer, and louder than the answer's echo. How loud that is, is learnt in
the first second of a session's answers, all of it together; without an echo (headphones, or a browser that cancels it) it is as soft as the
room, and hinders nobody. What was learnt and was no echo, since somebody spoke in that second, is unlearnt in the next pause: an answer
is hardly ever so much softer for so long.

Ducking an answer needs less than beginning a turn, for it is undone in a moment: one window that may be speech, far over the echo. In
simulation (8 sentences at 8 phases, a quiet room; p50 and p95) a turn begins after 110 and 160 ms, and speech is suspected after 50 and
120 ms; never in two minutes each of typing, clicks and music at -30 dB, nor in the echo of a minute of answers at -10 and -20 dB.

The embedded voice, its own echo (150 ms late, 0.2 s of reverberation) and, over it, a sentence as loud as the page (2026-11-30):

| echo | answers | false begins | sentences over it | noticed | after, p50 and p95 |
|---|---|---|---|---|---|
| -10 dB | 6 min | 0 | 20 | 18 | 0.12 s, 0.33 s |
| -20 dB | 6 min | 0 | 20 | 20 | 0.07 s, 0.14 s |
"""

from collections import deque
from itertools import dropwhile
from typing import NamedTuple

import numpy as np

from qwen3_jax.shapes import F32

CLEAR = 0.8  # a window that is so probable is enough to begin speech
BEGIN_WINDOWS = 2  # less probable ones in a row that are
PLAYING_THRESHOLD = 0.8  # while an answer sounds
PLAYING_WINDOWS, PLAYING_OF = 3, 12  # so many windows of the last so many (384 ms) must be loud speech then
MARGIN_DB = 2.0  # by which they are louder than the echo
COUNTS = ((20.0, 3), (8.0, 2), (MARGIN_DB, 1))  # dB over the echo -> for how many windows one counts: without an echo, one is enough
NO_ECHO_DB, FAINT_COUNTS = 20.0, 2  # so far over it, less clear speech counts, too, for so many
SUSPECT = 0.25  # so probable, and so far over it, a window may be the beginning of speech: enough to duck an answer
SUSPECT_REST = 32  # windows, 1 s, before the next one may be
GOES_ON_DB = 0.0  # the same for speech that has begun
LEARN_WINDOWS = 32  # of a session's answers, the first ones, that are taken for echo alone: 1 s
UNLEARN_WINDOWS, UNLEARN_DB = 94, 12.0  # of an answer in a row, 3 s, that are all so much softer than the echo: it was none
UNLEARNT_DB = 6.0  # by which the echo may be louder than the loudest of those
RISE_DB = 1.0  # a louder window, by which the echo may have become louder
OPEN_RISE_DB = 0.03  # the same while a turn is open: it is the user who is louder, or else 1 dB a second ends a turn that was echo
TAIL_WINDOWS = 10  # that an answer still sounds in the room after its end: 320 ms
FADE_DB = 0.01  # a window, by which what was learnt is forgotten: 3 dB in 10 s
SOFTEST_DB = -70.0


class Judgement(NamedTuple):
    """Of a window.

    Args:
        goes_on: whether it would be speech of the user's that goes on.
        begun: how many windows ago speech began, counting this one, or 0.
        suspect: whether speech may begin with it, over an answer that sounds.
    """

    goes_on: bool
    begun: int
    suspect: bool


class EchoGuard:
    """What one microphone hears while answers sound."""

    def __init__(self) -> None:
        self._echo_db = SOFTEST_DB
        self._learnt = self._tail = 0  # windows
        self._recent: deque[int] = deque(maxlen=PLAYING_OF)
        self._levels: deque[float] = deque(maxlen=UNLEARN_WINDOWS)
        self._row = 0  # windows of speech in a row
        self._rest = 0  # windows in which none is suspected

    def judge(self, window: F32[np.ndarray, "512"], probability: float, threshold: float, *, playing: bool, speaking: bool) -> Judgement:
        """The next window.

        Args:
            threshold: of the session.
            playing: whether an answer sounds at the client.
            speaking: whether a turn of the user's is open.
        """
        self._tail = TAIL_WINDOWS if playing else max(0, self._tail - 1)
        self._rest = max(0, self._rest - 1)
        if not self._tail:
            self._recent.clear()
            self._levels.clear()
            self._row = self._row + 1 if probability >= threshold else 0
            begins = self._row >= BEGIN_WINDOWS or (self._row and probability >= max(threshold, CLEAR))
            return Judgement(True, self._row if begins else 0, False)
        self._row = 0
        level, speech = decibels(window), probability >= max(threshold, PLAYING_THRESHOLD)
        self._forget(level)
        over = level - self._echo_db
        learning = self._learnt < LEARN_WINDOWS and not speaking
        self._learnt += learning
        if over > 0:
            self._echo_db += min(over, OPEN_RISE_DB) if speaking else over if learning or over < MARGIN_DB else min(over, RISE_DB)
        counts = next((windows for least, windows in COUNTS if over >= least), 0) if speech else 0
        if over >= NO_ECHO_DB and not speech and probability >= threshold:
            counts = FAINT_COUNTS
        self._recent.append(0 if learning else counts)
        begins = sum(self._recent) >= PLAYING_WINDOWS
        begun = sum(1 for _ in dropwhile(lambda counts: not counts, self._recent)) if begins else 0
        quiet = playing and not (learning or speaking or self._rest)
        suspect = quiet and over >= NO_ECHO_DB and probability >= SUSPECT
        if suspect:
            self._rest = SUSPECT_REST
        return Judgement(speech and over >= GOES_ON_DB, begun, suspect)

    def _forget(self, level: float) -> None:
        """Part of what was learnt, or nearly all where it cannot have been an echo."""
        self._levels.append(level)
        self._echo_db = max(SOFTEST_DB, self._echo_db - FADE_DB)
        if len(self._levels) == UNLEARN_WINDOWS and (loudest := max(self._levels)) < self._echo_db - UNLEARN_DB:
            self._echo_db = max(SOFTEST_DB, loudest + UNLEARNT_DB)


def decibels(window: F32[np.ndarray, " F"]) -> float:
    """Root mean square below full scale."""
    return 10 * float(np.log10(np.mean(np.square(window, dtype=np.float64)) + 1e-10))
