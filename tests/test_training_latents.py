"""Locked speech: the pitch that is found, frames of whole cycles, contours of a book, harmonics in step; against waves that are known."""

import numpy as np
import pytest

from training.corpus import pitch
from training.latents import pitch_synchronous
from training.latents.pitch_synchronous import FRAME
from training.latents.quantiser import k_means

RATE = pitch.SAMPLE_RATE


def voice(frames: int, hertz: float = 190.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A gliding voice of eight harmonics with phases of their own, with a pause in the middle; and its frequency at every sample."""
    time = np.arange(frames * FRAME) / RATE
    frequency = hertz * (1 + 0.2 * np.sin(2 * np.pi * 0.9 * time))
    cycles = np.cumsum(frequency) / RATE
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, 9)
    wave = sum(0.2 / harmonic * np.cos(2 * np.pi * harmonic * cycles + phases[harmonic]) for harmonic in range(1, 9))
    pause = np.abs(np.arange(len(time)) - len(time) / 2) < 3 * FRAME
    quiet = np.where(pause, 0.0, 1.0)
    noise = 1e-4 * np.random.default_rng(seed + 1).standard_normal(len(time))
    return (wave * quiet + noise).astype(np.float32), np.where(pause, 0.0, frequency)


def demodulated(
    wave: np.ndarray, locked: pitch_synchronous.SynchronousSpeech, book: pitch_synchronous.PitchBook, harmonic: int
) -> np.ndarray:
    """Complex amplitudes of a harmonic, over whole voiced frames by the phase that the book says."""
    knots = book.cycles[locked.entry][:, None] * (np.arange(9) / 8)
    knots[:, 1:-1] += book.bends[locked.entry]
    path = pitch_synchronous.spline(knots)(np.arange(FRAME) / FRAME)
    turned = wave.reshape(-1, FRAME) * np.exp(-2j * np.pi * harmonic * path)
    inner = np.array([locked.voiced[max(0, n - 1) : n + 2].all() for n in range(len(locked.voiced))])
    return 2 * turned.mean(axis=1)[inner]


def book_of(wave: np.ndarray) -> pitch_synchronous.PitchBook:
    free = pitch_synchronous.synchronise(wave, None)
    noise = np.random.default_rng(0)
    return pitch_synchronous.fit(
        free.cycles[free.voiced], free.bends[free.voiced], 80, lambda x, count: k_means(x.astype(np.float32), count, 4, noise)
    )


@pytest.mark.parametrize("hertz", [95.0, 190.0, 270.0])
def test_the_track_is_the_pitch(hertz: float) -> None:
    wave, frequency = voice(40, hertz)
    found, voiced = pitch.track(wave)
    true = frequency[:: pitch.STEP]
    found, voiced = found[: len(true)], voiced[: len(true)]
    assert ((true > 0) == voiced).mean() > 0.95
    both = (true > 0) & voiced
    assert np.median(np.abs(found[both] / true[both] - 1)) < 0.01
    assert (np.abs(found[both] / true[both] - 1) < 0.05).mean() > 0.97


def test_frames_with_voice_begin_at_the_same_phase_and_time_is_hardly_bent() -> None:
    wave, _ = voice(60)
    book = book_of(wave)
    locked = pitch_synchronous.synchronise(wave, book)
    assert len(locked.wave) == len(wave) and 0.7 < locked.voiced.mean() < 0.95
    assert np.array_equal(locked.entry > 0, locked.voiced)
    assert np.array_equal(book.cycles[locked.entry[locked.voiced]], np.rint(locked.cycles[locked.voiced]))
    first = demodulated(locked.wave, locked, book, 1)
    assert np.abs(first.sum()) / np.abs(first).sum() > 0.98, "the fundamental has one phase in all frames"
    assert np.median(np.abs(first)) == pytest.approx(0.2, rel=0.15)
    original, _ = pitch.track(wave)
    bent, _ = pitch.track(locked.wave)
    both = (original > 0) & (bent > 0)
    assert np.percentile(np.abs(bent[both] / original[both] - 1), 90) < 0.06


def test_harmonics_are_brought_in_step() -> None:
    wave, _ = voice(60)
    book = book_of(wave)
    before = pitch_synchronous.synchronise(wave, None)
    assert np.array_equal(pitch_synchronous.align_harmonics(np.zeros(FRAME, np.float32), np.zeros(1, np.int32), book), np.zeros(FRAME))
    locked = pitch_synchronous.synchronise(wave, book)
    aligned = pitch_synchronous.align_harmonics(locked.wave, locked.entry, book)
    for harmonic in (1, 2, 3, 5):
        found = demodulated(aligned, locked, book, harmonic)
        assert found.real.sum() / np.abs(found).sum() > 0.9, harmonic
        assert np.median(np.abs(found)) == pytest.approx(0.2 / harmonic, rel=0.35)
    assert np.std(aligned) == pytest.approx(np.std(before.wave), rel=0.05)


def test_without_voice_nothing_happens() -> None:
    noise = (0.01 * np.random.default_rng(0).standard_normal(10 * FRAME)).astype(np.float32)
    locked = pitch_synchronous.synchronise(noise, book_of(voice(60)[0]))
    assert locked.voiced.mean() < 0.3
    silent = pitch_synchronous.synchronise(np.zeros(4 * FRAME, np.float32), book_of(voice(60)[0]))
    assert not silent.voiced.any() and not silent.entry.any() and not silent.wave.any()


def test_a_book_tells_its_entries_apart_and_says_their_phase() -> None:
    book = book_of(voice(60)[0])
    ramps, features = book.ramps(), book.features()
    assert ramps.shape == (80, pitch_synchronous.RAMPS, 2) and features.shape == (80, 28)
    assert not features[0].any() and np.all(ramps[0] == [0.5, 0.0])
    total = ramps[1:, :, 1].sum(axis=1)
    assert np.allclose(total, book.cycles[1:], atol=1e-3), "whole cycles"
    following = (ramps[1:, :-1, 0] + ramps[1:, :-1, 1]) % 1.0
    apart = np.abs(following - ramps[1:, 1:, 0])
    assert np.minimum(apart, 1 - apart).max() < 1e-4, "each step begins where the one before ended"
