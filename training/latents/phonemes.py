"""Book 0: what is about to be said. Its entries name the phonemes in the four quarters of the frame *after* their own.

So the talker, which draws book 0 first, decides when which sound comes one frame before the other books say how this frame sounds: they
know the sound that comes next, and the talker reads in its own past where in the text it is. A delay between content and acoustics is
Moshi's (arXiv 2410.00037, 3.4.3). The teachers state how long each phoneme lasts, so the right entry is known; an encoder, which cannot
hear the next frame, has to guess it.

With book 0 as k-means of a vector that predicts the phonemes from a spectrogram, six tenths of its quarters were right, with this nine
tenths (512 entries; 2048: .98). What the true plan is worth: see training/log.md.
"""

import numpy as np

from qwen3_jax.shapes import F32, I32, Integer
from training.corpus.teachers import UNIT
from training.latents.pitch_synchronous import FRAME

PHONES = "AIOQTWYabdfhijklmnpstuvwzæðŋɐɑɒɔəɛɜɡɪɹʃʊʌʒʤʧθᵊᵻ"  # of both teachers
STRESS = "ˈˌ"  # lasts as well; it counts as the phoneme that follows
SYMBOLS = f"{PHONES} "  # number 1 and on; the gap between two words is one of them; 0: a pause, and all other marks
QUARTERS = 4  # of a frame


def quarters(phonemes: str, durations: list[int], frames: int) -> Integer[np.ndarray, "N 4"]:
    """The symbol in the middle of each quarter of ``frames`` frames, int8.

    Args:
        phonemes: as the teachers write them.
        durations: of each, in units of 600 samples.
        frames: after the last phoneme there are pauses.
    """
    numbers, after = [], 0
    for symbol in reversed(phonemes):
        after = after if symbol in STRESS else 1 + SYMBOLS.find(symbol)
        numbers.append(after)
    symbols = np.repeat(np.array(numbers[::-1], np.int8), durations)
    middle = ((np.arange(frames * QUARTERS) + 0.5) * (FRAME / QUARTERS / UNIT)).astype(np.int64)
    return np.append(symbols, np.int8(0))[np.minimum(middle, len(symbols))].reshape(frames, QUARTERS)


def following(said: Integer[np.ndarray, "N 4"]) -> Integer[np.ndarray, "N 4"]:
    """Of each frame, what the next one says; a pause after the last."""
    return np.concatenate([said[1:], np.zeros((min(len(said), 1), said.shape[1]), said.dtype)])


def fit(patterns: Integer[np.ndarray, "N 4"], entries: int, steps: int = 15) -> Integer[np.ndarray, "V 4"]:
    """The book: from the commonest patterns on, each entry becomes what most of its patterns have in each quarter; one that no pattern is
    nearest to becomes the pattern that costs most.

    Raises:
        ValueError: fewer different patterns than entries.
    """
    some, counts = np.unique(patterns, axis=0, return_counts=True)
    if len(some) < entries:
        raise ValueError(f"{len(some)} different frames of phonemes cannot fill a book of {entries}: read more speech")
    book = some[np.argsort(-counts, kind="stable")[:entries]].copy()
    for _ in range(steps):
        near = codes(some, book)
        votes = np.zeros((entries, some.shape[1], len(SYMBOLS) + 1))
        for quarter in range(some.shape[1]):
            np.add.at(votes[:, quarter], (near, some[:, quarter]), counts)
        book = votes.argmax(axis=2).astype(some.dtype)
        dead = np.flatnonzero(np.bincount(near, minlength=entries) == 0)
        cost = (some != book[near]).sum(axis=1) * counts
        book[dead] = some[np.argsort(-cost, kind="stable")[: len(dead)]]
    return book


def codes(patterns: Integer[np.ndarray, "N 4"], book: Integer[np.ndarray, "V 4"], block: int = 4096) -> I32[np.ndarray, " N"]:
    """The entry with most quarters right; of several, the first."""
    found = [(patterns[i : i + block, None] != book).sum(axis=2).argmin(axis=1) for i in range(0, len(patterns), block)]
    return np.concatenate([*found, np.zeros(0, np.int64)]).astype(np.int32)


def vectors(book: Integer[np.ndarray, "V 4"], use: Integer[np.ndarray, " V"], size: int) -> F32[np.ndarray, "V D"]:
    """What an encoder is to find: the entries' quarters in ``size`` main directions, by how often each is used; at most 8 by root mean
    square."""
    one = np.eye(len(SYMBOLS) + 1)[book].reshape(len(book), -1)
    share = use[:, None] / use.sum()
    centred = one - (one * share).sum(axis=0)
    _, directions = np.linalg.eigh(centred.T @ (centred * share))
    found = centred @ directions[:, ::-1][:, :size]
    return (found * (8.0 / np.sqrt((np.square(found) * share).sum(axis=0)).max())).astype(np.float32)
