"""Features of a part's steps, and the sounds of its words -> when each word begins and ends: a hidden semi-Markov model.

Every sound has a kind, with a Gaussian over the features of a step and a log-normal over its length (Rabiner 1989, IV.D). Before every
word there may be silence, more likely after a mark. The path grows step by step as the sound comes.
"""

from typing import NamedTuple

import numpy as np

from qwen3_jax.shapes import F64

LONGEST = 32  # steps of one sound
SILENCE = 7  # a kind beside those of word_sounds.py
# Features of a step: loudness in dB below the loudest so far, and of that loudness the dB in 0 to 1, 1 to 3.5 and above 3.5 kHz.
MEANS = np.array(
    [
        [-9.0, -2.0, -8.0, -22.0],
        [-14.0, -1.5, -12.0, -24.0],
        [-24.0, -6.0, -8.0, -8.0],
        [-24.0, -14.0, -10.0, -2.0],
        [-28.0, -6.0, -8.0, -8.0],
    ]
)
DEVIATIONS = np.array([[7.0, 3.0, 5.0, 8.0], [8.0, 3.0, 6.0, 8.0], [10.0, 6.0, 6.0, 7.0], [9.0, 8.0, 7.0, 3.0], [12.0, 7.0, 6.0, 8.0]])
SILENCE_MEAN, SILENCE_DEVIATION = np.array([-50.0, -6.0, -8.0, -8.0]), np.array([10.0, 7.0, 6.0, 8.0])
STEPS = np.array([9.0, 6.5, 7.0, 10.0, 6.5, 7.0, 18.0])  # median length of a sound of each kind
SPREAD = 0.45  # of the logarithm of a length
TRUST = 0.35  # neighbouring steps are alike: how much of one counts
PAUSE_STAYS = 0.95  # probability that silence goes on
_NEVER = -1e9


def fits(features: F64[np.ndarray, "N 4"]) -> F64[np.ndarray, "N 8"]:
    """Features of steps -> the log probability of each under each kind of sound, and under silence."""
    means, deviations = np.vstack([MEANS, SILENCE_MEAN]), np.vstack([DEVIATIONS, SILENCE_DEVIATION])
    distance = np.square((features[:, None] - means) / deviations).sum(-1)
    known = -TRUST * (0.5 * distance + np.log(deviations).sum(-1))
    kinds, silence = known[:, :-1], known[:, -1:]
    anything = kinds.max(-1, keepdims=True)
    return np.concatenate([kinds, anything, anything, silence], axis=1)


class Words(NamedTuple):
    """The sounds of some words, in order.

    Attributes:
        kinds: of all their sounds; a word has at least one.
        word: the number of the word that each belongs to.
        pause: probability of silence before each word, and after the last.
    """

    kinds: list[int]
    word: list[int]
    pause: list[float]


