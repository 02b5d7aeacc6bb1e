"""Speech [F] -> what a codec frame says: a latent [N H], a content vector [N D] and 16 codes [N K], without a network.

A frame is eight moments of 28 levels (levels.py): 224 numbers. Their main components are the first part of the latent, what a
`locking.PitchBook` says of the frame's pitch is the second. Book 1 is that pitch book, books 2 to 15 are residual k-means of the
components. Book 0 is k-means of the content vector, the part of a regression from a spectrogram on the teacher's phonemes (of each
quarter of the frame) that matters most; it sees the frame and the one before it, after the voice's own mean and spread are taken out, so
that the same sounds of two voices get the same code. Nothing looks further than 5 ms beyond its frame's last sample, so a causal encoder
can learn all of it. How much is lost: `Report`, printed when the books are fitted.
"""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file

from qwen3_jax.shapes import NpF32, NpInt
from qwen3_jax.train import locking
from qwen3_jax.train.levels import LEVELS, MOMENTS, levels

FRAME, HOP, WINDOW, FFT, BINS = 1920, 480, 960, 1024, 80
COLUMNS = FRAME // HOP
UNIT = 600  # samples, of the teachers' durations
FLOOR = 1e-4  # of a bin's magnitude; a full-scale sine has about 1, and 57 % of teacher speech's bins lie below 1e-3
_SAMPLE_RATE = 24000
PITCH_SHARE = 0.15  # of the components' variance: what the pitch counts for beside them
_RARE = 0.5  # spread of a number that hardly any frame needs, or such a frame would drown the rest
_FEATURES = 1536  # random ones, for the regression on phonemes


def mel_filters(bins: int, fft: int, sample_rate: int = _SAMPLE_RATE) -> NpF32["bins fft/2+1"]:
    """Triangles of height 1, evenly spaced on the mel scale 2595 log10(1 + f/700), from 0 Hz to half the sample rate."""
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bins + 2) / 2595) - 1)
    hertz = np.linspace(0, sample_rate / 2, fft // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.maximum(np.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre)), 0).astype(np.float32)


def log_mel(wave: np.ndarray, block: int = 4096) -> NpF32["N 320"]:
    """Spectrogram of whole frames.

    Args:
        wave: [N*1920] int16, or float32 in [-1, 1].

    Returns:
        [N 320] float32, natural logarithms: four columns of 80 bins. Column j of frame n sees samples 1920n + 480j - 480 to + 480.
    """
    if len(wave) % FRAME:
        raise ValueError(f"a wave of {len(wave)} samples is not whole frames of {FRAME}; pad it")
    scale = 1 / 32768 if np.issubdtype(wave.dtype, np.integer) else 1.0
    padded = np.concatenate([np.zeros(WINDOW - HOP, wave.dtype), wave])
    places = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] if len(wave) else np.zeros((0, WINDOW))
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32) * scale / (WINDOW / 4)
    filters = mel_filters(BINS, FFT).T
    rows = [np.abs(np.fft.rfft(places[i : i + block] * hann, FFT)).astype(np.float32) @ filters for i in range(0, len(places), block)]
    mel = np.concatenate(rows) if rows else np.zeros((0, BINS), np.float32)
    return np.log(mel + FLOOR).reshape(-1, COLUMNS * BINS)


