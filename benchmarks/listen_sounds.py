"""What a microphone picks up besides a user, made by NumPy: mono float32 at 16 kHz, at a level in dB of full scale."""

import numpy as np

from qwen3_jax.shapes import F32

RATE = 16_000
QUIET_DB = -30.0  # below the loudest 10 ms, speech has not begun, or is over


def at_level(sound: F32[np.ndarray, " F"], decibels: float) -> F32[np.ndarray, " F"]:
    """With that root mean square, over what is not silent."""
    steps = sound[: len(sound) // 160 * 160].reshape(-1, 160)
    power = np.square(steps, dtype=np.float64).mean(1)
    size = float(np.sqrt(power[power > power.max() * 1e-3].mean()))
    return np.clip(sound * (10 ** (decibels / 20) / size), -1, 1).astype(np.float32)


def room(seconds: float, rng: np.random.Generator) -> F32[np.ndarray, " F"]:
    """A quiet room, at -66 dB."""
    return at_level(rng.normal(0, 1, round(RATE * seconds)).astype(np.float32), -66.0)


def typing(seconds: float, rng: np.random.Generator) -> F32[np.ndarray, " F"]:
    """Six keys a second: a knock of 5 ms, and a softer one when the key comes back."""
    sound = np.zeros(round(RATE * seconds), np.float32)
    at = 0.0
    while (at := at + rng.exponential(1 / 6) + 0.04) < seconds - 0.3:
        for delay, size in ((0.0, 1.0), (rng.uniform(0.06, 0.12), 0.4)):
            knock = rng.normal(0, size, 400) * np.exp(-np.arange(400) / rng.uniform(30, 90))
            begin = round(RATE * (at + delay))
            sound[begin : begin + 400] += knock.astype(np.float32)
    return sound


def clicks(seconds: float, rng: np.random.Generator) -> F32[np.ndarray, " F"]:
    """A mouse: two single clicks a second, some of them double."""
    sound = np.zeros(round(RATE * seconds), np.float32)
    for at in np.arange(0.2, seconds - 0.5, 0.5):
        for delay in (0.0, 0.15)[: rng.integers(1, 3)]:
            begin = round(RATE * (at + rng.uniform(0, 0.1) + delay))
            ring = np.sin(2 * np.pi * rng.uniform(2500, 4500) * np.arange(160) / RATE) * np.exp(-np.arange(160) / 25)
            sound[begin : begin + 160] += ring.astype(np.float32)
    return sound


def music(seconds: float, rng: np.random.Generator) -> F32[np.ndarray, " F"]:
    """Chords of four notes with eight harmonics, a bass and a beat, at 100 beats a minute."""
    sound = np.zeros(round(RATE * seconds))
    beat = round(RATE * 0.6)
    decay = np.exp(-np.arange(beat) / (0.3 * RATE))
    time = np.arange(beat) / RATE
    for number, begin in enumerate(range(0, len(sound) - beat, beat)):
        root = 110 * 2 ** ((0, 5, 7, 9)[number // 4 % 4] / 12)
        chord = np.zeros(beat)
        for step in (0, 4, 7, 12):
            tone = 2 * root * 2 ** (step / 12)
            chord += sum(np.sin(2 * np.pi * tone * harmonic * time + rng.uniform(0, 6)) / harmonic for harmonic in range(1, 9))
        bass = 3 * np.sin(2 * np.pi * root / 2 * time)
        drum = 4 * rng.normal(0, 1, beat) * np.exp(-np.arange(beat) / (0.02 * RATE)) * (number % 2)
        sound[begin : begin + beat] += (chord + bass) * decay + drum
    return sound.astype(np.float32)


def edges(speech: F32[np.ndarray, " F"]) -> tuple[int, int]:
    """The samples at which speech begins and is over."""
    steps = speech[: len(speech) // 160 * 160].reshape(-1, 160)
    power = np.square(steps, dtype=np.float64).mean(1)
    loud = np.flatnonzero(power >= power.max() * 10 ** (QUIET_DB / 10))
    return int(loud[0]) * 160, int(loud[-1] + 1) * 160