class Trellis:
    """How well every sound fits to end at every step. ``advance`` brings more steps, ``times`` tells where words lie.

    Args:
        words: whose sounds are heard.
        rate: how long the voice takes for a sound, against ``STEPS``.
    """

    def __init__(self, words: Words, rate: float) -> None:
        kinds = np.array(words.kinds)
        self._word = np.array(words.word)
        self._first = np.flatnonzero(np.diff(self._word, prepend=-1))  # of each word: its first sound
        self._last = np.append(self._first[1:], len(kinds)) - 1
        self._pause = np.log(np.clip(words.pause, 1e-4, 0.9999))
        self._no_pause = np.log1p(-np.exp(self._pause))
        self._kinds, count = kinds, len(kinds)
        self._usual = STEPS[kinds] * rate
        lengths = np.log(np.arange(1, LONGEST + 1)[:, None] / (STEPS[kinds] * rate))
        density = np.exp(-0.5 * (lengths / SPREAD) ** 2) / np.arange(1, LONGEST + 1)[:, None] + 1e-12
        density /= density.sum(0)
        self._length = np.log(density)  # [LONGEST J]
        self._longer = np.log(np.cumsum(density[::-1], 0)[::-1])  # that it lasts at least so long
        self._rolled = np.concatenate([self._length[::-1]] * 2)
        self._entries = np.full((LONGEST, count), _NEVER)  # of the last steps, at step % LONGEST: begun there, less the sum up to there
        self._sum = np.zeros(count)  # of the fits of all steps so far
        self._silent = np.full(len(self._first) + 1, _NEVER)  # silence before each word, and after the last
        self._since = np.zeros(len(self._first) + 1, np.int32)
        self._ended = np.full(count, _NEVER)  # that each sound ends here
        self._lengths: list[F64[np.ndarray, " J"]] = []  # by step: of the sound that ends there
        self._from_silence: list[F64[np.ndarray, " W"]] = []
        self._silent_since: list[F64[np.ndarray, " W"]] = []
        self.steps = 0
        self._silent[0], start = self._pause[0], np.full(count, _NEVER)
        start[0] = self._no_pause[0]
        self._enter(start)

    @staticmethod
    def usual(words: Words) -> float:
        """How many steps their sounds take, at a rate of 1."""
        return float(STEPS[words.kinds].sum())

    def advance(self, fits: F64[np.ndarray, "N 8"]) -> None:
        """More steps: the log probability of each under each kind."""
        all_sounds, silence = fits[:, self._kinds], fits[:, SILENCE]
        stay = np.log(PAUSE_STAYS)
        leave = np.log1p(-PAUSE_STAYS)
        for sound, quiet in zip(all_sounds, silence, strict=True):
            self._sum += sound
            offset = (-self.steps - 1) % LONGEST
            paths = self._entries + self._rolled[offset : offset + LONGEST]
            place = paths.argmax(0)
            before = self._ended
            self._ended = self._sum + paths[place, np.arange(len(self._sum))]
            self._lengths.append(((self.steps - place) % LONGEST + 1).astype(np.uint8))
            begun = np.concatenate([[_NEVER], before[self._last]]) + self._pause
            going = self._silent + stay
            self._since = np.where(begun > going, self.steps, self._since)
            self._silent = quiet + np.maximum(begun, going)
            self.steps += 1
            start = np.concatenate([[_NEVER], self._ended[:-1]])
            direct = np.concatenate([[_NEVER], self._ended[self._last[:-1]]]) + self._no_pause[:-1]
            after = self._silent[:-1] + leave
            start[self._first] = np.maximum(direct, after)
            self._from_silence.append(after > direct)
            self._silent_since.append(self._since.copy())
            self._enter(start)

    def _enter(self, start: F64[np.ndarray, " J"]) -> None:
        self._entries[self.steps % LONGEST] = start - self._sum

    def times(self, *, over: bool) -> list[tuple[float, float]]:
        """(first, last) step of each word that has begun, along the likeliest path; ``over``: every word has ended.

        Where it is not over, the last word's end may lie ahead: where it would be at the usual length of its sounds.
        """
        sound, begin, end = self._finished() if over else self._now()
        times: list[tuple[float, float]] = []
        while sound >= 0:
            number = int(self._word[sound])
            while sound != self._first[number]:
                sound -= 1
                begin -= int(self._lengths[begin - 1][sound])
            times.append((float(begin), end))
            if number == 0:
                break
            if self._from_silence[begin - 1][number]:
                begin = int(self._silent_since[begin - 1][number])
            sound, end = sound - 1, float(begin)
            begin -= int(self._lengths[begin - 1][sound])
        return times[::-1]

    def _finished(self) -> tuple[int, int, float]:
        """(the last sound, its first step, its end) of the likeliest path that has said all."""
        step = int(self._since[-1]) if self._silent[-1] > self._ended[-1] else self.steps
        sound = len(self._kinds) - 1
        if self._ended[-1] <= _NEVER / 2 and self._silent[-1] <= _NEVER / 2:
            return -1, 0, 0.0
        return sound, step - int(self._lengths[step - 1][sound]), float(step)

    def _now(self) -> tuple[int, int, float]:
        """The same of the likeliest path that may still go on; its end may lie ahead. The sound is -1 if none has begun."""
        lasted = (self.steps - np.arange(LONGEST)) % LONGEST  # of what begun at that place of the ring
        under_way = self._entries + self._sum + self._longer[lasted]
        under_way[lasted == 0] = _NEVER
        place, sound = np.unravel_index(int(under_way.argmax()), under_way.shape)
        quiet = int(self._silent.argmax())
        if self._silent[quiet] > under_way[place, sound]:
            if quiet == 0:
                return -1, 0, 0.0
            sound, step = int(self._last[quiet - 1]), int(self._since[quiet])
            return sound, step - int(self._lengths[step - 1][sound]), float(step)
        begin = self.steps - int(lasted[place])
        last = self._last[self._word[sound]]
        end = max(self.steps, begin + self._usual[sound]) + self._usual[sound + 1 : last + 1].sum()
        return int(sound), begin, float(end)
