"""The page's own voice, which the microphone hears, is no speech of the user's. Pure; all parameters are here, and in echo_level.

While an answer sounds at the client, speech must be clearer and longer, and louder than the answer's echo. How loud that is expected to be
(``EchoLevel``) follows the answer's own level; without an echo (headphones, or a browser that cancels it) it is as soft as the room, and
hinders nobody. Windows of a turn teach nothing of the echo, nor do the last ones before it: they were the user's. Where speech does not go
on after the answer has ended, it may have been an echo that has become louder: for a while, speech has to be louder, too.

Ducking an answer needs less than beginning a turn, for it is undone in a moment: a window that may be speech, or sound that lasts
40 ms. Silero gives the beginnings of "she", "he" and "can" 0.00 to 0.03 for up to 130 ms, as it does noise.

In simulation (80 interruptions in five sessions, 8 sentences as loud as the page; its echo 150 ms late with 0.2 s of reverberation; what is
known of the answer's place is wrong by 15 ms, and by up to 200 in its first quarter of a second; 2026-11-30). Before: a level that was
learnt in the first second, raised by whatever was louder, the user included.

| echo | missed | ducked, p50 and p95 | a turn begins, p50 and p95 | false begins, ducks in 10 min |
|---|---|---|---|---|
| -10 dB, before | 18 (16 more were not cut) | 140, 271 ms | 140, 271 ms | 1, 0 |
| -10 dB | 0 | 57, 128 ms | 102, 174 ms | 0, 1 |
| -10 dB, nothing known of the answer's level | 3 (23 more were not cut) | 116, 348 ms | 163, 353 ms | 0, 0 |
| -20 dB, before | 0 | 141, 234 ms | 169, 351 ms | 1, 0 |
| -20 dB | 0 | 60, 132 ms | 125, 209 ms | 0, 0 |
| -20 dB, nothing known of the answer's level | 0 | 101, 151 ms | 180, 342 ms | 0, 0 |
| none | 0 | 43, 62 ms | 122, 179 ms | |

In two minutes of typing, mouse clicks and music at -30 dB each: no turn, no duck.

The parameters were chosen on these very sessions. In five others at -10 dB: 0 missed, ducked after 80 and 142 ms, begun after 109 and 184,
and 2 false begins (in the seconds before 80 interruptions); in 10 other minutes of echo alone 0. An echo 350 ms late: 1 in 10 min.
"""

from collections import deque
from itertools import dropwhile
from typing import NamedTuple

import numpy as np

from qwen3_jax.shapes import F32
from server.listen.echo_level import SILENCE_DB, EchoLevel

