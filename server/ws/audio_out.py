"""An utterance's pcm (float32, mono, 24 kHz) -> bytes in the session's encoding and rate, in frames of at most 320 ms; and their pace.

The resampler's state is carried from piece to piece, so that they join without a click; what it holds back comes out of ``finish``.
"""

from collections.abc import Iterator

import numpy as np
import soxr

from qwen3_jax.audio.samples import SAMPLE_RATE, check_finite, to_pcm16
from qwen3_jax.shapes import F32

MAX_FRAME_SECONDS = 0.32


class Converter:
    """One utterance's way out.

    Args:
        sample_rate: Hz of the output.
        encoding: ``pcm16`` or ``pcm32f``, little-endian.
    """

    def __init__(self, sample_rate: int, encoding: str) -> None:
        self.sample_rate, self.encoding = sample_rate, encoding
        self.samples = 0  # written so far
        self._most = int(MAX_FRAME_SECONDS * sample_rate)
        self._resampler = None if sample_rate == SAMPLE_RATE else soxr.ResampleStream(SAMPLE_RATE, sample_rate, 1, "float32", "HQ")

    def write(self, pcm: F32[np.ndarray, " F"]) -> Iterator[tuple[bytes, float]]:
        """(frame, its seconds) for the next piece. Raises FloatingPointError for samples that are not finite."""
        check_finite(pcm)
        yield from self._frames(pcm if self._resampler is None else self._resampler.resample_chunk(pcm))

    def finish(self) -> Iterator[tuple[bytes, float]]:
        """What is left after the last piece."""
        if self._resampler is not None:
            yield from self._frames(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate

    def _frames(self, samples: F32[np.ndarray, " F"]) -> Iterator[tuple[bytes, float]]:
        self.samples += len(samples)
        for start in range(0, len(samples), self._most):
            frame = samples[start : start + self._most]
            yield (to_pcm16(frame) if self.encoding == "pcm16" else frame.astype("<f4").tobytes()), len(frame) / self.sample_rate


class SendPace:
    """How far what was sent is ahead of a listener who began at the first frame. All times are seconds of one clock.

    Args:
        lead: how far it may be.
    """

    def __init__(self, lead: float) -> None:
        self._lead = lead
        self._heard_until = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds to wait before the next frame goes out."""
        return max(0.0, self._heard_until - now - self._lead)

    def sent(self, seconds: float, now: float) -> float:
        """A frame went out. Returns by how many seconds it was late for a listener who had heard all that came before."""
        late = now - self._heard_until
        self._heard_until = max(self._heard_until, now) + seconds
        return max(0.0, late)

    def ahead(self, now: float) -> float:
        """Seconds that such a listener has not heard yet."""
        return max(0.0, self._heard_until - now)

    def forget(self) -> None:
        """The listener threw away what he had."""
        self._heard_until = float("-inf")