class Latents(msgspec.Struct):
    """All that was fitted. ``basis`` has the components as rows; ``spread`` is the latent's standard deviation, by number.

    A latent is C components and what the pitch book says, H = C + 28 numbers. The first acoustic book has nothing in the C, the others
    nothing in the rest.
    """

    mean: Any  # [224], the same at every moment
    basis: Any  # [C 224]
    spread: Any  # [H]
    regain: Any  # [C]: how much wider the components are than what the books leave of them
    acoustic: Any  # [15 V H]
    cycles: Any  # [V] and
    bends: Any  # [V 7]: the pitch book
    heard_mean: Any  # [320] and
    heard_basis: Any  # [M 320]: of the spectrogram
    content_in: Any  # [2M F] and
    content_phase: Any  # [F]: the random features of the regression
    content_out: Any  # [F+1 D]
    content: Any  # [V D]
    voices: Any  # [voices 2 M]: mean and spread of each voice's components of the spectrogram
    names: list[str]  # of the voices

    @property
    def latent_size(self) -> int:
        """Numbers of a latent, H."""
        return len(self.spread)

    @property
    def components(self) -> int:
        """How many of them are main components of the levels, C."""
        return len(self.basis)

    @property
    def pitch(self) -> locking.PitchBook:
        """The contours that book 1 names."""
        return locking.PitchBook(self.cycles, self.bends)

    def main(self, told: NpF32["N 224"]) -> NpF32["N C"]:
        """Main components of frames' levels."""
        return (told - self.mean) @ self.basis.T

    def latent(self, main: NpF32["... C"], entry: NpInt["..."]) -> NpF32["... H"]:
        """Of frames' main components and entries of the pitch book."""
        return np.concatenate([main, self.acoustic[0, :, self.components :][entry]], axis=-1)

    def content_vector(self, mel: NpF32["N 320"], voice: str) -> NpF32["N D"]:
        """What predicts the phonemes best, from a spectrogram. A voice that was not fitted is measured by itself."""
        parts = (mel - self.heard_mean) @ self.heard_basis.T
        mean, spread = self.voices[self.names.index(voice)] if voice in self.names else _statistics(parts)
        return _features(parts, mean, spread, self.content_in, self.content_phase) @ self.content_out

    def read(self, wave: NpF32["N*1920"], voice: str) -> "Read":
        """What the codec is to say of speech."""
        locked = locking.lock(wave, self.pitch)
        told = levels(locked.wave, locked.entry, self.pitch)
        main, content = self.main(told), self.content_vector(log_mel(locked.wave), voice)
        return Read(locked.wave, told, self.codes(self.latent(main, locked.entry), content), main, content)

    def codes(self, latent: NpF32["N H"], content: NpF32["N D"]) -> NpInt["N K"]:
        """Book 0 from the content, then book after book of the latent."""
        found = [nearest(content, self.content)]
        rest = latent.copy()
        for book in self.acoustic:
            found.append(nearest(rest, book))
            rest -= book[found[-1]]
        return np.stack(found, axis=1).astype(np.int32)

    def save(self, path: Path) -> None:
        """Write all of it into one safetensors file."""
        arrays = {name: np.ascontiguousarray(value) for name, value in msgspec.structs.asdict(self).items() if name != "names"}
        save_file(arrays, path, {"names": ",".join(self.names)})

    @classmethod
    def load(cls, path: Path) -> "Latents":
        """Read what ``save`` wrote."""
        from safetensors import safe_open

        with safe_open(path, "numpy") as file:
            names = file.metadata()["names"].split(",")
        return cls(**load_file(path), names=names)


def nearest(x: NpF32["N D"], book: NpF32["V D"], block: int = 8192) -> NpInt["N"]:
    """The entry nearest to each row, as the codec's encoder finds it."""
    size = np.square(book).sum(axis=1)
    return np.concatenate([np.argmin(size - 2 * (x[i : i + block] @ book.T), axis=1) for i in range(0, len(x), block)])


def k_means(x: NpF32["N D"], size: int, steps: int, noise: np.random.Generator) -> NpF32["V D"]:
    """``size`` centres of rows, from random rows on; a centre that nothing is near to goes to a random row."""
    book = x[noise.choice(len(x), size, replace=len(x) < size)].copy()
    for _ in range(steps):
        codes = nearest(x, book)
        order = np.argsort(codes, kind="stable")
        used, first = np.unique(codes[order], return_index=True)
        count = np.diff(np.append(first, len(x)))
        book[used] = np.add.reduceat(x[order], first, axis=0) / count[:, None]
        dead = np.setdiff1d(np.arange(size), used)
        book[dead] = x[noise.choice(len(x), len(dead))]
    return book


def _shipped(book: NpF32["V D"]) -> NpF32["V D"]:
    """As float16 has it: the exported books are then exactly these, and so are their codes."""
    return book.astype(np.float16).astype(np.float32)


def _statistics(latent: NpF32["N H"]) -> tuple[NpF32["H"], NpF32["H"]]:
    return latent.mean(axis=0), latent.std(axis=0) + 1e-3


