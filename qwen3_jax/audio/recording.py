"""A recording of a voice, bytes or a file -> mono float32 [F] and its rate, or a Refusal: one reader and one check for all.

The shell, the library and the server read and refuse with the same words. soundfile reads what it can; PyAV, where it is installed,
reads the rest: what phones (m4a) and browsers (WebM) record. Order: first bytes, header, bounded decoding, length, NaN and infinity,
level, clipping. Which demuxer PyAV uses is fixed by the first bytes, so that no playlist or address in a file is ever followed.
"""

import contextlib
import io
import math
import re
import struct
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from qwen3_jax.audio.headers import BadHeader, finished
from qwen3_jax.shapes import F32

MIN_SECONDS, MAX_SECONDS = 3.0, 30.0
MIN_RATE, MAX_RATE, MAX_CHANNELS = 8_000, 192_000, 8
SILENCE_DBFS, CLIPPED_SHARE = -50.0, 0.005  # of the whole clip; share of samples at full scale
LOUDEST = 100.0  # of a sample, whose full scale is 1: more is another unit, as a rule that of 16-bit integers
SLOW_SECONDS = 0.02  # a mean over so long is no sound of a voice
CANCELLED_DB = 8.0  # a mean so far below its loudest channel is no mix: channels cancel each other, or most of them are empty
PYAV = 'install PyAV: pip install "qwen3-jax[audio]"'
TAKEN = "WAV, FLAC, OGG (Vorbis or Opus), MP3, AIFF, CAF, AU, M4A/MP4, WebM, AAC or AMR"
_BLOCK = 65_536  # samples of all channels that are decoded at a time
_MOST_PACKETS = 1_000_000  # six hours of AAC; FFmpeg keeps 24 bytes of each before anything is decoded
_COUNTS = {  # where a file says how many there are: name of the box, bytes from there to the number, bytes of the number
    "MP4": ((b"stsz", 8, 4), (b"stz2", 8, 4), (b"trun", 4, 4)),
    "CAF": ((b"pakt", 8, 8),),
}
_WHOLE = 2**28  # bytes of a container that are looked through
_BITS = {"PCM_S8": 8, "PCM_U8": 8, "ALAW": 8, "ULAW": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "FLOAT": 24, "DOUBLE": 53}
_UNKNOWN_FRAMES = 2**62  # soundfile's way to say that a header does not tell