CLEAR = 0.8  # a window that is so probable is enough to begin speech
BEGIN_WINDOWS = 2  # less probable ones in a row that are
PLAYING_THRESHOLD = 0.8  # while an answer sounds
PLAYING_WINDOWS, PLAYING_OF = 3, 12  # so many windows of the last so many (384 ms) must be loud speech then
MARGIN_DB = 2.0  # by which they are louder than the echo
COUNTS = ((20.0, 3), (8.0, 2), (MARGIN_DB, 1))  # dB over the echo -> for how many windows one counts: without an echo, one is enough
NO_ECHO_DB, FAINT_COUNTS = 20.0, 2  # so far over it, less clear speech counts, too, for so many
SUSPECTS = ((15.0, 0.1), (5.0, 0.8))  # dB over the echo -> probability with which a window may be the beginning of speech: it ducks
STEADY_DB, STEADY_BLOCKS = 14.0, 5  # so is sound that stays so far over all of it for so long, 40 ms: an unvoiced consonant is not probable
BLOCK = 128  # samples, 8 ms, of which each must be so loud: a key or a click dies away before
SUSPECT_REST = 32  # windows, 1 s, before the next one may be
GOES_ON_DB = 0.0  # the same for speech that has begun
LEARN_WINDOWS = 32  # of a session's answers, the first ones, that are taken for echo alone: 1 s
SURE_WINDOWS = 3  # of speech that goes on when no answer sounds any more: all of the turn was the user's
DOUBT_DB, MOST_DOUBT_DB = 2.0, 8.0  # by which the echo is taken to be louder after another turn, for that may have been echo; after many
FADE_DB = 0.01  # a window, by which that is forgotten while answers are alone: 3 dB in 10 s
OPEN_RISE_DB = 0.03  # a louder window of a turn, by which the echo is taken to be louder: 1 dB a second ends a turn that was echo
TAIL_WINDOWS = 10  # that an answer still sounds in the room after its end: 320 ms


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
        self._level = EchoLevel()
        self._learnt = self._tail = 0  # windows
        self._recent: deque[int] = deque(maxlen=PLAYING_OF)
        self._doubt = 0.0  # dB
        self._rise = 0.0  # dB, in the turn that is open
        self._doubtful = False  # whether an answer has sounded in that turn
        self._sure = 0  # windows of speech after an answer, in that turn
        self._row = 0  # windows of speech in a row
        self._steady = 0  # blocks in a row that are loud
        self._rest = 0  # windows in which none is suspected

    def judge(
        self, window: F32[np.ndarray, "512"], probability: float, threshold: float, *, playing: bool, speaking: bool,
        answer_db: float | None = None,
    ) -> Judgement:  # fmt: skip
        """The next window.

        Args:
            threshold: of the session.
            playing: whether an answer sounds at the client.
            speaking: whether a turn of the user's is open.
            answer_db: how loud the answer is that sounds now, itself; None where that is not known.
        """
        self._tail = TAIL_WINDOWS if playing else max(0, self._tail - 1)
        self._rest = max(0, self._rest - 1)
        if not speaking:
            self._settle()
        echo = self._level.expected(answer_db if playing else SILENCE_DB) + self._rise + self._doubt
        if not self._tail:
            self._recent.clear()
            self._sure += speaking and probability >= threshold
            self._steady = 0
            self._row = self._row + 1 if probability >= threshold else 0
            begins = self._row >= BEGIN_WINDOWS or (self._row and probability >= max(threshold, CLEAR))
            return Judgement(True, self._row if begins else 0, False)
        self._row = 0
        level, speech = decibels(window), probability >= max(threshold, PLAYING_THRESHOLD)
        over = level - echo
        learning = self._learnt < LEARN_WINDOWS and not speaking
        self._learnt += learning
        if speaking:
            self._rise += OPEN_RISE_DB * (over > 0)
        if playing:
            if speaking:
                self._doubtful = True
            else:
                self._level.learn(level)
                self._doubt = max(0.0, self._doubt - FADE_DB)
        counts = round(_of(COUNTS, over)) if speech else 0
        if over >= NO_ECHO_DB and not speech and probability >= threshold:
            counts = FAINT_COUNTS
        self._recent.append(0 if learning else counts)
        begins = sum(self._recent) >= PLAYING_WINDOWS
        begun = sum(1 for _ in dropwhile(lambda counts: not counts, self._recent)) if begins else 0
        if begins and not speaking:
            self._level.unlearn(PLAYING_OF)
        steady = self._lasts(window, max(echo, self._level.usual))
        may_be = steady or any(over >= least and probability >= enough for least, enough in SUSPECTS)
        suspect = may_be and playing and not (learning or speaking or self._rest)
        if suspect:
            self._rest = SUSPECT_REST
        return Judgement(speech and over >= GOES_ON_DB, begun, suspect)

    def forget(self) -> None:
        """Speech that was heard so far is over, or is not wanted: none begins in it."""
        self._row = self._steady = 0
        self._recent.clear()

    def _settle(self) -> None:
        """No turn is open. One that did not go on after the answer may have been its echo, and then that has become louder."""
        if self._doubtful and self._sure < SURE_WINDOWS:
            self._doubt = min(MOST_DOUBT_DB, self._doubt + DOUBT_DB)
        self._rise, self._sure, self._doubtful = 0.0, 0, False

    def _lasts(self, window: F32[np.ndarray, "512"], echo: float) -> bool:
        """Whether sound that is louder than the echo has gone on for long enough, at any place of the window."""
        longest = 0
        for block in window.reshape(-1, BLOCK):
            self._steady = self._steady + 1 if decibels(block) >= echo + STEADY_DB else 0
            longest = max(longest, self._steady)
        return longest >= STEADY_BLOCKS


def _of(table: tuple[tuple[float, float], ...], over: float) -> float:
    """The entry for so many dB over the echo, 0 below the last one."""
    return next((entry for least, entry in table if over >= least), 0)


def decibels(window: F32[np.ndarray, " F"]) -> float:
    """Root mean square below full scale."""
    return 10 * float(np.log10(np.mean(np.square(window, dtype=np.float64)) + 1e-10))
