"""Text, whole or as it is written -> the parts that are spoken one after the other: as words (spoken/) or as it stands, cut by split.py."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from qwen3_jax.text.nfc import nfc, normalise, settle
from qwen3_jax.text.scripts import check_letters
from qwen3_jax.text.split import FED, Splitter
from qwen3_jax.text.spoken import Pause, SpokenWriter, spoken


class Part(NamedTuple):
    """What is spoken as one prompt, and the seconds of silence before it."""

    text: str
    pause: float


class Parts:
    """Parts of one text that comes in pieces.

    Args:
        language: as for ``Splitter``.
        normalize: read numbers, abbreviations, Markdown, SSML and the like as words (English); else the text is spoken as it stands.
    """

    def __init__(self, language: str, *, normalize: bool) -> None:
        self._splitter = Splitter(language)
        self._writer = SpokenWriter() if normalize else None
        self._held = ""  # without a writer: what the next piece may still compose with
        self.pause = 0.0  # seconds before the open part

    @property
    def rest(self) -> str:
        """Of the text, the part that is not complete."""
        return self._splitter.rest

    def feed(self, text: str) -> list[Part]:
        """More text. Returns the parts that are complete now.

        Raises:
            ValueError: text that cannot be spoken.
        """
        if self._writer is not None:
            return self._split(self._writer.feed(text))
        done, self._held = settle(self._held, text)
        return self._split([done])

    def finish(self) -> list[Part]:
        """No more comes. Returns the last parts; a pause after them is no part. Errors as in ``feed``, or there is nothing to say."""
        last = self._split([nfc(self._held)] if self._writer is None else self._writer.finish())
        return last + self._paused(self._splitter.finish())

    def _split(self, pieces: list[str | Pause]) -> list[Part]:
        parts: list[Part] = []
        for piece in pieces:
            if isinstance(piece, Pause):
                parts += self._paused(self._splitter.finish())
                self.pause += piece.seconds
            else:
                parts += self._paused(self._splitter.feed(piece))
        return parts

    def _paused(self, texts: list[str]) -> list[Part]:
        parts = []
        for text in texts:
            parts.append(Part(text, self.pause))
            self.pause = 0.0
        return parts


def parts_of(text: str, language: str, *, normalize: bool, languages: Collection[str] = ()) -> Iterator[Part]:
    """The parts of a whole text, each after a few ms of work.

    Args:
        languages: of the model; empty: nobody says.

    Raises:
        ValueError: there is nothing to say, text that cannot be spoken, or one that is written in none of the languages (`scripts`).
    """
    clean, parts = normalise(text), Parts(language, normalize=normalize)
    check_letters(clean, languages)
    for start in range(0, len(clean), FED):
        yield from parts.feed(clean[start : start + FED])
    yield from parts.finish()


def whole(text: str, *, normalize: bool, languages: Collection[str] = ()) -> str:
    """A text that is to be one prompt. Errors as in ``parts_of``."""
    check_letters(text, languages)
    return " ".join(piece for piece in spoken(text) if isinstance(piece, str)) if normalize else text
