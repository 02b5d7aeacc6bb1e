"""Pitch-synchronous speech -> how loud its harmonics and its noise are, a hundred times a second: all that the vocoder needs.

A frame is eight moments of 28 levels. Eighteen are of the first 22 harmonics below 3.9 kHz, ten of noise between 500 Hz and 12 kHz. Noise
is measured where there is no voice, and above 3.9 kHz everywhere: what is left between harmonics is mostly what a steady phase gets wrong,
and to put noise there costs half a point of DistillMOS.

A level is compressed like the square root, c = sqrt(P) arcsin sqrt(l / P), because one Snake undoes that exactly.
"""

import functools

import numpy as np
import scipy.fft
import scipy.ndimage

from qwen3_jax.shapes import F32, I32, Float
from training.latents.pitch_synchronous import FRAME, POINTS, SAMPLE_RATE, PitchBook, hann, spline

GROUPS = (*((harmonic,) for harmonic in range(1, 15)), (15, 16), (17, 18), (19, 20), (21, 22))  # with one level each
CENTRES = (500, 1100, 1800, 2600, 3500, 4500, 5600, 6900, 8400, 10500)  # of the bands of noise, Hz
MOMENTS, LEVELS = 8, len(GROUPS) + len(CENTRES)
HOP = FRAME // MOMENTS  # a moment is in the middle of its 240 samples
LOUD, TURN = 0.375, 64  # a harmonic's highest amplitude, at a quarter of a cycle; there its level is TURN / 4
MOST = 20.0  # P
UNIT = np.sqrt(2) / LOUD * TURN / (2 * np.pi)  # level of a root mean square of 1, of noise and, if soft, of harmonics
# What an error counts for in the books, against words that are lost: high harmonics and high noise are soft, but tell sounds apart; what
# changes within 20 ms is heard less than what stays, so the cosine terms of a frame's moments count less and less.
WEIGHT = np.concatenate([np.linspace(0.85, 1.5, len(GROUPS)), np.linspace(1.0, 1.3, len(CENTRES))]).astype(np.float32)
_TERMS = (1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.5, 0.4)
_COSINES = scipy.fft.dct(np.eye(MOMENTS), axis=0, norm="ortho")  # [term, moment]
SLOWNESS = (_COSINES.T * _TERMS @ _COSINES).astype(np.float32)  # [moment, moment]
DILATIONS = (1, 3, 9)  # of the convolutions that filter noise, 7 taps each
_TOP = 3900.0  # Hz
_CYCLES = 2.2  # that a harmonic is averaged over
_WINDOW = 480
_LOUDER = 20.0  # than what keeps its phase, at most
_SHARES = 30
_SPEECH_NOISE = 4400  # a band around less has noise only where there is no voice


def levels(wave: F32[np.ndarray, " F"], entry: I32[np.ndarray, " N"], book: PitchBook) -> F32[np.ndarray, "N 224"]:
    """Compressed and weighted levels of locked speech, moment after moment.

    A harmonic moves as far as it keeps its phase for 70 ms: DistillMOS 2.6 and 2.9 (heart, makima) of what the vocoder makes of the
    levels before they are coded; with the plain magnitude 2.2 and 2.5. But in the mean of 90 ms it is as loud as all that is there, since
    between harmonics there is nothing else: without that, heart is 3 dB too soft at 3 kHz (training/log.md).
    """
    found = np.concatenate([_tones(wave, entry, book), UNIT * _noise(wave, entry)], axis=1)
    return weighted(compressed(found).reshape(len(entry), MOMENTS, LEVELS))


def weighted(level: F32[np.ndarray, "N 8 28"]) -> F32[np.ndarray, "N 224"]:
    """Compressed levels, as errors count."""
    return np.einsum("st,ntl->nsl", SLOWNESS, level * WEIGHT, dtype=np.float32).reshape(len(level), -1)


