"""How loud an utterance is at each moment, for whoever hears its echo. Pure."""

import numpy as np

from qwen3_jax.audio.samples import SAMPLE_RATE
from qwen3_jax.shapes import F32

STEP = 0.032  # seconds
SILENCE_DB = -100.0


class Loudness:
    """Of one utterance, as it is made."""

    def __init__(self) -> None:
        self._steps: list[float] = []  # dB of full scale
        self._rest = np.zeros(0, np.float32)

    def feed(self, pcm: F32[np.ndarray, " F"]) -> None:
        """Its next sound, at the engine's rate."""
        size = round(STEP * SAMPLE_RATE)
        joined = np.concatenate([self._rest, pcm])
        whole = len(joined) - len(joined) % size
        self._rest = joined[whole:]
        power = np.square(joined[:whole].reshape(-1, size), dtype=np.float64).mean(1)
        self._steps += (10 * np.log10(power + 10 ** (SILENCE_DB / 10))).tolist()

    def loudest(self, begin: float, end: float) -> float:
        """The level of its loudest moment between two seconds of it, and of the step before; ``SILENCE_DB`` outside of it."""
        steps = self._steps[max(0, int(begin / STEP) - 1) : max(0, int(end / STEP) + 1)]
        return max(steps, default=SILENCE_DB)
