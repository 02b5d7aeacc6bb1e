"""Speech [F] -> the same speech, bent in time by a few milliseconds so that each frame of 80 ms holds whole cycles of its fundamental.

A spectrogram does not say where the glottal pulses stand, so a vocoder has to make their phase up, frame after frame, and only an
adversary can teach it to. In locked speech every frame with voice begins at the same phase and its cycles follow one of a few hundred
contours (`PitchBook`), and so one code says where every pulse is. Frames join without a seam whatever comes next. Where a wave is to be
learnt, its harmonics are turned to the pulses' own phase (`align_harmonics`), which makes its voiced part a function of the codes.

DistillMOS of twelve sentences, as they were, locked, with the book's contours, aligned as well: 4.52, 4.39, 4.30, 4.08 (heart) and 4.47,
4.40, 4.23, 3.87 (makima). How much of a harmonic's complex amplitude a regression on two frames of spectrogram explains, before
aligning: .72, .42, .17, .07, .03 of the first five. A teacher's phases are its own affair, even against its own pulses (.14 of the fifth).
"""

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import scipy.interpolate
import scipy.ndimage
import scipy.signal

from qwen3_jax.shapes import F32, F64, I32, Bool
from training.corpus.pitch import SAMPLE_RATE, STEP, phase, track

FRAME = 1920
POINTS = FRAME // STEP  # of a contour
LEAST, MOST = 4, 33  # cycles of a frame that a book knows: 50 to 412 Hz
_CENTRES, _WIDTH = np.arange(LEAST, MOST + 1, 1.5), 1.2  # of the bumps that tell cycles apart
_SHIFTS = np.arange(-3, 4)  # cycles by which a frame's border may move
_ALIGNED = (4000.0, 6000.0)  # up to there in full, up to there at all, Hz
TRACK = 60  # samples between values of a harmonic's amplitude
RAMPS = 32  # steps of a frame whose phase `PitchBook.ramps` gives


class PitchBook(msgspec.Struct):
    """Contours: the cycles of a frame [P] int32, and at the inner points how far they are from an even run [P 7], in cycles.

    Entry 0 is a frame without voice, whose contour means nothing.
    """

    cycles: Any
    bends: Any

    def nearest(
        self, cycles: F64[np.ndarray, " N"], bends: F64[np.ndarray, "N 7"], voiced: Bool[np.ndarray, " N"]
    ) -> I32[np.ndarray, " N"]:
        """The entry of each frame: 0 without voice, else of the same number of cycles the nearest contour."""
        found = []
        for start in range(0, len(cycles), 4096):
            some = slice(start, start + 4096)
            distance = 100.0 * np.square(np.rint(cycles[some])[:, None] - self.cycles)
            distance += np.square(bends[some, None] - self.bends).sum(axis=2)
            distance[:, 0] = np.inf
            found.append(distance.argmin(axis=1))
        return np.where(voiced, np.concatenate(found), 0).astype(np.int32)

    def features(self) -> F32[np.ndarray, "P 28"]:
        """What tells entries apart: voice, cycles (as bumps), bends; nothing for entry 0."""
        bumps = np.exp(-np.square((self.cycles[:, None] - _CENTRES) / _WIDTH))
        found = np.concatenate([np.ones((len(bumps), 1)), bumps, self.bends], axis=1)
        found[0] = 0.0
        return found.astype(np.float32)

    def ramps(self) -> F32[np.ndarray, "P 32 2"]:
        """The phase at the start of each of 32 steps (60 samples), in [0, 1) cycles, and how far it runs in that step; entry 0 stays at
        half a cycle."""
        knots = self.cycles[:, None] * (np.arange(POINTS + 1) / POINTS)
        knots[:, 1:-1] += self.bends
        path = spline(knots)(np.arange(RAMPS + 1) / RAMPS)
        path[0] = 0.5
        return np.stack([path[:, :-1] % 1.0, np.diff(path, axis=1)], axis=-1).astype(np.float32)


