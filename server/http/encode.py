"""pcm as it comes (float32, mono, 24 kHz) -> a file as it is made: mp3, opus, aac, flac, wav or pcm.

Every format but FLAC is streamed. libsndfile writes to a Sink; where it goes back to mend a header that has left already, the mend is
dropped, so the length must follow from the rest: MP3 has a constant bit rate, OGG tells its length at its end, a WAV header says that it
is not known. A FLAC header that does not know makes a file that soundfile cannot read, so FLAC leaves when it is whole. AAC (ADTS), and
any speed but 1, need PyAV.
"""

import io
import struct
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from qwen3_jax.audio.files import open_sound
from qwen3_jax.audio.recording import PYAV
from qwen3_jax.audio.samples import SAMPLE_RATE, check_finite, to_pcm16
from qwen3_jax.shapes import F32

CONTENT_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
UNKNOWN = 0xFFFFFFFF  # a length that nobody knows yet
_SOUNDFILE = {"mp3": ".mp3", "opus": ".opus", "flac": ".flac"}


class Unavailable(ValueError):
    """A format or a speed that needs a package which is not installed."""


class FileEncoder(Protocol):
    """Pieces in, bytes out. ``write`` raises FloatingPointError for samples that are not finite."""

    def write(self, pcm: F32[np.ndarray, " F"]) -> bytes: ...
    def finish(self) -> bytes: ...


class RawPcm:
    """16-bit little-endian PCM; ``header`` goes before it."""

    def __init__(self, header: bytes = b"") -> None:
        self._header = header

    def write(self, pcm: F32[np.ndarray, " F"]) -> bytes:
        header, self._header = self._header, b""
        return header + to_pcm16(pcm)

    def finish(self) -> bytes:
        return self._header


