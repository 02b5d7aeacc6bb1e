"""Bytes of a recording -> mono float32 samples and their rate, or a Refusal that names the rule.

The order is the contract's: size, magic bytes, header (before anything is decoded), bounded decoding, NaN and infinity, silence,
clipping. ``advise`` adds what the specification's 6.1 asks of a good clip; ``check_transcript`` refuses words that cannot be heard in it.
"""

import io
import unicodedata
from typing import NamedTuple

import numpy as np
import soundfile

from qwen3_jax.shapes import NpF32
from qwen3_jax.text.nfc import nfc

MIN_SECONDS, MAX_SECONDS = 3.0, 30.0
MIN_RATE, MAX_RATE, MAX_CHANNELS = 8_000, 96_000, 2
SILENCE_DBFS, CLIPPED_SHARE = -50.0, 0.005  # of the whole clip; share of samples at full scale
BEST_SECONDS, BEST_RATE, BEST_BITS, BEST_NOISE_DB = (5.0, 10.0), 24_000, 16, 20.0
MAX_TRANSCRIPT = 2000  # characters
FASTEST, SLOWEST = 30.0, 2.0  # letters a second that anybody says; a character of CJK counts as three letters
_BLOCK = 65_536
_BITS = {"PCM_S8": 8, "PCM_U8": 8, "ALAW": 8, "ULAW": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "FLOAT": 24, "DOUBLE": 53}


class Refusal(ValueError):
    """A recording that is not taken: ``code`` names the rule, ``status`` is the HTTP status, the message the value, limit and fix."""

    def __init__(self, code: str, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.code, self.status = code, status


class Clip(NamedTuple):
    """What came out of the checks."""

    samples: NpF32["F"]  # mono
    rate: int
    bits: int  # of the source; 0 where the format has none (OGG, MP3)

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def check(data: bytes, max_bytes: int) -> Clip:
    """All checks.

    Raises:
        Refusal: the first rule that is broken.
    """
    if len(data) > max_bytes:
        raise Refusal("AUDIO_TOO_BIG", f"audio of more than {max_bytes} bytes is not taken; send a shorter clip", 413)
    kind = _kind(data)
    if kind is None:
        raise Refusal(
            "AUDIO_FORMAT", "audio is not WAV, FLAC, OGG (Vorbis or Opus) or MP3 by its first bytes; convert it to one of them", 415
        )
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file)
            samples = _decode(file)
            clip = Clip(samples, file.samplerate, _BITS.get(file.subtype, 0))
    except soundfile.LibsndfileError as error:
        raise Refusal(
            "AUDIO_UNREADABLE", f"audio begins like {kind} but cannot be decoded ({error.error_string}); export it again"
        ) from error
    _check_length(clip.seconds)
    bad = int(np.count_nonzero(~np.isfinite(clip.samples)))
    if bad:
        raise Refusal("AUDIO_NOT_FINITE", f"audio has {bad} NaN or infinite samples of {len(clip.samples)}: every one must be finite")
    level = _dbfs(clip.samples)
    if level < SILENCE_DBFS:
        raise Refusal("AUDIO_SILENT", f"audio is silent: {level:.0f} dBFS, at least {SILENCE_DBFS:.0f} are needed; send audible speech")
    clipped = float(np.mean(np.abs(clip.samples) >= 0.999))
    if clipped > CLIPPED_SHARE:
        raise Refusal(
            "AUDIO_CLIPPED", f"audio is clipped: {clipped:.1%} of it is at full scale, at most {CLIPPED_SHARE:.1%}; record it lower"
        )
    return clip


def check_transcript(transcript: str, seconds: float) -> str:
    """The transcript, trimmed and in NFC.

    Raises:
        Refusal: too long, empty, or it cannot be what is said in so many seconds.
    """
    if len(transcript) > MAX_TRANSCRIPT:
        raise Refusal(
            "TRANSCRIPT_TOO_LONG", f"transcript of {len(transcript)} characters: at most {MAX_TRANSCRIPT} are taken; write what is said"
        )
    try:
        words = nfc(transcript).strip()
    except ValueError as error:
        raise Refusal("TRANSCRIPT_INVALID", f"transcript: {error}") from error
    if not words:
        raise Refusal("TRANSCRIPT_EMPTY", "transcript is empty: write exactly what is said, or leave it out for cloning of the timbre only")
    pace = sum(_letters(character) for character in words) / seconds
    if not SLOWEST <= pace <= FASTEST:
        raise Refusal(
            "TRANSCRIPT_MISFIT",
            f"transcript of {len(words)} characters for {seconds:.1f} s of audio ({pace:.1f} letters a second, {SLOWEST:.0f} to "
            f"{FASTEST:.0f} are possible): write exactly what is said, all of it and no more",
        )
    return words


