"""Speech [F] -> its fundamental: frequency by autocorrelation, and phase by demodulation. NumPy and SciPy only, about 100x real time.

The track is the cheapest path through the peaks of each frame's autocorrelation, where jumps between octaves and between voiced and
unvoiced cost something (the plan of Praat's pitch method, Boersma 1993). The phase is that of the wave itself around the track, so it
runs with the glottal pulses.
"""

import numpy as np
import scipy.signal

from qwen3_jax.shapes import F32, F64, Bool

SAMPLE_RATE = 24000
STEP = 240  # samples between points of a track
LOW, HIGH = 65.0, 420.0  # Hz
_DOWN, _WINDOW = 4, 240  # to 6 kHz; 40 ms there
_PEAKS = 6
_UNVOICED, _JUMP, _SWITCH, _OCTAVE = 0.45, 1.6, 0.25, 0.02  # a peak's height that counts as voice; costs
_PHASE_STEP = 60


def track(wave: F32[np.ndarray, " F"]) -> tuple[F64[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """Frequency in Hz (0 where there is none) and whether there is voice, every ``STEP`` samples, T = F // STEP + 1."""
    low = scipy.signal.resample_poly(wave.astype(np.float64), 1, _DOWN)
    rate, hop, count = SAMPLE_RATE // _DOWN, STEP // _DOWN, len(wave) // STEP + 1
    padded = np.pad(low, (_WINDOW, 2 * _WINDOW))
    frames = padded[np.arange(count)[:, None] * hop + _WINDOW // 2 + np.arange(_WINDOW)]
    window = np.hanning(_WINDOW + 2)[1:-1]
    size, kept = 4 * _WINDOW, _WINDOW // 2 + 20
    power = np.square(np.abs(np.fft.rfft((frames - frames.mean(axis=1, keepdims=True)) * window, size)))
    own = np.fft.irfft(np.square(np.abs(np.fft.rfft(window, size))))[:kept]
    correlation = np.fft.irfft(power)[:, :kept]
    energy = correlation[:, 0]
    correlation = correlation / (energy[:, None] + 1e-9) / (own / own[0])
    lags = np.arange(int(rate / HIGH), min(int(rate / LOW), kept - 2) + 1)
    here = correlation[:, lags]
    peak = (here > correlation[:, lags - 1]) & (here >= correlation[:, lags + 1])
    height = np.where(peak, here, -1.0) - _OCTAVE * np.log2(lags / lags[0])
    best = np.argsort(-height, axis=1)[:, :_PEAKS]
    row, lag = np.arange(count)[:, None], lags[best]
    before, at, after = (correlation[row, lag + shift] for shift in (-1, 0, 1))
    fine = np.clip(0.5 * (before - after) / (before - 2 * at + after - 1e-12), -1, 1)
    frequency = rate / (lag + fine)
    quiet = energy < max(1e-7 * _WINDOW, 1e-4 * np.percentile(energy, 95))
    cost = np.where(quiet[:, None], 2.0, 1.0 - np.take_along_axis(height, best, axis=1))
    cost = np.concatenate([cost, np.full((count, 1), 1.0 - _UNVOICED)], axis=1)
    octaves = np.concatenate([np.log2(frequency), np.zeros((count, 1))], axis=1)
    state = _cheapest(cost, octaves)
    voiced = state < _PEAKS
    return np.where(voiced, frequency[np.arange(count), np.minimum(state, _PEAKS - 1)], 0.0), voiced


def _cheapest(cost: F64[np.ndarray, "T S"], octaves: F64[np.ndarray, "T S"]) -> np.ndarray:
    """The path of states with the smallest cost; the last state is the unvoiced one."""
    total, came = cost[0], np.zeros(cost.shape, np.int64)
    for now in range(1, len(cost)):
        move = _JUMP * np.abs(octaves[now - 1][:, None] - octaves[now])
        move[-1, :] = move[:, -1] = _SWITCH
        move[-1, -1] = 0.0
        sums = total[:, None] + move
        came[now] = sums.argmin(axis=0)
        total = sums.min(axis=0) + cost[now]
    state = np.full(len(cost), total.argmin())
    for now in range(len(cost) - 1, 0, -1):
        state[now - 1] = came[now, state[now]]
    return state


def phase(wave: F32[np.ndarray, " F"], frequency: F64[np.ndarray, " T"], voiced: Bool[np.ndarray, " T"]) -> F64[np.ndarray, " F+1"]:
    """Cycles that have passed at every sample, rising: those of the fundamental where there is voice, and in the gaps what joins them."""
    count = len(wave)
    if not voiced.any():
        return np.arange(count + 1) * (150.0 / SAMPLE_RATE)
    places = np.arange(len(frequency))
    filled = np.interp(places, np.flatnonzero(voiced), frequency[voiced])
    smooth = np.hanning(7)[1:-1]
    filled = np.convolve(np.pad(filled, 2, mode="edge"), smooth / smooth.sum(), "valid")
    guess = np.cumsum(np.interp(np.arange(count + 1), places * STEP, filled)) / SAMPLE_RATE
    # what is left of the fundamental after turning it back by the guess: a slow phase
    width = int(SAMPLE_RATE * 2.6 / np.median(frequency[voiced])) | 1
    window = np.hanning(width + 2)[1:-1]
    slow = scipy.signal.fftconvolve(np.append(wave, 0.0) * np.exp(-2j * np.pi * guess), window / window.sum(), "same")[::_PHASE_STEP]
    sure = np.interp(np.arange(len(slow)) * _PHASE_STEP, places * STEP, voiced.astype(np.float64)) > 0.99
    turned = np.unwrap(np.angle(slow)) / (2 * np.pi)
    most = 0.15 * filled.min() * _PHASE_STEP / SAMPLE_RATE
    change = np.where(sure[1:] & sure[:-1], np.clip(np.diff(turned), -most, most), 0.0)
    offset = np.concatenate([[0.0], np.cumsum(change)])
    for start in np.flatnonzero(np.diff(np.concatenate([[False], sure]).astype(int)) == 1):
        jump = turned[start] - offset[start]
        jump -= np.round(jump)
        earlier = np.flatnonzero(sure[:start])
        gap = start - (earlier[-1] if len(earlier) else 0)
        offset[start - gap : start] += jump * np.arange(gap) / max(gap, 1)
        offset[start:] += jump
    cycles = guess + np.interp(np.arange(count + 1), np.arange(len(slow)) * _PHASE_STEP, offset)
    return np.maximum.accumulate(cycles + np.arange(count + 1) * 1e-9)
