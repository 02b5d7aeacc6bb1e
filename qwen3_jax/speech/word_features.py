"""Sound (float32 [F]) -> features of each 10 ms: loudness against the loudest so far, and its share of low, middle and high frequencies.

A step's window is its own 10 ms and the 10 ms before, so that nothing waits for sound that is still to come.
"""

import numpy as np

from qwen3_jax.shapes import F32, F64

STEP_SECONDS = 0.01
BANDS = (60.0, 1000.0, 3500.0, 12000.0)  # Hz
QUIETEST = 1e-10  # of the mean square
LOUD = -28.0  # dB of a full-scale sine: the level before anything was heard


class Features:
    """The features of one utterance, as its sound comes.

    Args:
        sample_rate: Hz, at least 8000.
    """

    def __init__(self, sample_rate: int) -> None:
        self.step = round(sample_rate * STEP_SECONDS)
        self._window = np.hanning(2 * self.step)
        self._size = 1 << (2 * self.step - 1).bit_length()
        frequencies = np.fft.rfftfreq(self._size, 1 / sample_rate)
        bounds = np.searchsorted(frequencies, BANDS)
        self._starts, self._end = bounds[:-1], bounds[-1]
        self._scale = 2.0 / (self._size * float(np.square(self._window).sum()))
        self._rest = np.zeros(self.step)  # the step before, and what is less than one
        self._level = LOUD

    def begin(self) -> None:
        """A part begins: what is less than a step is dropped."""
        self._rest = self._rest[: self.step] if len(self._rest) < 2 * self.step else self._rest[-self.step :]

    def feed(self, pcm: F32[np.ndarray, " F"]) -> F64[np.ndarray, "N 4"]:
        """The steps that are complete now."""
        sound = np.concatenate([self._rest, pcm])
        count = len(sound) // self.step - 1
        if count < 1:
            self._rest = sound
            return np.zeros((0, 4))
        self._rest = sound[count * self.step :]
        windows = np.lib.stride_tricks.sliding_window_view(sound, 2 * self.step)[:: self.step][:count]
        power = np.square(np.abs(np.fft.rfft(windows * self._window, self._size)))[:, : self._end] * self._scale
        bands = np.add.reduceat(power, self._starts, axis=1) + QUIETEST
        whole = bands.sum(1, keepdims=True)
        loudness = 10 * np.log10(whole[:, 0])
        level = np.maximum.accumulate(np.append(self._level, loudness))
        self._level = float(level[-1])
        return np.column_stack([loudness - level[1:], 10 * np.log10(bands / whole)])
