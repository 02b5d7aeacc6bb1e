"""A client's bytes, of any length -> windows of 32 ms, float32 at 16 kHz.

Half a sample, the resampler's state and half a window are carried from piece to piece, so that the cuts between messages are not heard.
"""

from collections.abc import Iterator

import numpy as np
import soxr

from qwen3_jax.shapes import F32
from server.listen.base import RATE, WINDOW

SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
BYTES = {"pcm16": 2, "pcm32f": 4}
MOST_SECONDS = 60.0  # of audio in one message


class AudioIn:
    """One client's way in.

    Args:
        sample_rate: Hz of the input, one of ``SAMPLE_RATES``.
        encoding: ``pcm16`` or ``pcm32f``, little-endian.
    """

    def __init__(self, sample_rate: int = RATE, encoding: str = "pcm16") -> None:
        self.sample_rate, self.encoding = sample_rate, encoding
        self.seconds = 0.0  # that have come
        self._resampler = None if sample_rate == RATE else soxr.ResampleStream(sample_rate, RATE, 1, "float32", "MQ")
        self._bytes = b""  # of half a sample
        self._samples = np.zeros(0, np.float32)  # of half a window

    def check_length(self, size: int) -> None:
        """Raises ValueError if a message of so many bytes is more than a minute."""
        seconds = size / BYTES[self.encoding] / self.sample_rate
        if seconds > MOST_SECONDS:
            raise ValueError(f"{seconds:.0f} s of audio in one message: at most {MOST_SECONDS:g} s; send it in pieces, as it is recorded")

    def feed(self, data: bytes) -> Iterator[F32[np.ndarray, "512"]]:
        """The next bytes -> the windows that are complete with them.

        Raises:
            ValueError: more than a minute in one message, or a sample that is NaN or infinite; then nothing of the message is heard.
        """
        self.check_length(len(data))
        size = BYTES[self.encoding]
        data = self._bytes + data
        whole = len(data) - len(data) % size
        self._bytes = data[whole:]  # of a message that is refused, too: the next one's samples begin where they do
        if self.encoding == "pcm16":
            samples = np.frombuffer(data[:whole], "<i2").astype(np.float32) / 32768
        else:
            samples = np.frombuffer(data[:whole], "<f4").astype(np.float32, copy=True)
            if not (finite := np.isfinite(samples)).all():
                wrong = samples[~finite][0]
                raise ValueError(f"a sample of the audio is {wrong}: pcm32f must be finite numbers from -1 to 1; send silence as 0")
            np.clip(samples, -1.0, 1.0, out=samples)
        self.seconds += len(samples) / self.sample_rate
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        joined = np.concatenate([self._samples, samples])
        complete = len(joined) - len(joined) % WINDOW
        self._samples = joined[complete:]
        return iter(joined[:complete].reshape(-1, WINDOW))
