"""The three parts of hearing, each behind one small interface; an implementation of one is one file. All hear mono float32 at 16 kHz."""

from typing import Protocol

import msgspec
import numpy as np
from jaxtyping import Float32 as F32  # not by way of shapes.py, which imports JAX: two of the three seconds of a worker's start

RATE = 16_000  # Hz
WINDOW = 512  # samples that voice activity looks at: 32 ms


class HeardWord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A word with its place, in milliseconds."""

    word: str
    start_ms: int
    end_ms: int


class HeardSpeech(msgspec.Struct, frozen=True, kw_only=True):
    """What a recogniser made of speech.

    Args:
        text: empty where there were no words.
        words: None where the recogniser does not know their times, or was not asked.
        language: its name in English.
    """

    text: str
    words: tuple[HeardWord, ...] | None
    language: str


class VoiceActivity(Protocol):
    """Tells speech from all else. One for each client, for it remembers what came before."""

    def feed(self, window: F32[np.ndarray, "512"]) -> float:
        """The next 32 ms -> the probability that they are speech. Takes well below a millisecond: the event loop waits for it."""


class EndOfTurn(Protocol):
    """Tells a turn that is over from a pause for thought. Used in the recogniser's process."""

    def probability(self, pcm: F32[np.ndarray, " F"]) -> float:
        """A turn up to its pause -> the probability that it is over."""


class Recogniser(Protocol):
    """Writes down speech. Used in a process of its own, by one caller at a time."""

    @property
    def languages(self) -> tuple[str, ...]:
        """English names of the languages that it understands."""

    def transcribe(self, pcm: F32[np.ndarray, " F"], language: str, *, words: bool) -> HeardSpeech:
        """At most 30 s of speech -> its words.

        Args:
            language: one of ``languages``; empty: the recogniser finds out.
            words: whether the times of words are wanted; they count from the first sample.
        """