class Sink(io.RawIOBase):
    """A file that can only grow, for whoever thinks that it can seek."""

    def __init__(self) -> None:
        super().__init__()
        self._taken = bytearray()
        self._length = self._place = 0

    def write(self, data: Any) -> int:
        new = max(0, self._place + len(data) - self._length) if self._place + len(data) > self._length else 0
        if new:
            self._taken += bytes(data)[-new:]
            self._length += new
        self._place += len(data)
        return len(data)

    def seek(self, place: int, whence: int = 0) -> int:
        self._place = place + (0, self._place, self._length)[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Nothing that was written can be read again."""
        return 0

    def take(self) -> bytes:
        """What has been written since the last time."""
        data = bytes(self._taken)
        self._taken.clear()
        return data


class Sound:
    """libsndfile's formats, streamed."""

    def __init__(self, kind: str) -> None:
        self._sink = Sink()
        self._file = open_sound(self._sink, _SOUNDFILE[kind], SAMPLE_RATE)

    def write(self, pcm: F32[np.ndarray, " F"]) -> bytes:
        self._file.write(np.clip(check_finite(pcm), -1, 1))
        return self._sink.take()

    def finish(self) -> bytes:
        self._file.close()
        return self._sink.take()


class Whole:
    """libsndfile's formats, whole at the end."""

    def __init__(self, kind: str) -> None:
        self._sink = io.BytesIO()
        self._file = open_sound(self._sink, _SOUNDFILE[kind], SAMPLE_RATE)

    def write(self, pcm: F32[np.ndarray, " F"]) -> bytes:
        self._file.write(np.clip(check_finite(pcm), -1, 1))
        return b""

    def finish(self) -> bytes:
        self._file.close()
        return self._sink.getvalue()


class Aac:
    """AAC in ADTS frames, each of which says all that a player needs."""

    def __init__(self) -> None:
        av = _av("response_format aac")
        self._file = _Buffer()
        self._container = av.open(self._file, "w", format="adts")
        self._stream = self._container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        self._frame, self._place = av.AudioFrame, 0

    def write(self, pcm: F32[np.ndarray, " F"]) -> bytes:
        if not len(pcm):
            return b""  # FFmpeg takes no frame without samples
        frame = self._frame.from_ndarray(np.ascontiguousarray(check_finite(pcm)[None]), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, self._place, Fraction(1, SAMPLE_RATE)
        self._place += len(pcm)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        return self._file.take()

    def finish(self) -> bytes:
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        return self._file.take()


class _Buffer:
    """What PyAV wants of a file that it writes to."""

    def __init__(self) -> None:
        self._taken = bytearray()

    def write(self, data: bytes) -> int:
        self._taken += data
        return len(data)

    def take(self) -> bytes:
        data = bytes(self._taken)
        self._taken.clear()
        return data


class Tempo:
    """Faster or slower at the same pitch (FFmpeg's atempo). N samples in are round(N / speed) samples out, in pieces of whatever sizes.

    The filter cannot allocate an output of no samples, so it gets ``LEAST`` at a time; and it keeps what does not fill its window, so
    silence follows the last piece, and what comes of that is cut off.

    Args:
        speed: 0.25 to 4.
    """

    LEAST, TAIL = 64, 8192  # samples: of a piece for the filter; of the silence at the end, a few of its windows

    def __init__(self, speed: float) -> None:
        av = _av(f"speed {speed:g}")
        self._frame, self._blocked, self._place = av.AudioFrame, (av.BlockingIOError, av.EOFError), 0
        self._speed, self._held = speed, np.zeros(0, np.float32)
        self._taken = self._given = 0  # samples
        self._graph = av.filter.Graph()
        nodes = [self._graph.add_abuffer(format="flt", sample_rate=SAMPLE_RATE, layout="mono", time_base=Fraction(1, SAMPLE_RATE))]
        while speed < 0.5:  # the filter's own limit
            nodes.append(self._graph.add("atempo", "0.5"))
            speed /= 0.5
        nodes += [self._graph.add("atempo", f"{speed:.6f}"), self._graph.add("abuffersink")]
        for one, following in zip(nodes, nodes[1:], strict=False):  # noqa: RUF007
            one.link_to(following)
        self._graph.configure()

    def write(self, pcm: F32[np.ndarray, " F"]) -> F32[np.ndarray, " _"]:
        """A piece in, what has become of the pieces so far out. Raises FloatingPointError for samples that are not finite."""
        self._taken += len(pcm)
        self._held = np.concatenate([self._held, check_finite(pcm)], dtype=np.float32)
        made = self._held[:0]
        if len(self._held) >= self.LEAST:
            self._push(self._held)
            self._held, made = made, self._pull()
        self._given += len(made)
        return made

    def finish(self) -> F32[np.ndarray, " F"]:
        """The rest."""
        self._push(np.concatenate([self._held, np.zeros(self.TAIL, np.float32)]))
        self._graph.push(None)
        return self._pull()[: max(0, round(self._taken / self._speed) - self._given)]

    def _push(self, pcm: F32[np.ndarray, " F"]) -> None:
        frame = self._frame.from_ndarray(np.ascontiguousarray(pcm[None]), format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, self._place, Fraction(1, SAMPLE_RATE)
        self._place += len(pcm)
        self._graph.push(frame)

    def _pull(self) -> F32[np.ndarray, " F"]:
        pieces = [np.zeros(0, np.float32)]
        while True:
            try:
                pieces.append(self._graph.pull().to_ndarray()[0])
            except self._blocked:
                return np.concatenate(pieces)


def encoder(kind: str) -> FileEncoder:
    """A fresh encoder for one of CONTENT_TYPES. Raises Unavailable."""
    if kind == "aac":
        return Aac()
    if kind == "flac":
        return Whole(kind)
    if kind in _SOUNDFILE:
        return Sound(kind)
    return RawPcm(wav_header() if kind == "wav" else b"")


def wav_header() -> bytes:
    """Of a stream whose length nobody knows yet."""
    fields = struct.pack("<HHIIHH", 1, 1, SAMPLE_RATE, SAMPLE_RATE * 2, 2, 16)
    return b"RIFF" + struct.pack("<I", UNKNOWN) + b"WAVEfmt " + struct.pack("<I", 16) + fields + b"data" + struct.pack("<I", UNKNOWN)


def _av(what: str) -> Any:
    try:
        import av
        import av.filter
    except ImportError as error:
        raise Unavailable(f"{what} needs PyAV, which this server has not; its operator can {PYAV}") from error
    return av
