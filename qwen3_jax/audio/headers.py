"""Headers of WAV, AIFF and CAF that readers believe and must not: of a length that was never filled in, or of a depth that the bytes deny.

libsndfile takes the bytes of a sample from its bits alone. One wrong bit there (16 -> 17) makes three bytes of two, and noise of speech.
"""

import io
import struct
from typing import BinaryIO

_WHOLE = 2**28  # bytes that are read of a WAV whose header was never finished
_PLAIN = (1, 3, 0xFFFE)  # WAV: PCM, floats, or one of them in the longer header; of others the bits say nothing
_UNCOMPRESSED = (b"", b"NONE", b"twos", b"sowt")  # AIFF-C


class BadHeader(ValueError):
    """A header that contradicts itself; the message says how."""


def finished(file: BinaryIO) -> BinaryIO:
    """The file, at its beginning; of a WAV whose writer never came back to say how much there is (0 bytes), a copy that says: all.

    Raises:
        BadHeader: the bits of a sample and its bytes contradict each other.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        file = _wav(file, end)
    elif head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        _check_aiff(file, end)
    elif head[:4] == b"caff":
        _check_caf(file)
    file.seek(0)
    return file


def _wav(file: BinaryIO, end: int) -> BinaryIO:
    place = 12
    while place + 8 <= end:
        file.seek(place)
        name, size = struct.unpack("<4sI", file.read(8))
        if name == b"fmt " and size >= 16 and len(fields := file.read(16)) == 16:
            kind, channels, _, _, block, bits = struct.unpack("<HHIIHH", fields)
            if kind in _PLAIN:
                _check(bits, block / channels if channels else 0)
        elif name == b"data":
            if size or place + 8 == end:
                break
            file.seek(0)
            data = bytearray(file.read(_WHOLE))
            data[4:8] = data[place + 4 : place + 8] = b"\xff" * 4
            return io.BytesIO(bytes(data))
        place += 8 + size + size % 2
    return file


def _check_aiff(file: BinaryIO, end: int) -> None:
    place, channels, frames, bits, plain, sound = 12, 0, 0, 0, False, 0
    while place + 8 <= end:
        file.seek(place)
        name, size = struct.unpack(">4sI", file.read(8))
        if name == b"COMM" and size >= 18 and len(fields := file.read(min(size, 22))) >= 18:
            channels, frames, bits = struct.unpack(">HIH", fields[:8])
            plain = fields[18:22] in _UNCOMPRESSED
        elif name == b"SSND":
            sound = max(0, size - 8)
        place += 8 + size + size % 2
    if plain and channels and frames and sound:
        _check(bits, round(sound / (frames * channels)))


def _check_caf(file: BinaryIO) -> None:
    file.seek(8)
    fields = file.read(44)  # the description, which comes first
    if len(fields) == 44 and fields[:4] == b"desc" and fields[20:24] == b"lpcm":
        block, frames, channels, bits = struct.unpack(">IIII", fields[28:44])
        if frames == 1 and channels:
            _check(bits, block / channels)


def _check(bits: int, given: float) -> None:
    """Raises BadHeader if a sample of so many bits does not take the bytes that the header gives it; 0: it does not say."""
    if given not in (0, -(-bits // 8)) and (bits, given) != (24, 4):  # which libsndfile knows
        raise BadHeader(f"its header says {bits} bits a sample, and {given:g} bytes")
