"""What speaking gives: a finished utterance (pcm float32 [F] and its frames [N 16]), or pieces of pcm [F] while they are made."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen3_jax import audio
from qwen3_jax.session import Session
from qwen3_jax.shapes import NpF32, NpInt


@dataclass(frozen=True, eq=False)
class Speech:
    """A finished utterance.

    Attributes:
        pcm: float32 [samples], mono, in [-1, 1].
        sample_rate: Hz.
        frames: int32 [N 16], the codes; 1920 samples each.
        finish_reason: ``eos`` (it ended by itself), ``length`` (it met ``max_frames``) or ``cancelled``.
        seed: what it was drawn with; the same request with it gives the same audio.
    """

    pcm: NpF32["F"]
    sample_rate: int
    frames: NpInt["N K"]
    finish_reason: str
    seed: int

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        return len(self.pcm) / self.sample_rate

    def save(self, path: str | Path) -> None:
        """Write a 16-bit WAV file."""
        audio.write_wav(path, self.pcm, self.sample_rate)


class SpeechStream(Iterator[NpF32["F"]]):
    """Pieces of pcm (float32, mono, 24 kHz) as they are made. Iterate in one thread; ``cancel`` from any.

    Use it as a context manager, or iterate to the end, or cancel: nothing runs between two calls of ``next``.

    Raises (from ``next``):
        FloatingPointError: what the model computed is NaN or infinite; ``finish_reason`` is ``error`` then.
    """

    def __init__(self, session: Session, seed: int, first_chunk: int, chunk: int, sample_rate: int) -> None:
        self._session = session
        self._next, self._chunk = first_chunk, chunk
        self._cancelled = threading.Event()
        self._codes: list[NpInt["N K"]] = []
        self.sample_rate = sample_rate
        self.seed = seed
        self.finish_reason: str | None = None

    def __next__(self) -> NpF32["F"]:
        while self.finish_reason is None:
            if self._cancelled.is_set():
                self.finish_reason = "cancelled"
                break
            try:
                piece = self._session.step(self._next)[0]
            except FloatingPointError:
                self.finish_reason = "error"
                raise
            self._next = self._chunk
            self.finish_reason = self._session.finish_reasons[0]
            if self._cancelled.is_set():
                self.finish_reason = "cancelled"
                break
            if len(piece.pcm):
                self._codes.append(piece.codes)
                return piece.pcm
        raise StopIteration

    @property
    def frames(self) -> NpInt["N K"]:
        """Codes of all that has been handed out."""
        return np.concatenate(self._codes) if self._codes else np.zeros((0, self._session.books), np.int32)

    def cancel(self) -> None:
        """No piece is handed out after this; the chunk being computed is thrown away."""
        self._cancelled.set()

    def __enter__(self) -> "SpeechStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