def _features(latent: NpF32["N H"], mean: NpF32["H"], spread: NpF32["H"], weight: NpF32["2*H F"], phase: NpF32["F"]) -> NpF32["N F+1"]:
    """Random cosines of a frame and the one before it, and a one."""
    x = (latent - mean) / spread
    pair = np.concatenate([np.concatenate([x[:1], x[:-1]]), x], axis=1)
    return np.concatenate([np.cos(pair @ weight + phase), np.ones((len(x), 1), np.float32)], axis=1).astype(np.float32)


def occupancy(labels: np.ndarray, count: int) -> NpF32["N 4*P"]:
    """Labels of every unit of 600 samples -> how much of each quarter of a frame each phoneme has."""
    samples = np.repeat(labels, UNIT // 120)  # all lengths are whole multiples of 120 samples
    quarters = samples[: len(samples) // 16 * 16].reshape(-1, HOP // 120)
    shares = (quarters[:, :, None] == np.arange(count)).mean(axis=1, dtype=np.float32)
    return shares.reshape(-1, COLUMNS * count)


class Read(msgspec.Struct):
    """Speech as it is locked, float32 [N*1920], its levels [N 224], its codes [N K], main components [N C] and content vector [N D]."""

    wave: NpF32
    levels: NpF32
    codes: NpInt
    main: NpF32
    content: NpF32


class Part(msgspec.Struct):
    """A voice's speech, for fitting: levels [N 224], spectrogram [N 320] and entries of the pitch book [N], of the locked wave, and the
    phonemes' numbers of every 600 samples."""

    voice: str
    levels: Any
    mel: Any
    entry: Any
    labels: Any


class Report(msgspec.Struct):
    """What is kept: variance by the main components; of that, what is unexplained after each acoustic book; and phonemes of quarters
    that can be read off book 0, and off the regression that book 0 comes from."""

    kept: float
    unexplained: list[float]
    phonemes: dict[str, float]


def fit_pitch(
    cycles: NpF32["N"], bends: NpF32["N 7"], entries: int, *, seed: int = 0, most: int = 60000, steps: int = 12
) -> locking.PitchBook:
    """The pitch book, of frames with voice; ``most`` of them, ``steps`` of k-means."""
    noise = np.random.default_rng(seed)
    some = noise.permutation(len(cycles))[:most]
    return locking.fit(cycles[some], bends[some], entries, lambda x, count: k_means(x.astype(np.float32), count, steps, noise))


def fit(
    parts: list[Part],
    pitch: locking.PitchBook,
    *,
    latent: int = 80,
    content: int = 24,
    books: int = 15,
    seed: int = 0,
    most: int = 60000,
    steps: int = 12,
) -> tuple[Latents, Report]:
    """Fit everything else.

    Args:
        parts: each voice's speech. Voices count alike as far as they can: the smallest first take their share of ``most`` frames,
            but at most twice what they have.
        pitch: what ``parts`` were locked with; all books have as many entries as it.
        latent: size of a latent; content: of a content vector; books: acoustic ones.
        steps: of k-means.
    """
    noise, entries = np.random.default_rng(seed), len(pitch.cycles)
    rows, left = {}, most
    for place, number in enumerate(sorted(range(len(parts)), key=lambda number: len(parts[number].mel))):
        length = len(parts[number].mel)
        rows[number] = noise.permutation(np.tile(np.arange(length), 2))[: min(2 * length, left // (len(parts) - place))]
        left -= len(rows[number])
    acoustics, report = fit_acoustics(
        np.concatenate([part.levels[rows[number]] for number, part in enumerate(parts)]),
        np.concatenate([part.entry[rows[number]] for number, part in enumerate(parts)]),
        pitch, latent, books, steps, noise,
    )  # fmt: skip
    mel = np.concatenate([part.mel[rows[number]] for number, part in enumerate(parts)])
    heard_mean = mel.mean(axis=0)
    heard_basis = _components(mel - heard_mean, latent)[0]
    # content: ridge regression of the phonemes on random features, cut to the directions in which its answers vary most
    count = 1 + max(int(part.labels.max()) for part in parts)
    weight = (noise.standard_normal((2 * latent, _FEATURES)) * (0.5 / np.sqrt(latent))).astype(np.float32)
    phase = noise.uniform(0, 2 * np.pi, _FEATURES).astype(np.float32)
    heard = [(part.mel - heard_mean) @ heard_basis.T for part in parts]
    voices = np.stack([np.stack(_statistics(each)) for each in heard])
    shares = [occupancy(part.labels, count) for part in parts]
    features = [_features(each, voice[0], voice[1], weight, phase)[: len(y)] for each, voice, y in zip(heard, voices, shares, strict=True)]
    takes = [min(len(each), most) for each in features]
    f = np.concatenate([each[:take] for each, take in zip(features, takes, strict=True)])
    y = np.concatenate([each[:take] for each, take in zip(shares, takes, strict=True)])
    solved = np.linalg.solve((f.T @ f + 3.0 * np.eye(f.shape[1], dtype=np.float32)).astype(np.float64), (f.T @ y).astype(np.float64))
    answer = f @ solved.astype(np.float32)
    _, directions = np.linalg.eigh(np.cov(answer.T))
    out = (solved @ directions[:, ::-1][:, :content]).astype(np.float32)
    out *= np.float32(8.0 / (f @ out).std(axis=0).max())  # to the latent's order of magnitude
    projected = f @ out
    book = _shipped(k_means(projected[noise.permutation(len(projected))[:most]], entries, steps, noise))
    fitted = Latents(
        **acoustics, cycles=pitch.cycles, bends=pitch.bends, heard_mean=heard_mean, heard_basis=heard_basis, content_in=weight,
        content_phase=phase, content_out=out, content=book, voices=voices, names=[part.voice for part in parts],
    )  # fmt: skip
    report.phonemes = {"content": _read_off(nearest(projected, book), y, count, entries), "regression": _hits(answer, y, count)}
    return fitted, report


def fit_acoustics(
    told: NpF32["N 224"], entry: NpInt["N"], pitch: locking.PitchBook, size: int, books: int, steps: int, noise: np.random.Generator
) -> tuple[dict[str, np.ndarray], Report]:
    """Components and books of levels: the first fields of Latents. What the pitch says is given `PITCH_SHARE` of the components' weight."""
    mean = np.tile(told.mean(axis=0).reshape(MOMENTS, LEVELS).mean(axis=0), MOMENTS)
    basis, kept = _components(told - mean, size)
    x = (told - mean) @ basis.T
    said = pitch.features()
    share = PITCH_SHARE * np.square(x).sum(axis=1).mean() / np.square(said[entry] - said[entry].mean(axis=0)).sum(axis=1).mean()
    said = _shipped(said * np.float32(np.sqrt(share)))
    acoustic, unexplained, rest = [np.pad(said, ((0, 0), (size, 0)))], [], x.copy()
    for _ in range(books - 1):
        acoustic.append(np.pad(_shipped(k_means(rest, len(said), steps, noise)), ((0, 0), (0, said.shape[1]))))
        rest -= acoustic[-1][nearest(rest, acoustic[-1][:, :size]), :size]
        unexplained.append(float(np.square(rest).sum(axis=1).mean() / np.square(x).sum(axis=1).mean()))
    spread = np.concatenate([x.std(axis=0), np.maximum(said[entry].std(axis=0), _RARE)]).astype(np.float32)
    regain = (x.std(axis=0) / (x - rest).std(axis=0)).astype(np.float32)
    return {"mean": mean, "basis": basis, "spread": spread, "regain": regain, "acoustic": np.stack(acoustic)}, Report(kept, unexplained, {})


def _components(x: NpF32["N D"], size: int) -> tuple[NpF32["size D"], float]:
    """The main ones as rows, and their share of the variance."""
    values, vectors = np.linalg.eigh(np.cov(x.T))
    return vectors[:, ::-1][:, :size].T.astype(np.float32), float(values[::-1][:size].sum() / values.sum())


def _read_off(codes: NpInt["N"], shares: NpF32["N 4*P"], count: int, entries: int) -> float:
    """Quarters of frames whose phoneme is the commonest one of their frame's code."""
    table = np.zeros((entries, shares.shape[1]))
    np.add.at(table, codes, shares)
    return _hits(table[codes], shares, count)


def _hits(answer: np.ndarray, shares: np.ndarray, count: int) -> float:
    same = answer.reshape(-1, count).argmax(axis=1) == shares.reshape(-1, count).argmax(axis=1)
    return float(same.mean())
