"""The page's own voice, which the microphone hears, is no speech of the user's. Pure; all parameters are here.

While an answer sounds at the client, speech must be clearer and longer, and louder than the answer's echo. How loud that is, is learnt in
the first second of a session's answers, all of it together; without an echo (headphones, or a browser that cancels it) it is as soft as the
room, and hinders nobody. What was learnt and was no echo, since somebody spoke in that second, is unlearnt in the next pause: an answer
is hardly ever so much softer for so long.

What the user says is louder than the echo, so it raises what was learnt. That is undone when speech goes on after the answer is silent, for
then all of the turn was the user's; and when answers alone stay far softer for 3 s.

Ducking an answer needs less than beginning a turn, for it is undone in a moment: a window that may be speech, or sound that lasts
40 ms. Silero gives the beginnings of "she", "he" and "can" 0.00 to 0.03 for up to 130 ms, as it does noise. In simulation
(80 interruptions in five sessions, 8 sentences, headphones, a quiet room; 2026-11-30):

| | p50 | p95 |
|---|---|---|
| ducked, as it was (probability .25; what was learnt never undone) | 96 ms | 236 ms |
| ducked | 53 ms | 76 ms |
| a turn begins | 148 ms | 201 ms |

At the client (`benchmarks.listen --only duck`, 20 tries, two cores of Zen 4): p50 53 ms, p95 68 ms; as it was 104 and 240 ms.

Ducked for nothing in a minute of typing 1, of mouse clicks 0, of music that begins every 20 s 3 (once each), at -30 dB; never in 16 minutes
of echo at -10 and -20 dB. Interruptions missed, of sessions of 16 with a sentence as loud as the page: echo of -20 dB 25 % -> 0,
of -10 dB 92 % -> 45 %.

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
SUSPECT, SUSPECT_DB = 0.1, 15.0  # so probable, and so far over it, a window may be the beginning of speech: enough to duck an answer
STEADY_DB, STEADY_BLOCKS = 14.0, 5  # so is sound that stays so far over it for so long, 40 ms: a consonant without voice is not probable
BLOCK = 128  # samples, 8 ms, of which each must be so loud: a key or a click dies away before
SUSPECT_REST = 32  # windows, 1 s, before the next one may be
GOES_ON_DB = 0.0  # the same for speech that has begun
LEARN_WINDOWS = 32  # of a session's answers, the first ones, that are taken for echo alone: 1 s
UNLEARN_WINDOWS, UNLEARN_DB = 94, 8.0  # of answers alone, 3 s, that are all so much softer than the echo: it was none
UNLEARNT_DB = 4.0  # by which the echo may be louder than the loudest of those
SURE_WINDOWS = 3  # of speech that goes on when no answer sounds any more: all of the turn was the user's
RISES = ((10.0, 1.0), (0.0, 0.5))  # dB over the echo -> dB by which a louder window raises it: it may have become louder
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
        self._echoes: deque[float] = deque(maxlen=PLAYING_OF)  # what was learnt before each of those
        self._before: float | None = None  # the same before the turn that is open
        self._sure = 0  # windows of speech after an answer, in that turn
        self._levels: deque[float] = deque(maxlen=UNLEARN_WINDOWS)
        self._row = 0  # windows of speech in a row
        self._steady = 0  # blocks in a row that are loud
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
        if not speaking:
            self._before, self._sure = None, 0
        if not self._tail:
            self._recent.clear()
            self._echoes.clear()
            self._sure += probability >= threshold
            if self._before is not None and self._sure >= SURE_WINDOWS:
                self._echo_db = min(self._echo_db, self._before)
            self._steady = 0
            self._row = self._row + 1 if probability >= threshold else 0
            begins = self._row >= BEGIN_WINDOWS or (self._row and probability >= max(threshold, CLEAR))
            return Judgement(True, self._row if begins else 0, False)
        self._row = 0
        level, speech = decibels(window), probability >= max(threshold, PLAYING_THRESHOLD)
        self._forget(level, alone=playing and not speaking)
        echo = self._echo_db
        over = level - echo
        learning = self._learnt < LEARN_WINDOWS and not speaking
        self._learnt += learning
        if over > 0:
            rise = OPEN_RISE_DB if speaking else over if learning or over < MARGIN_DB else _of(RISES, over)
            self._echo_db += min(over, rise)
        counts = round(_of(COUNTS, over)) if speech else 0
        if over >= NO_ECHO_DB and not speech and probability >= threshold:
            counts = FAINT_COUNTS
        self._recent.append(0 if learning else counts)
        self._echoes.append(echo)
        begins = sum(self._recent) >= PLAYING_WINDOWS
        begun = sum(1 for _ in dropwhile(lambda counts: not counts, self._recent)) if begins else 0
        if begins and not speaking:
            self._before = self._echoes[-begun]
            self._alone_till_now()
        steady = self._lasts(window, echo)
        may_be = steady or (over >= SUSPECT_DB and probability >= SUSPECT)
        suspect = may_be and playing and not (learning or speaking or self._rest)
        if suspect:
            self._rest = SUSPECT_REST
        return Judgement(speech and over >= GOES_ON_DB, begun, suspect)

    def _lasts(self, window: F32[np.ndarray, "512"], echo: float) -> bool:
        """Whether sound that is louder than the echo has gone on for long enough, at any place of the window."""
        longest = 0
        for block in window.reshape(-1, BLOCK):
            self._steady = self._steady + 1 if decibels(block) >= echo + STEADY_DB else 0
            longest = max(longest, self._steady)
        return longest >= STEADY_BLOCKS

    def _forget(self, level: float, *, alone: bool) -> None:
        """Part of what was learnt, or nearly all where it cannot have been an echo. ``alone``: an answer sounds, and nobody speaks."""
        if alone:
            self._levels.append(level)
        self._echo_db = max(SOFTEST_DB, self._echo_db - FADE_DB)
        if len(self._levels) == UNLEARN_WINDOWS and (loudest := max(self._levels)) < self._echo_db - UNLEARN_DB:
            self._echo_db = max(SOFTEST_DB, loudest + UNLEARNT_DB)

    def _alone_till_now(self) -> None:
        """Somebody speaks: the last windows were no answer alone."""
        for _ in range(min(PLAYING_OF, len(self._levels))):
            self._levels.pop()


def _of(table: tuple[tuple[float, float], ...], over: float) -> float:
    """The entry for so many dB over the echo, 0 below the last one."""
    return next((entry for least, entry in table if over >= least), 0)


def decibels(window: F32[np.ndarray, " F"]) -> float:
    """Root mean square below full scale."""
    return 10 * float(np.log10(np.mean(np.square(window, dtype=np.float64)) + 1e-10))