class Refusal(ValueError):
    """A recording that is not taken: ``code`` names the rule, ``status`` is the HTTP status, the message the value, limit and fix."""

    def __init__(self, code: str, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class Clip(NamedTuple):
    """A recording that has been read."""

    samples: F32[np.ndarray, " F"]  # mono
    rate: int
    bits: int  # of the source; 0 where the format has none (OGG, MP3, AAC)

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


class _Kind(NamedTuple):
    name: str
    demuxer: str  # FFmpeg's
    by_soundfile: bool = True


_KINDS: tuple[tuple[Callable[[bytes], bool], _Kind], ...] = (
    (lambda head: head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE", _Kind("WAV", "wav")),
    (lambda head: head[:4] == b"fLaC", _Kind("FLAC", "flac")),
    (lambda head: head[:4] == b"OggS", _Kind("OGG", "ogg")),
    (lambda head: head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"), _Kind("AIFF", "aiff")),
    (lambda head: head[:4] == b"caff", _Kind("CAF", "caf")),
    (lambda head: head[:4] == b".snd", _Kind("AU", "au")),
    (lambda head: head[4:8] == b"ftyp", _Kind("MP4", "mov", False)),
    (lambda head: head[:4] == b"\x1aE\xdf\xa3", _Kind("WebM", "matroska", False)),
    (lambda head: head[:6] in (b"#!AMR\n", b"#!AMR-"), _Kind("AMR", "amr", False)),
    (lambda head: len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0, _Kind("AAC", "aac", False)),  # ADTS
    # An ID3 tag, or a frame of layer III.
    (lambda head: head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2), _Kind("MP3", "mp3")),
)


def load(path: Path) -> Clip:
    """Read and check a file; a refusal names it.

    Raises:
        FileNotFoundError: there is no such file.
        Refusal: the first rule that is broken.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such audio file")
    with path.open("rb") as file:
        try:
            return check(read(file))
        except Refusal as error:
            raise Refusal(error.code, f"{path}: {error}", error.status) from error


def read(source: bytes | BinaryIO, longest: float = MAX_SECONDS) -> Clip:
    """Decode a recording, no more than ``longest`` seconds of it, and mix it down.

    Args:
        source: the content of a file, or the file, opened.
        longest: seconds; more is refused.

    Raises:
        Refusal: its first bytes, its header or its content are those of no recording that is taken; or it is too long.
    """
    file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else source
    head = file.read(16)
    kind = next((kind for fits, kind in _KINDS if fits(head)), None)
    if kind is None:
        raise Refusal("AUDIO_FORMAT", f"audio is not {TAKEN} by its first bytes; convert it to one of them", 415)
    try:
        file = finished(file)
    except BadHeader as error:
        raise _unreadable(kind, str(error)) from error
    if kind.by_soundfile:
        try:
            with soundfile.SoundFile(file) as sound:
                _check_header(sound.channels, sound.samplerate)
                if 0 < sound.frames < _UNKNOWN_FRAMES:  # else decoding tells
                    _check_length(sound.frames / sound.samplerate, 0.0, longest)

                def blocks() -> Generator[np.ndarray, None, None]:
                    sound.seek(0)
                    while len(block := sound.read(max(1, _BLOCK // sound.channels), dtype="float32", always_2d=True)):
                        yield block

                return Clip(_mono(blocks, sound.samplerate, longest), sound.samplerate, _BITS.get(sound.subtype, 0))
        except soundfile.SoundFileError as error:
            why = getattr(error, "error_string", str(error))
    else:
        why = "soundfile does not read it"
    return _by_pyav(file, kind, why, longest)


def length(source: bytes) -> float:
    """Seconds, by the header where it tells. Raises Refusal as ``read``, and where they are too few or too many to clone."""
    seconds = 0.0
    with contextlib.suppress(soundfile.SoundFileError, BadHeader), soundfile.SoundFile(finished(io.BytesIO(source))) as sound:
        seconds = sound.frames / sound.samplerate if sound.frames < _UNKNOWN_FRAMES else 0.0
    seconds = seconds or read(source).seconds
    _check_length(seconds, MIN_SECONDS, MAX_SECONDS)
    return seconds


def check(clip: Clip, *, shortest: float = MIN_SECONDS, longest: float = MAX_SECONDS) -> Clip:
    """The clip itself, if a voice can be cloned from it.

    Raises:
        Refusal: the first rule that is broken: rate, length, NaN and infinity, unit, silence, clipping.
    """
    samples = clip.samples
    _check_header(1, clip.rate)
    _check_length(clip.seconds, shortest, longest)
    bad = int(np.count_nonzero(~np.isfinite(samples)))
    if bad:
        raise Refusal("AUDIO_NOT_FINITE", f"audio has {bad} NaN or infinite samples of {len(samples)}: every one must be finite")
    peak = float(np.abs(samples).max())
    if peak > LOUDEST:
        raise Refusal(
            "AUDIO_TOO_LOUD",
            f"audio peaks at {peak:g}; full scale is 1 and {LOUDEST:g} the most: divide the samples by theirs (32768 for 16 bits)",
        )
    level = 20 * math.log10(max(_rms(_audible(samples, clip.rate)), 1e-10))
    if level < SILENCE_DBFS:
        raise Refusal("AUDIO_SILENT", f"audio is silent: {level:.0f} dBFS, at least {SILENCE_DBFS:.0f} are needed; send audible speech")
    clipped = float(np.mean(np.abs(samples) >= 0.999))
    if clipped > CLIPPED_SHARE:
        raise Refusal(
            "AUDIO_CLIPPED", f"audio is clipped: {clipped:.1%} of it is at full scale, at most {CLIPPED_SHARE:.1%}; record it lower"
        )
    return clip


def mix(samples: F32[np.ndarray, "F C"]) -> F32[np.ndarray, " F"]:
    """The mean of the channels; of channels that cancel each other, or are empty but for a few, the loudest one."""
    return _mono(lambda: (block for block in (samples,)), 1, math.inf)


def _check_header(channels: int, rate: int) -> None:
    if not 1 <= channels <= MAX_CHANNELS:
        raise Refusal("AUDIO_CHANNELS", f"audio has {channels} channels: 1 to {MAX_CHANNELS} are taken; mix it down")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise Refusal("AUDIO_SAMPLE_RATE", f"audio at {rate:g} Hz: {MIN_RATE} to {MAX_RATE} are taken; resample it")


def _check_length(seconds: float, shortest: float, longest: float, more: bool = False) -> None:
    taken = f"{shortest or MIN_SECONDS:g} to {longest:g} s are taken"
    if seconds < shortest:
        raise Refusal("AUDIO_TOO_SHORT", f"audio lasts {seconds:.3f} s: {taken}; send a longer clip")
    if seconds > longest:
        lasts = f"more than {longest:g}" if more else f"{seconds:.3f}"
        raise Refusal("AUDIO_TOO_LONG", f"audio lasts {lasts} s: {taken}; cut it")


def _mono(blocks: Callable[[], Generator[np.ndarray, None, None]], rate: int, longest: float) -> F32[np.ndarray, " F"]:
    """Blocks [F C], which can be asked for again -> [F]; stops as soon as there are too many, whatever the header said."""
    mean, powers = _gather(blocks, rate, longest, lambda block: block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
    if len(powers) > 1 and len(mean):
        loudest = int(np.argmax(powers))
        with np.errstate(invalid="ignore"):  # NaN: `check` names it
            lost = powers[loudest] > 10 ** (CANCELLED_DB / 10) * max(_rms(mean) ** 2, 1e-20)
        if lost:
            return _gather(blocks, rate, longest, lambda block: block[:, loudest])[0]
    return mean


def _gather(
    blocks: Callable[[], Generator[np.ndarray, None, None]], rate: int, longest: float, take: Callable[[np.ndarray], np.ndarray]
) -> tuple[F32[np.ndarray, " F"], np.ndarray]:
    """(What is taken of each block, joined; the mean square of each channel)."""
    taken, total, powers = [], 0, np.zeros(0)
    with contextlib.closing(blocks()) as given, np.errstate(over="ignore", invalid="ignore"):  # inf - inf: `check` names it
        for block in given:
            taken.append(np.array(take(block), np.float32))
            total += len(block)
            power = np.sum(np.square(block, dtype=np.float64), axis=0)
            if len(powers) and len(power) != len(powers):
                raise Refusal("AUDIO_UNREADABLE", "audio changes its number of channels in the middle; export it again")
            powers = power + (powers if len(powers) else 0)
            if total > longest * rate:
                _check_length(total / rate, 0.0, longest, more=True)
    return np.concatenate(taken) if taken else np.zeros(0, np.float32), powers / max(total, 1)


def _audible(samples: F32[np.ndarray, " F"], rate: int) -> np.ndarray:
    """The samples, float64, without what is slower than any voice: a constant offset, a drift. The mean of 20 ms is taken off each."""
    size = max(1, round(rate * SLOW_SECONDS))
    if len(samples) <= size:
        return samples - samples.mean(dtype=np.float64)
    sums = np.cumsum(np.concatenate([[0.0], samples]), dtype=np.float64)
    moving = (sums[size:] - sums[:-size]) / size
    start = (size - 1) // 2
    return samples[start : start + len(moving)] - moving


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def _by_pyav(file: BinaryIO, kind: _Kind, why: str, longest: float) -> Clip:
    try:
        import av
    except ImportError as error:
        if kind.by_soundfile:
            raise _unreadable(kind, why) from error
        raise Refusal("AUDIO_NEEDS_PYAV", f"audio is {kind.name}, which needs PyAV here: {PYAV}, or convert it to WAV", 415) from error
    if kind.name in _COUNTS:
        _check_packets(file, kind)
    found: dict[str, int] = {}

    def blocks() -> Generator[np.ndarray, None, None]:
        file.seek(0)
        with av.open(file, "r", format=kind.demuxer, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise Refusal("AUDIO_UNREADABLE", f"audio is {kind.name} without a track of sound; send another")
            stated = (container.duration or 0) / av.time_base
            if stated > longest + 1:  # what is nearer is told exactly by decoding
                _check_length(stated, 0.0, longest)
            convert = av.AudioResampler(format="fltp")
            for frame in container.decode(container.streams.audio[0]):
                _check_header(frame.layout.nb_channels, frame.sample_rate)
                if found.setdefault("rate", frame.sample_rate) != frame.sample_rate:
                    raise Refusal("AUDIO_UNREADABLE", "audio changes its sample rate in the middle; export it again")
                for piece in convert.resample(frame):
                    yield piece.to_ndarray().T

    try:
        with contextlib.closing(blocks()) as first:
            next(first, None)  # its frame tells the rate, which headers often do not
        if "rate" not in found:
            raise _unreadable(kind, "there is no sound in it")
        samples = _mono(blocks, found["rate"], longest)
    except (av.FFmpegError, ValueError, MemoryError) as error:
        if isinstance(error, Refusal):
            raise
        raise _unreadable(kind, getattr(error, "strerror", None) or str(error)) from error
    return Clip(samples, found["rate"], 0)


def _unreadable(kind: _Kind, why: str) -> Refusal:
    return Refusal("AUDIO_UNREADABLE", f"audio begins like {kind.name} but cannot be decoded ({why}); export it again")


def _check_packets(file: BinaryIO, kind: _Kind) -> None:
    """FFmpeg makes a table of all packets that an MP4, or a CAF, says it has, before it reads one of them."""
    packets = 0
    for content in _boxes(file) if kind.name == "MP4" else (_whole(file),):
        for name, skipped, size in _COUNTS[kind.name]:
            for found in re.finditer(name, content):
                start = found.end() + skipped
                packets += int.from_bytes(content[start : start + size], "big")
    if packets > _MOST_PACKETS:
        raise _unreadable(kind, f"it says that it has {packets} packets")


def _boxes(file: BinaryIO) -> Generator[bytes, None, None]:
    """The outermost boxes of an MP4 but those that hold its sound."""
    place, end = 0, file.seek(0, io.SEEK_END)
    while place + 8 <= end:
        file.seek(place)
        size, name, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        size = large if size == 1 else size or end - place
        if size < 8:
            size = end - place
        if name != b"mdat":
            file.seek(place)
            yield file.read(min(size, _WHOLE))
        place += size


def _whole(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(_WHOLE)
