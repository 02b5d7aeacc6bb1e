"""Sound in and out, in numpy: a file or an array -> mono float32 [F] at 24 kHz; a wave -> log-mel [F 128], PCM16 or a file.

Sources: the mel is that of `qwen-tts` 0.1.1 (core/models/modeling_qwen3_tts.py, mel_spectrogram); its filters are Slaney's
Auditory Toolbox bank (linear below 1 kHz, logarithmic above, triangles of equal area), as in `librosa.filters.mel`.
"""

import functools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from qwen3_jax.audio import recording
from qwen3_jax.audio.headers import finished
from qwen3_jax.checkpoint.folders import expand
from qwen3_jax.shapes import F32, F64, I16

SAMPLE_RATE = 24000
RATES = (1_000, 1_000_000)  # Hz of what is read; the resampler crashes at NaN and fills the memory at 1

_FFT, _HOP, _MELS = 1024, 256, 128

Source = str | os.PathLike[str] | tuple[np.ndarray, int]


def load_audio(source: Source) -> F32[np.ndarray, " F"]:
    """Read a sound and make it mono float32 at 24 kHz.

    Args:
        source: a path to any format that soundfile, or PyAV where it is installed, reads; or (samples, rate): samples [F] or
            [F channels], floats in [-1, 1] or signed integers of full scale; rate in Hz.

    Returns:
        [F] float32; channels are averaged (of such that cancel each other, one is taken), other rates are resampled by soxr (HQ).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a sound that can be read, or the array's shape, type or rate is not one of the above.
    """
    samples, rate = _check_array(source) if isinstance(source, tuple) else _read_file(_path(source))
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"audio at {rate:g} Hz: must be from {RATES[0]} to {RATES[1]} Hz; give the rate that the sound was recorded at")
    return _resampled(samples if samples.ndim == 1 else recording.mix(samples), rate)


def load_reference(source: Source) -> F32[np.ndarray, " F"]:
    """Read a recording of a voice and check it: see recording.py.

    Args:
        source: as in ``load_audio``.

    Returns:
        [F] float32, mono, 24 kHz.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as in ``load_audio``; or ``recording.Refusal``, which names the rule, what was found and the fix.
    """
    if not isinstance(source, tuple):
        clip = recording.load(_path(source))
        return _resampled(clip.samples, clip.rate)
    samples, rate = _check_array(source)
    mono = samples if samples.ndim == 1 else recording.mix(samples)
    return _resampled(recording.check(recording.Clip(mono, rate, 0)).samples, rate)


def _resampled(mono: F32[np.ndarray, " F"], rate: Any) -> F32[np.ndarray, " _"]:
    return mono if rate == SAMPLE_RATE or not len(mono) else soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")


def _read_file(path: Path) -> tuple[F32[np.ndarray, " F *rest"], int]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such audio file")
    try:
        with path.open("rb") as file:
            return soundfile.read(finished(file), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, ValueError):  # ValueError: a header that does not know how long it is, or is wrong
        try:
            with path.open("rb") as file:
                clip = recording.read(file, math.inf)
        except recording.Refusal as error:
            known = ", ".join(sorted(soundfile.available_formats()))
            raise ValueError(f"{path}: not a readable sound ({error}); convert it to one of {known}") from error
        return clip.samples, clip.rate


def _path(source: object) -> Path:
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"audio of type {type(source).__name__}: give the path of a recording, or a tuple (samples, rate in Hz)")
    return Path(expand(source))


def _check_array(source: tuple[Any, ...]) -> tuple[F32[np.ndarray, " F *rest"], Any]:
    if len(source) != 2:
        raise ValueError(f"audio as a tuple of {len(source)}: must be two things, (samples, rate in Hz)")
    samples, rate = np.asarray(source[0]), source[1]
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[1] <= 16):
        raise ValueError(f"audio array: shape {samples.shape} is not [samples] or [samples, channels] (1 to 16); transpose or squeeze it")
    number = isinstance(rate, int | float | np.integer | np.floating) and not isinstance(rate, bool)
    if not number or not rate > 0:  # NaN is not
        raise ValueError(f"audio array: rate {rate!r} must be above 0, a number of Hz; pass (samples, rate)")
    if np.issubdtype(samples.dtype, np.signedinteger):
        samples = samples / -float(np.iinfo(samples.dtype).min)
    elif not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"audio array: dtype {samples.dtype} is not a float or signed integer type; convert it to float32 in [-1, 1]")
    with np.errstate(over="ignore"):  # `recording.check` counts what is infinite then
        return samples.astype(np.float32), rate


def mel_spectrogram(wave: F32[np.ndarray, " F"]) -> F32[np.ndarray, "_ 128"]:
    """Log-mel spectrogram of the speaker encoder.

    Args:
        wave: [F] float32, 24 kHz mono, at least 385 samples (`load_reference` asks for more).

    Returns:
        [frames 128] float32, frames = F // 256 from 1024 samples on: natural logarithm of the mel magnitude, floor 1e-5.
    """
    pad = (_FFT - _HOP) // 2
    padded = np.pad(wave.astype(np.float64), pad, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FFT) / _FFT)  # periodic Hann
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]
    spectrum = np.fft.rfft(frames * window, axis=1)
    magnitude = np.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)
    return np.log(np.maximum(magnitude @ _mel_filters().T, 1e-5)).astype(np.float32)


@functools.cache
def _mel_filters() -> F64[np.ndarray, "128 513"]:
    """Slaney triangles from 0 to 12 kHz."""
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(SAMPLE_RATE / 2), _MELS + 2))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, _FFT // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    return np.maximum(triangles, 0.0) * (2.0 / (high - low))


# Slaney's scale: 3 mel per 200 Hz up to 1 kHz (15 mel), from there 27 mel per factor of 6.4.
_BEND_HZ, _BEND_MEL, _STEP = 1000.0, 15.0, np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    return hz * 3.0 / 200.0 if hz < _BEND_HZ else _BEND_MEL + float(np.log(hz / _BEND_HZ)) / _STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < _BEND_MEL, mel * 200.0 / 3.0, _BEND_HZ * np.exp(_STEP * (mel - _BEND_MEL)))


def to_pcm16(wave: F32[np.ndarray, " F"]) -> bytes:
    """[F] float32 in [-1, 1] -> little-endian 16-bit PCM, 2 bytes a sample; rounded to nearest, clipped beyond +-1.

    Raises:
        FloatingPointError: a sample is NaN or infinite.
    """
    return pcm16(wave).tobytes()


def check_finite(wave: F32[np.ndarray, " F"]) -> F32[np.ndarray, " F"]:
    """The wave itself, on its way out.

    Raises:
        FloatingPointError: a sample is NaN or infinite.
    """
    bad = int(np.count_nonzero(~np.isfinite(wave)))
    if bad:
        raise FloatingPointError(
            f"audio has {bad} NaN or infinite samples of {np.size(wave)}: every sample must be finite; what made it is at fault"
        )
    return wave


def pcm16(wave: F32[np.ndarray, " F"]) -> I16[np.ndarray, " F"]:
    """The same as an array."""
    check_finite(wave)
    return np.rint(np.clip(wave, -1.0, 1.0) * 32767.0).astype("<i2")


def write_wav(path: str | os.PathLike[str], wave: F32[np.ndarray, " F"], sample_rate: int = SAMPLE_RATE) -> None:
    """Write [F] float32 in [-1, 1] as a mono 16-bit WAV file, with the samples of `to_pcm16`."""
    soundfile.write(path, pcm16(wave), sample_rate, subtype="PCM_16", format="WAV")