def advise(clip: Clip) -> list[str]:
    """What the specification's 6.1 asks for and the clip has not; none of it is a reason to refuse."""
    advice = []
    if not BEST_SECONDS[0] <= clip.seconds <= BEST_SECONDS[1]:
        advice.append(f"{clip.seconds:.1f} s: {BEST_SECONDS[0]:.0f} to {BEST_SECONDS[1]:.0f} s are best")
    if clip.rate < BEST_RATE:
        advice.append(f"{clip.rate} Hz: {BEST_RATE} or more are best")
    if clip.bits == 0:
        advice.append("a lossy format: WAV or FLAC are best")
    elif clip.bits < BEST_BITS:
        advice.append(f"{clip.bits} bits a sample: {BEST_BITS} or more are best")
    above = _above_noise(clip)
    if above < BEST_NOISE_DB:
        advice.append(f"speech is {above:.0f} dB above the background: {BEST_NOISE_DB:.0f} or more are best")
    return advice


def _kind(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "WAV"
    if data[:4] == b"fLaC":
        return "FLAC"
    if data[:4] == b"OggS":
        return "OGG"
    if data[:3] == b"ID3" or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2):  # an ID3 tag, or a frame of layer III
        return "MP3"
    return None


def _check_header(file: soundfile.SoundFile) -> None:
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise Refusal("AUDIO_CHANNELS", f"audio has {file.channels} channels: 1 or {MAX_CHANNELS} are taken; mix it down")
    if not MIN_RATE <= file.samplerate <= MAX_RATE:
        raise Refusal("AUDIO_SAMPLE_RATE", f"audio at {file.samplerate} Hz: {MIN_RATE} to {MAX_RATE} are taken; resample it")
    if 0 < file.frames < 2**62:  # else the header does not know, and decoding tells
        _check_length(file.frames / file.samplerate)


def _check_length(seconds: float) -> None:
    if seconds < MIN_SECONDS:
        raise Refusal(
            "AUDIO_TOO_SHORT", f"audio lasts {seconds:.2f} s: {MIN_SECONDS:.0f} to {MAX_SECONDS:.0f} s are taken; send a longer clip"
        )
    if seconds > MAX_SECONDS:
        raise Refusal("AUDIO_TOO_LONG", f"audio lasts {seconds:.1f} s: {MIN_SECONDS:.0f} to {MAX_SECONDS:.0f} s are taken; cut it")


def _decode(file: soundfile.SoundFile) -> NpF32["F"]:
    """Mono samples; stops as soon as there are too many, whatever the header said."""
    most, blocks, total = int(MAX_SECONDS * file.samplerate) + 1, [], 0
    while total < most:
        block = file.read(min(_BLOCK, most - total), dtype="float32", always_2d=True)
        if not len(block):
            break
        with np.errstate(invalid="ignore"):  # inf - inf: the next check names it
            blocks.append(block.mean(axis=1))
        total += len(block)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _dbfs(samples: NpF32["F"]) -> float:
    return float(20 * np.log10(max(np.sqrt(np.mean(np.square(samples, dtype=np.float64))), 1e-10)))


def _above_noise(clip: Clip) -> float:
    """dB between loud and quiet stretches of 20 ms (90th and 5th percentile)."""
    size = clip.rate // 50
    frames = clip.samples[: len(clip.samples) // size * size].reshape(-1, size).astype(np.float64)
    levels = 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)
    return float(np.percentile(levels, 90) - np.percentile(levels, 5))


def _letters(character: str) -> int:
    if unicodedata.category(character)[0] not in "LN":
        return 0
    return 3 if unicodedata.east_asian_width(character) in "WF" else 1
