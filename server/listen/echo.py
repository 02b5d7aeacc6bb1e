"""The page's own voice, which the microphone hears, is no speech of the user's. Pure; all parameters are here.

While an answer sounds at the client, speech must be clearer and longer, and louder than the answer's echo. How loud that is, is learnt in
the first second of each answer; without an echo (headphones, or a browser that cancels it) it is as soft as the room, and hinders nobody.
"""

import numpy as np

from qwen3_jax.shapes import F32

CLEAR, CLEAR_WINDOWS = 0.8, 1  # a window that is so probable is enough to begin speech
BEGIN_WINDOWS = 2  # less probable ones that are
PLAYING_THRESHOLD, PLAYING_WINDOWS = 0.8, 5  # the same while an answer sounds: 160 ms
MARGIN_DB = 6.0  # by which speech is louder than the echo
LEARN_WINDOWS = 32  # of an answer, that are all echo: 1 s
TAIL_WINDOWS = 10  # that an answer still sounds in the room after its end: 320 ms
FADE_DB = 0.02  # a window, by which what was learnt is forgotten: 6 dB in 10 s
SOFTEST_DB = -70.0


class EchoGuard:
    """What one microphone hears while answers sound."""

    def __init__(self) -> None:
        self._echo_db = SOFTEST_DB
        self._playing_for = 0  # windows
        self._tail = 0

    def judge(self, window: F32[np.ndarray, "512"], probability: float, threshold: float, *, playing: bool) -> tuple[bool, int]:
        """A window that may begin speech.

        Args:
            threshold: of the session.
            playing: whether an answer sounds at the client.

        Returns:
            Whether it is speech of the user's, and how many such windows in a row begin it.
        """
        self._tail = TAIL_WINDOWS if playing else max(0, self._tail - 1)
        self._playing_for = self._playing_for + 1 if self._tail else 0
        self._echo_db = max(SOFTEST_DB, self._echo_db - FADE_DB)
        if not self._tail:
            clear = max(threshold, CLEAR)
            return probability >= threshold, CLEAR_WINDOWS if probability >= clear else BEGIN_WINDOWS
        level = decibels(window)
        louder = level >= self._echo_db + MARGIN_DB
        if self._playing_for <= LEARN_WINDOWS or not louder:
            self._echo_db = max(self._echo_db, level)
            return False, PLAYING_WINDOWS
        return probability >= max(threshold, PLAYING_THRESHOLD), PLAYING_WINDOWS


def decibels(window: F32[np.ndarray, " F"]) -> float:
    """Root mean square below full scale."""
    return 10 * float(np.log10(np.mean(np.square(window, dtype=np.float64)) + 1e-10))
