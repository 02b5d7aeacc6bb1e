"""How loud the echo of an answer is expected to be: the answer's own level a moment ago, and a gain that is learnt. Pure.

The server knows the answer's level at each moment, but not how late its echo comes: by what client and network keep back, 0 to 0.5 s. Once
the microphone's level has followed the answer's, with one delay, for 3 s, that delay is taken, and between the answer's words and in its
soft syllables the echo is soft. Until then, and where nothing is known of the answer's level, its loudest moment of the last 0.4 s counts.

The gain is taken from the 30 % of windows with the most of it, of the last 30 s of answers alone: a user who is taken for echo now and
then hardly changes it, and is forgotten.
"""

from collections import deque

import numpy as np

from qwen3_jax.shapes import F32

SILENCE_DB, SOFTEST_DB = -100.0, -70.0  # of an answer that does not sound; of an echo
SPAN = 26  # windows of the answer that are looked back at
DELAYS = 16  # windows that an echo may be late: 0.5 s
EARLY, LATE = 2, 1  # by which the delay that was found may be wrong, for nobody knows a position to the window
UNKNOWN = 12  # where no delay is found, an echo is late by any of 0 to so many
DECAY_DB = 5.0  # a window, by which a room's reverberation dies away
KEPT, FIND, FIT = 938, 96, 16  # windows: that are learnt from, 30 s; after which the delay is found anew; the gain
NEWEST = 312  # of them, from which the delay is found: 10 s
SHARE = 0.7  # of windows, that are less loud than the gain says
ABOVE_DB, ABOVE_UNKNOWN_DB = 6.0, 10.0  # by which echoes may be louder than that; without a delay they vary more
FOLLOWS = 0.75  # correlation of an echo with its answer
HEARD_DB, LOUD_DB = -60.0, 25.0  # below the one a microphone hears its room only; so far below the loudest, nothing is learnt of a gain
OFTEN = 0.95  # of all windows are not louder than ``usual``
Heard = tuple[float, F32[np.ndarray, "26"]]  # the microphone's level, and the answer's last windows, the newest first


def _falls(first: int, last: int) -> np.ndarray:
    """dB by which each window of the last ``SPAN`` ones counts less now, for an echo that is late by ``first`` to ``last`` windows."""
    late = np.arange(SPAN)
    return np.where(late < first, np.inf, DECAY_DB * np.maximum(0, late - last))


ANY = _falls(0, UNKNOWN)
TRIED = np.stack([_falls(max(0, late - 1), late + 1) for late in range(DELAYS)])
TAKEN = np.stack([_falls(max(0, late - EARLY), late + LATE) for late in range(DELAYS)])


class EchoLevel:
    """Of one microphone."""

    def __init__(self) -> None:
        self.usual = SOFTEST_DB  # of the microphone while answers sound
        self._gain: float | None = None
        self._late: int | None = None  # windows that the echo is late
        self._falls = ANY
        self._answer = deque([SILENCE_DB] * SPAN, maxlen=SPAN)  # the newest first
        self._heard = deque[Heard](maxlen=KEPT)
        self._learnt = 0  # windows

    def expected(self, answer_db: float | None) -> float:
        """The next window. ``answer_db``: the level of the answer that sounds now; None where only that it sounds is known."""
        self._answer.appendleft(0.0 if answer_db is None else max(answer_db, SILENCE_DB))
        if self._gain is None:
            return SOFTEST_DB
        return max(SOFTEST_DB, float((np.array(self._answer) - self._falls).max()) + self._gain)

    def learn(self, level: float) -> None:
        """What the microphone heard in this window was the answer alone."""
        self._heard.append((level, np.array(self._answer, np.float32)))
        self._learnt += 1
        if self._learnt % FIT == 0:
            self._fit(np.array([level for level, _ in self._heard]), np.stack([answer for _, answer in self._heard]))

    def unlearn(self, windows: int) -> None:
        """The last ones were not."""
        for _ in range(min(windows, len(self._heard))):
            self._heard.pop()

    def _fit(self, levels: np.ndarray, answers: np.ndarray) -> None:
        if self._learnt % FIND == 0:
            self._late = _delay(levels[-NEWEST:], answers[-NEWEST:])
            self._falls = ANY if self._late is None else TAKEN[self._late]
        sounded = (answers - self._falls).max(1)
        gains = (levels - sounded)[sounded >= sounded.max() - LOUD_DB]
        above = ABOVE_UNKNOWN_DB if self._late is None else ABOVE_DB
        self._gain = min(float(np.quantile(gains, SHARE)) + above, float(gains.max()))
        self.usual = float(np.quantile(levels, OFTEN))


def _delay(levels: np.ndarray, answers: np.ndarray) -> int | None:
    """By how many windows the microphone follows the answer; None if it does not."""
    sounded = (answers[:, None] - TRIED).max(2)
    sounded = np.maximum(sounded, sounded.max() - 40)
    heard = np.maximum(levels, HEARD_DB)
    sounded, heard = sounded - sounded.mean(0), heard - heard.mean()
    follows = heard @ sounded / np.sqrt(np.square(heard).sum() * np.square(sounded).sum(0) + 1e-9)
    late = int(follows.argmax())
    return late if follows[late] >= FOLLOWS else None
