"""Frames that are a little wrong, as a model's own are, and what is right after them.

Taught with true frames only, a predictor that has drawn one wrong code has never seen what to do about it: with the true past and the
true book 0 its own books 1..15 lost more words (WER .94) than what the talker's linear guess says, quantised (.81). So some frames are
told it with the first books of a vector nearby, and from there on the label is what leads back to the true one: the entry nearest to what
is left of it. The talker is told such frames as well. (After DAgger, arXiv 1011.0686, without its expert: nearest entries are the expert.)

Of a reference's frames it is told what an encoder may take for book 0, which cannot hear what comes next.
"""

import numpy as np

from qwen3_jax.shapes import F32, I32, Float, Integer
from training.latents import phonemes
from training.latents.quantiser import Latents, nearest

_FIRST = 2  # the first book of the components; the one before is the pitch's
_UNSURE = (0.3, 0.015, 0.8)  # deviation of whitened component 0, how it grows by component, and its highest
_DEAF = 0.7  # share of a reference's frames
_DULL = 0.25  # of a component, at most, that is lost with it: what is guessed is nearer to the mean


class CodeCorruption:
    """Wrong turns among the books of the main components."""

    def __init__(self, latents: Latents) -> None:
        size = latents.components
        self._books = [_own_columns(book) for book in latents.acoustic[_FIRST - 1 :, :, :size]]
        self._spread = latents.spread[:size]
        self._plan = latents.plan
        start, growth, most = _UNSURE
        self._unsure = self._spread * np.minimum(start + growth * np.arange(size), most)

    def frames(self, codes: I32[np.ndarray, "N K"], latent: F32[np.ndarray, "N C"], noise: np.random.Generator) -> I32[np.ndarray, "N K"]:
        """The same frames with other books of the components; ``latent``: the true components, whitened."""
        found = codes.copy()
        rest = self._near(latent, noise)
        for number, (own, book) in enumerate(self._books, _FIRST):
            found[:, number] = nearest(rest[:, own], book)
            rest[:, own] -= book[found[:, number]]
        return found

    def books(
        self, codes: I32[np.ndarray, "N K"], latent: F32[np.ndarray, "N C"], noise: np.random.Generator
    ) -> tuple[I32[np.ndarray, "N K"], I32[np.ndarray, "N K"]]:
        """Half of the frames go wrong before some book.

        Returns:
            What the predictor is told, and labels: -1 where it went wrong, and what leads back from there.
        """
        count, length = codes.shape
        wrong = self.frames(codes, latent, noise)
        turn = np.where(noise.random(count) < 0.5, _FIRST, noise.integers(_FIRST + 1, length, count))  # the first right book
        told, labels = codes.copy(), codes.copy()
        rest = latent * self._spread
        for number, (own, book) in enumerate(self._books, _FIRST):
            off = number < turn
            told[:, number] = np.where(off, wrong[:, number], nearest(rest[:, own], book))
            labels[:, number] = np.where(off, -1, told[:, number])
            rest[:, own] -= book[told[:, number]]
        return told, labels

    def heard(self, said: Integer[np.ndarray, "N 4"], codes: I32[np.ndarray, " N"], noise: np.random.Generator) -> I32[np.ndarray, " N"]:
        """Book 0 of a reference: most frames as if they went on as they end; ``said``: their quarters, ``codes``: the right ones."""
        going_on = phonemes.codes(np.repeat(said[:, -1:], said.shape[1], axis=1), self._plan)
        return np.where(noise.random(len(codes)) < _DEAF, going_on, codes)

    def _near(self, latent: F32[np.ndarray, "N C"], noise: np.random.Generator) -> Float[np.ndarray, "N C"]:
        far = noise.random((len(latent), 1), np.float32)
        error = noise.standard_normal(latent.shape, np.float32) * self._unsure
        return (1 - _DULL * far) * latent * self._spread + far * error


def _own_columns(book: F32[np.ndarray, "V C"]) -> tuple[Integer[np.ndarray, " D"], F32[np.ndarray, "V D"]]:
    """Components that the book says something of, and what: a product book is silent of most."""
    own = np.flatnonzero(book.any(axis=0))
    return own, np.ascontiguousarray(book[:, own])
