"""Speech [F] -> what a codec frame says: a latent [N H] and 16 codes [N K], without a network.

A frame is eight moments of 28 levels (levels.py): 224 numbers. Their main components are the first part of the latent, what a
`pitch_synchronous.PitchBook` says of the frame's pitch is the second. Book 1 is that pitch book, books 2 to 15 are k-means, each of some
components only (`shared_out`): a product quantiser (Jegou et al., TPAMI 2011), whose books say each their own. What a residual quantiser's
late books say depends on every entry before, and the predictor did not learn it (training/log.md). Entries are zero elsewhere, so that
the published sum of books puts them side by side, and the published search, nearest to what is left, finds each book's own. Book 0 says
which phonemes come next (phonemes.py), and nothing of how they sound. How much is lost: `FitReport`, printed when the books are fitted.
"""

import itertools
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file

from qwen3_jax.shapes import F32, F64, I32, Float, Integer
from training.latents import phonemes, pitch_synchronous
from training.latents.levels import LEVELS, MOMENTS, levels

FRAME = 1920
_SAMPLE_RATE = 24000
PITCH_SHARE = 0.15  # of the components' variance: what the pitch counts for beside them
_RARE = 0.5  # spread of a number that hardly any frame needs, or such a frame would drown the rest


def mel_filters(bins: int, fft: int, sample_rate: int = _SAMPLE_RATE) -> F32[np.ndarray, "{bins} {fft}//2+1"]:
    """Triangles of height 1, evenly spaced on the mel scale 2595 log10(1 + f/700), from 0 Hz to half the sample rate."""
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bins + 2) / 2595) - 1)
    hertz = np.linspace(0, sample_rate / 2, fft // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.maximum(np.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre)), 0).astype(np.float32)


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
    plan: Any  # int8 [V 4]: book 0, see phonemes.py
    content: Any  # [V D]: what the encoder is to find, for each entry of it

    @property
    def latent_size(self) -> int:
        """Numbers of a latent, H."""
        return len(self.spread)

    @property
    def components(self) -> int:
        """How many of them are main components of the levels, C."""
        return len(self.basis)

    @property
    def pitch(self) -> pitch_synchronous.PitchBook:
        """The contours that book 1 names."""
        return pitch_synchronous.PitchBook(self.cycles, self.bends)

    def main(self, told: F32[np.ndarray, "N 224"]) -> F32[np.ndarray, "N C"]:
        """Main components of frames' levels."""
        return (told - self.mean) @ self.basis.T

    def latent(self, main: F32[np.ndarray, "... C"], entry: I32[np.ndarray, "..."]) -> F32[np.ndarray, "... H"]:
        """Of frames' main components and entries of the pitch book."""
        return np.concatenate([main, self.acoustic[0, :, self.components :][entry]], axis=-1)

    def read(self, wave: F32[np.ndarray, " F"], said: Integer[np.ndarray, "N 4"]) -> "AnalysedSpeech":
        """What the codec is to say of speech; ``said``: of `phonemes.quarters`, zeros where nobody knows."""
        locked = pitch_synchronous.synchronise(wave, self.pitch)
        told = levels(locked.wave, locked.entry, self.pitch)
        main = self.main(told)
        return AnalysedSpeech(locked.wave, told, self.codes(self.latent(main, locked.entry), said), main)

    def codes(self, latent: F32[np.ndarray, "N H"], said: Integer[np.ndarray, "N 4"]) -> I32[np.ndarray, "N K"]:
        """Book 0 from what is said next, then book after book of the latent."""
        found = [phonemes.codes(phonemes.following(said), self.plan)]
        rest = latent.copy()
        for book in self.acoustic:
            found.append(nearest(rest, book))
            rest -= book[found[-1]]
        return np.stack(found, axis=1).astype(np.int32)

    def save(self, path: Path) -> None:
        """Write all of it into one safetensors file."""
        save_file({name: np.ascontiguousarray(value) for name, value in msgspec.structs.asdict(self).items()}, path)

    @classmethod
    def load(cls, path: Path) -> "Latents":
        """Read what ``save`` wrote."""
        return cls(**load_file(path))


def nearest(x: Float[np.ndarray, "N D"], book: Float[np.ndarray, "V D"], block: int = 8192) -> Integer[np.ndarray, " N"]:
    """The entry nearest to each row, as the codec's encoder finds it."""
    size = np.square(book).sum(axis=1)
    return np.concatenate([np.argmin(size - 2 * (x[i : i + block] @ book.T), axis=1) for i in range(0, len(x), block)])


def k_means(x: F32[np.ndarray, "N D"], size: int, steps: int, noise: np.random.Generator) -> F32[np.ndarray, "V D"]:
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


def _shipped(book: F32[np.ndarray, "V D"]) -> F32[np.ndarray, "V D"]:
    """As float16 has it: the exported books are then exactly these, and so are their codes."""
    return book.astype(np.float16).astype(np.float32)


class AnalysedSpeech(msgspec.Struct):
    """Speech as it is locked, float32 [N*1920], its levels [N 224], its codes [N K] and main components [N C]."""

    wave: F32[np.ndarray, "..."]
    levels: F32[np.ndarray, "..."]
    codes: I32[np.ndarray, "..."]
    main: F32[np.ndarray, "..."]


class FitPart(msgspec.Struct):
    """A voice's speech, for fitting: levels [N 224] and entries of the pitch book [N] of the locked wave, `phonemes.quarters` [N 4]."""

    levels: Any
    entry: Any
    said: Any


class FitReport(msgspec.Struct):
    """What is kept: variance by the main components; of that, what is unexplained after each acoustic book; and quarters of frames whose
    phoneme book 0 has right."""

    kept: float
    unexplained: list[float]
    phonemes: float


def fit_pitch(
    cycles: F64[np.ndarray, " N"], bends: F64[np.ndarray, "N 7"], entries: int, *, seed: int = 0, most: int = 60000, steps: int = 12
) -> pitch_synchronous.PitchBook:
    """The pitch book, of frames with voice; ``most`` of them, ``steps`` of k-means."""
    noise = np.random.default_rng(seed)
    some = noise.permutation(len(cycles))[:most]
    return pitch_synchronous.fit(cycles[some], bends[some], entries, lambda x, count: k_means(x.astype(np.float32), count, steps, noise))


def fit(
    parts: list[FitPart],
    pitch: pitch_synchronous.PitchBook,
    *,
    latent: int = 88,
    content: int = 24,
    books: int = 15,
    seed: int = 0,
    most: int = 60000,
    steps: int = 12,
) -> tuple[Latents, FitReport]:
    """Fit everything else.

    Args:
        parts: each voice's speech. Voices count alike as far as they can: the smallest first take their share of ``most`` frames,
            but at most twice what they have.
        pitch: what ``parts`` were locked with; all books have as many entries as it.
        latent: main components; content: of the vectors that stand for book 0; books: acoustic ones.
        steps: of k-means.

    Raises:
        ValueError: too little speech for a book.
    """
    noise, entries = np.random.default_rng(seed), len(pitch.cycles)
    rows, left = {}, most
    for place, number in enumerate(sorted(range(len(parts)), key=lambda number: len(parts[number].entry))):
        length = len(parts[number].entry)
        rows[number] = noise.permutation(np.tile(np.arange(length), 2))[: min(2 * length, left // (len(parts) - place))]
        left -= len(rows[number])
    acoustics, report = fit_acoustics(
        np.concatenate([part.levels[rows[number]] for number, part in enumerate(parts)]),
        np.concatenate([part.entry[rows[number]] for number, part in enumerate(parts)]),
        pitch, latent, books, steps, noise,
    )  # fmt: skip
    said = np.concatenate([phonemes.following(part.said)[rows[number]] for number, part in enumerate(parts)])
    book = phonemes.fit(said, entries)
    use = np.bincount(phonemes.codes(said, book), minlength=entries)
    vectors = _shipped(phonemes.vectors(book, use, content))
    report.phonemes = float((book[phonemes.codes(said, book)] == said).mean())
    return Latents(**acoustics, cycles=pitch.cycles, bends=pitch.bends, plan=book, content=vectors), report


def fit_acoustics(
    told: F32[np.ndarray, "N 224"],
    entry: I32[np.ndarray, " N"],
    pitch: pitch_synchronous.PitchBook,
    size: int,
    books: int,
    steps: int,
    noise: np.random.Generator,
) -> tuple[dict[str, np.ndarray], FitReport]:
    """Components and books of levels: the first fields of Latents. What the pitch says is given `PITCH_SHARE` of the components' weight."""
    mean = np.tile(told.mean(axis=0).reshape(MOMENTS, LEVELS).mean(axis=0), MOMENTS)
    basis, kept = _components(told - mean, size)
    x = (told - mean) @ basis.T
    said = pitch.features()
    share = PITCH_SHARE * np.square(x).sum(axis=1).mean() / np.square(said[entry] - said[entry].mean(axis=0)).sum(axis=1).mean()
    said = _shipped(said * np.float32(np.sqrt(share)))
    acoustic, unexplained, rest = [np.pad(said, ((0, 0), (size, 0)))], [], x.copy()
    for first, after in itertools.pairwise(shared_out(x.var(axis=0), books - 1, np.log2(len(said)))):
        book = _shipped(k_means(x[:, first:after], len(said), steps, noise))
        acoustic.append(np.pad(book, ((0, 0), (first, len(basis) - after + said.shape[1]))))
        rest[:, first:after] -= book[nearest(x[:, first:after], book)]
        unexplained.append(float(np.square(rest).sum(axis=1).mean() / np.square(x).sum(axis=1).mean()))
    spread = np.concatenate([x.std(axis=0), np.maximum(said[entry].std(axis=0), _RARE)]).astype(np.float32)
    regain = (x.std(axis=0) / (x - rest).std(axis=0)).astype(np.float32)
    found = {"mean": mean, "basis": basis, "spread": spread, "regain": regain, "acoustic": np.stack(acoustic)}
    return found, FitReport(kept, unexplained, 0.0)


def shared_out(variance: Float[np.ndarray, " C"], books: int, bits: float) -> list[int]:
    """Which components each book takes, one after the other: bounds, from 0 to C. What normal components of such ``variance`` lose to
    books of ``bits`` in all is least (reverse water-filling: Cover and Thomas, Elements of Information Theory, 10.3.3).

    Raises:
        ValueError: more books than components.
    """
    size = len(variance)
    if books > size:
        raise ValueError(f"{books} books for {size} components: at least one for each, so take a larger latent or fewer books")
    lost = {(i, j): _lost(variance[i:j], bits) for i in range(size) for j in range(i + 1, size + 1)}
    best: list[dict[int, tuple[float, list[int]]]] = [{0: (0.0, [0])}]  # after so many books: by their end, what is lost, and the bounds
    for _ in range(books):
        best.append({
            j: min((loss + lost[i, j], [*bounds, j]) for i, (loss, bounds) in best[-1].items() if i < j)
            for j in range(1, size + 1) if any(i < j for i in best[-1])
        })  # fmt: skip
    return best[-1][size][1]


def _lost(variance: Float[np.ndarray, " D"], bits: float) -> float:
    falling = np.sort(variance)[::-1]
    for kept in range(len(falling), 0, -1):
        level = float(np.exp(np.log(falling[:kept]).mean()) * 2.0 ** (-2 * bits / kept))
        if level <= falling[kept - 1]:
            break
    return kept * level + float(falling[kept:].sum())


def _components(x: F32[np.ndarray, "N D"], size: int) -> tuple[F32[np.ndarray, "size D"], float]:
    """The main ones as rows, and their share of the variance."""
    values, vectors = np.linalg.eigh(np.cov(x.T))
    return vectors[:, ::-1][:, :size].T.astype(np.float32), float(values[::-1][:size].sum() / values.sum())