def unweighted(told: Float[np.ndarray, "N 224"]) -> Float[np.ndarray, "N 8 28"]:
    """The inverse."""
    return np.einsum("st,ntl->nsl", np.linalg.inv(SLOWNESS), told.reshape(-1, MOMENTS, LEVELS)) / WEIGHT


def compressed(level: Float[np.ndarray, "..."]) -> F32[np.ndarray, "..."]:
    """c of l."""
    return (np.sqrt(MOST) * np.arcsin(np.sqrt(np.clip(level / MOST, 0.0, 1.0)))).astype(np.float32)


def _tones(wave: F32[np.ndarray, " F"], entry: I32[np.ndarray, " N"], book: PitchBook) -> F32[np.ndarray, "T 18"]:
    """Levels of the groups of harmonics: how they move is what keeps its phase, how loud they are is all that is there."""
    there = np.repeat(entry > 0, MOMENTS)
    count = max(map(max, GROUPS))
    steady, plain = np.zeros((2, len(there), count))
    if there.any():
        knots = book.cycles[entry][:, None] * (np.arange(POINTS + 1) / POINTS)
        knots[:, 1:-1] += book.bends[entry]
        turn = np.exp(-2j * np.pi * (spline(knots)(np.arange(FRAME) / FRAME).ravel() % 1.0)).astype(np.complex64)
        hertz = np.repeat(book.cycles[entry] * (SAMPLE_RATE / FRAME), MOMENTS)
        width = int(SAMPLE_RATE * _CYCLES / np.median(hertz[there])) | 1
        seen = (np.flatnonzero(there) * HOP + HOP // 2)[:, None] + np.arange(width)
        around = (width // 2, width)
        power = np.pad(wave, around)[seen] * hann(width).astype(np.complex64)
        turns = np.pad(turn, around, mode="edge")[seen]
        for harmonic in range(1, count + 1):
            power *= turns
            own = np.zeros(len(there), np.complex128)
            own[there] = 2 * power.sum(axis=1)
            slow = np.convolve(own, hann(7), "same")
            kept = (own * slow.conj()).real / np.maximum(np.abs(slow), 1e-9)
            sounds = hertz * harmonic < _TOP
            steady[:, harmonic - 1] = np.maximum(kept, 0.0) * sounds
            plain[:, harmonic - 1] = np.abs(own) * sounds
    power = np.square(steady) * np.minimum((_around(np.square(plain)) + 1e-12) / (_around(np.square(steady)) + 1e-12), _LOUDER**2)
    grouped = np.sqrt(np.stack([power[:, np.array(group) - 1].mean(axis=1) for group in GROUPS], axis=1))
    return (np.arcsin(np.clip(grouped / LOUD, 0.0, 1.0)) * (TURN / (2 * np.pi))).astype(np.float32)


def _around(power: Float[np.ndarray, "T C"]) -> Float[np.ndarray, "T C"]:
    """Means over 90 ms and three neighbouring harmonics."""
    slow = scipy.ndimage.convolve1d(power, hann(9), axis=0, mode="constant")
    return scipy.ndimage.convolve1d(slow, hann(3), axis=1, mode="nearest")


def _noise(wave: F32[np.ndarray, " F"], entry: I32[np.ndarray, " N"]) -> F32[np.ndarray, "T 10"]:
    """Root mean square of each band's output, such that all together are as loud as the speech, in each band's part of the spectrum.

    Bands overlap, so what one has counts for its neighbours too: Richardson's and Lucy's steps (JOSA 62, 1972) share it out.
    """
    window = np.hanning(_WINDOW + 2)[1:-1]
    window /= np.sqrt(np.square(window).sum())
    places = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (_WINDOW // 2, _WINDOW)), _WINDOW)
    pieces = places[HOP // 2 : HOP // 2 + len(wave) : HOP] * window
    power = np.square(np.abs(np.fft.rfft(pieces.astype(np.float32), 2 * _WINDOW)))
    power[:, 1:-1] *= 2  # both halves of the spectrum
    there = np.pad(np.repeat(entry > 0, MOMENTS).astype(np.float64), 2, mode="edge")
    free = np.square(1 - np.convolve(there, np.full(5, 0.2), "valid"))[:, None]
    hertz = np.arange(_WINDOW + 1) * (SAMPLE_RATE / (2 * _WINDOW))
    power *= free + (1 - free) * (hertz > _TOP)
    centres = np.array(CENTRES, float)
    edges = np.array([centres[0] / 2, *(centres[1:] + centres[:-1]) / 2, SAMPLE_RATE / 2])
    parts = ((hertz >= edges[:-1, None]) & (hertz < edges[1:, None])).astype(float)
    response = np.square(np.abs(np.fft.rfft([whole(taps) for taps in filters()], 2 * _WINDOW)))
    mixed = parts @ response.T / response.sum(axis=1)  # [part, band]
    measured, found = power @ parts.T / (2 * _WINDOW), power @ response.T / (2 * _WINDOW)
    for _ in range(_SHARES):
        found *= ((measured + 1e-9) / (found @ mixed.T + 1e-9)) @ (mixed / mixed.sum(axis=0))
    return np.sqrt(found * np.where(centres < _SPEECH_NOISE, free, 1.0)).astype(np.float32)


@functools.cache
def filters() -> Float[np.ndarray, "10 3 7"]:
    """Of each band the taps of its three convolutions (`DILATIONS`), symmetric, which together let pass what lies between its neighbours'
    centres. All add up to about 1, and none hears 0 Hz."""
    hertz = np.linspace(0, SAMPLE_RATE / 2, 961)
    edges = np.array([0.0, *CENTRES, SAMPLE_RATE - CENTRES[-1]])
    audible = np.where(hertz > 0, 1.0, 30.0)
    found = []
    for low, centre, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
        wanted = np.interp(hertz, [low, centre, high], [0, 1, 0])
        wanted = 0.5 - 0.5 * np.cos(np.pi * wanted)
        if centre == CENTRES[-1]:
            wanted[hertz > centre] = 1.0
        found.append(cascade(DILATIONS, wanted, audible))
    return np.array(found)


def cascade(
    dilations: tuple[int, ...], wanted: Float[np.ndarray, "961"], weight: Float[np.ndarray, "961"], beginnings: int = 12, rounds: int = 60
) -> Float[np.ndarray, "D 7"]:
    """Symmetric taps of convolutions that together have the response ``wanted``, from 0 to 12 kHz, where an error counts ``weight`` times:
    fitted in turn, by least squares, from a few random beginnings."""
    angle = np.pi * np.linspace(0, 1, len(wanted))
    waves = [np.stack([np.ones_like(angle), *(2 * np.cos(k * dilation * angle) for k in (1, 2, 3))], axis=1) for dilation in dilations]
    count = len(dilations)
    noise, best, least = np.random.default_rng(0), np.zeros((count, 4)), np.inf
    for _ in range(beginnings):
        parts = 0.3 * noise.standard_normal((count, 4)) + [1, 0, 0, 0]
        answers = np.stack([wave @ part for wave, part in zip(waves, parts, strict=True)])
        for number in rounds * tuple(range(count)):
            others = weight * np.delete(answers, number, axis=0).prod(axis=0)
            parts[number] = np.linalg.lstsq(waves[number] * others[:, None], weight * wanted, rcond=1e-9)[0]
            answers[number] = waves[number] @ parts[number]
        off = np.square(weight * (answers.prod(axis=0) - wanted)).sum()
        if off < least:
            best, least = parts.copy(), off
    height = np.abs(best).max(axis=1, keepdims=True)
    best *= np.exp(np.log(height).mean()) / height  # alike, for float16
    return np.concatenate([best[:, :0:-1], best], axis=1)


def whole(taps: Float[np.ndarray, "3 7"]) -> Float[np.ndarray, "79"]:
    """A band's three convolutions in one."""
    made = np.ones(1)
    for dilation, part in zip(DILATIONS, taps, strict=True):
        wide = np.zeros(6 * dilation + 1)
        wide[::dilation] = part
        made = np.convolve(made, wide)
    return made