def fit(cycles: F64[np.ndarray, " N"], bends: F64[np.ndarray, "N 7"], entries: int, means: Any) -> PitchBook:
    """A book of ``entries``, from frames with voice.

    Each number of cycles has an even run, and of the rest a share by the square root of its frames. ``means``: (x, count) -> k-means.
    """
    whole = np.clip(np.rint(cycles).astype(int), LEAST, MOST)
    numbers = np.arange(LEAST, MOST + 1)
    count = np.array([(whole == number).sum() for number in numbers])
    free = entries - 1 - len(numbers)
    share = np.floor(free * np.sqrt(count) / np.sqrt(count).sum()).astype(int)
    share = np.minimum(share, count // 4)
    found_cycles, found_bends = [0, *numbers], [np.zeros((1 + len(numbers), POINTS - 1))]
    for number, size in zip(numbers, share, strict=True):
        if size:
            found_bends.append(means(bends[whole == number], int(size)))
            found_cycles += [number] * size
    short = entries - len(found_cycles)
    found_bends.append(np.zeros((short, POINTS - 1)))  # doubles of an even run, that nothing names
    found_cycles += [MOST] * short
    return PitchBook(np.array(found_cycles, np.int32), np.concatenate(found_bends).astype(np.float32))


class SynchronousSpeech(msgspec.Struct):
    """``wave`` float32 [N*1920]; of each frame whether there is voice, its cycles and bends (of the source), and its entry."""

    wave: F32[np.ndarray, "..."]
    voiced: Bool[np.ndarray, "..."]
    cycles: F64[np.ndarray, "..."]
    bends: F64[np.ndarray, "..."]
    entry: I32[np.ndarray, "..."]


def synchronise(wave: F32[np.ndarray, " F"], book: PitchBook | None) -> SynchronousSpeech:
    """Lock whole frames of speech; without a book, frames keep their own contours and have no entry."""
    count = len(wave) // FRAME
    frequency, heard = track(wave)
    passed = phase(wave, frequency, heard)
    points = np.arange(count)[:, None] * POINTS + np.arange(POINTS + 1)
    voiced = heard[points].any(axis=1)
    borders = _borders(passed, voiced)
    inner = borders[:-1, None] + np.diff(borders)[:, None] * (np.arange(POINTS + 1) / POINTS)
    path = np.interp(inner.ravel(), np.arange(len(passed)), passed).reshape(inner.shape)
    cycles = path[:, -1] - path[:, 0]
    bends = (path - path[:, :1] - cycles[:, None] * (np.arange(POINTS + 1) / POINTS))[:, 1:-1]
    entry = np.zeros(count, np.int32)
    run, bent = cycles, bends
    if book is not None:
        entry = book.nearest(cycles, bends, voiced)
        run = np.where(voiced, book.cycles[entry], cycles)
        bent = np.where(voiced[:, None], book.bends[entry], bends)
    made = _bent(wave, passed, path[:, 0], run, bent)
    return SynchronousSpeech(made, voiced, cycles, bends, entry)


def align_harmonics(wave: F32[np.ndarray, " F"], entry: I32[np.ndarray, " N"], book: PitchBook) -> F32[np.ndarray, " N*1920"]:
    """Turn the harmonics of locked speech so that each, but for what is faster than 60 ms, has its maximum where the fundamental has."""
    there = np.repeat((entry > 0).astype(np.float64), FRAME // TRACK)
    gate = there * np.convolve(there, hann(17), "same")
    grid, at = np.arange(len(there)), np.arange(len(wave)) / TRACK
    made = wave.astype(np.float64)
    for frequency, amplitude, cycle in _harmonics(wave, entry, book):
        share = np.clip((_ALIGNED[1] - frequency) / (_ALIGNED[1] - _ALIGNED[0]), 0.0, 1.0)
        slow = np.convolve(amplitude * there, hann(25), "same")
        change = amplitude * (slow.conj() / np.maximum(np.abs(slow), 1e-9) - 1) * gate * share
        made += ((np.interp(at, grid, change.real) + 1j * np.interp(at, grid, change.imag)) * cycle).real
    return made.astype(np.float32)


def _harmonics(
    wave: F32[np.ndarray, " F"], entry: I32[np.ndarray, " N"], book: PitchBook
) -> Iterator[tuple[float, F64[np.ndarray, " T"], F64[np.ndarray, " F"]]]:
    """Of each harmonic below 6 kHz: about its frequency in Hz, its complex amplitude every 60 samples, and e^(2 pi i phase)."""
    voiced = entry > 0
    if not voiced.any():
        return
    knots = book.cycles[entry][:, None] * (np.arange(POINTS + 1) / POINTS)
    knots[:, 1:-1] += book.bends[entry]
    turn = np.exp(-2j * np.pi * spline(knots)(np.arange(FRAME) / FRAME).ravel())
    lowest = float(np.median(book.cycles[entry[voiced]])) * SAMPLE_RATE / FRAME
    width = int(SAMPLE_RATE * 2.2 / lowest) | 1
    pieces = np.lib.stride_tricks.sliding_window_view(np.pad(wave, width // 2), width)[::TRACK] * hann(width)
    turns = np.lib.stride_tricks.sliding_window_view(np.pad(turn, width // 2, mode="edge"), width)[::TRACK]
    power, cycle = np.ones_like(turns), np.ones_like(turn)
    for harmonic in range(1, int(_ALIGNED[1] / lowest) + 1):
        power, cycle = power * turns, cycle * turn.conj()
        yield harmonic * lowest, 2 * (pieces * power).sum(axis=1), cycle


def hann(size: int) -> F64[np.ndarray, " T"]:
    """A window with a sum of 1."""
    window = np.hanning(size + 2)[1:-1]
    return window / window.sum()


def _borders(passed: F64[np.ndarray, " T"], voiced: Bool[np.ndarray, " N"]) -> F64[np.ndarray, " N+1"]:
    """Where in the source each frame begins: at a whole cycle where a frame beside it has voice, so that time is bent least."""
    straight = np.arange(len(voiced) + 1) * FRAME
    beside = np.concatenate([[False], voiced]) | np.concatenate([voiced, [False]])
    here = passed[straight][:, None]
    wanted = np.where(beside[:, None], np.round(here) + _SHIFTS, here + 0.5 * _SHIFTS)
    places = np.interp(wanted.ravel(), passed, np.arange(len(passed))).reshape(wanted.shape)
    drift = 0.05 * np.square((places - straight[:, None]) / STEP)
    total, came = drift[0], np.zeros(places.shape, np.int64)
    for now in range(1, len(places)):
        stretch = 100.0 * ((places[now] - places[now - 1][:, None]) / FRAME - 1)
        sums = total[:, None] + 0.1 * np.square(stretch)
        came[now] = sums.argmin(axis=0)
        total = sums.min(axis=0) + drift[now]
    chosen = np.full(len(places), total.argmin())
    for now in range(len(places) - 1, 0, -1):
        chosen[now - 1] = came[now, chosen[now]]
    return places[np.arange(len(places)), chosen]


def spline(knots: F64[np.ndarray, "N 9"]) -> scipy.interpolate.CubicSpline:
    """Curves through the points of each frame, over [0, 1]."""
    return scipy.interpolate.CubicSpline(np.arange(POINTS + 1) / POINTS, knots, axis=1, bc_type="natural")


def _bent(
    wave: F32[np.ndarray, " F"],
    passed: F64[np.ndarray, " F+1"],
    start: F64[np.ndarray, " N"],
    cycles: F64[np.ndarray, " N"],
    bends: F64[np.ndarray, "N 7"],
) -> F32[np.ndarray, " F"]:
    """The wave read at the times at which its own phase is the wanted one."""
    even = np.arange(POINTS + 1) / POINTS
    knots = start[:, None] + cycles[:, None] * even
    knots[:, 1:-1] += bends
    path = np.maximum.accumulate(spline(knots)(np.arange(FRAME) / FRAME).ravel())
    times = np.interp(path, passed, np.arange(len(passed)))
    fine = scipy.signal.resample_poly(np.pad(wave, (0, FRAME)), 2, 1)
    return scipy.ndimage.map_coordinates(fine, [2 * times], order=3, mode="nearest").astype(np.float32)
