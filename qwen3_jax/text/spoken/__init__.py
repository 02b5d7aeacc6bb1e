"""Text as people write it -> the words that are read aloud, for voices that know words only.

    spoken("It costs **$12**.")                                  # ["It costs twelve dollars."]
    spoken('<speak>Hello <break time="500ms"/> world')           # ["Hello", Pause(seconds=0.5), "world"]
    writer = SpokenWriter()
    writer.feed("It costs $1") + writer.feed("2.") + writer.finish()     # pieces of the same

Characters (characters.py) -> Markdown and SSML off (markup.py) -> tokens and runs of them (words.py), read by dates.py, codes.py,
quantities.py, abbreviations.py, addresses.py and letters.py -> words and marks (sentence.py). English, American where usage differs.
What comes out has letters, spaces and ,.;:!?'- only, and is left alone if it is given again.
"""

from qwen3_jax.text.spoken.characters import clean
from qwen3_jax.text.spoken.markup import Markup
from qwen3_jax.text.spoken.pause import LONGEST, LONGEST_IN_ALL, Pause
from qwen3_jax.text.spoken.sentence import SentenceWriter
from qwen3_jax.text.spoken.words import Words

__all__ = ["LONGEST", "LONGEST_IN_ALL", "Pause", "SpokenWriter", "spoken"]

SLICE = 4096  # characters


def spoken(text: str) -> list[str | Pause]:
    """The words of a text, and the pauses that its ``<break>`` tags ask for. No two strings are neighbours.

    Raises:
        ValueError: no word in it, or a lone surrogate.
    """
    writer = SpokenWriter()
    return joined(writer.feed(text) + writer.finish())


class SpokenWriter:
    """``spoken`` of a text that comes in pieces: the strings of all results, joined where they are neighbours, are those of the whole.

    Held back: the last word; a run of words that decide about each other (12 words or 200 characters at most: "March 4, 2026,"); a tag, an
    entity or a link's target that has begun (600 characters at most); the mark after the last word.
    """

    def __init__(self) -> None:
        self._markup = Markup()
        self._sentence = SentenceWriter()
        self._words = Words(self._sentence)

    def feed(self, text: str) -> list[str | Pause]:
        """More text.

        Raises:
            ValueError: a lone surrogate.
        """
        out: list[str | Pause] = []
        for start in range(0, len(text), SLICE):  # no rule ever looks at more at once, so the work is linear
            self._take(clean(text[start : start + SLICE]), final=False)
            out += self._sentence.take()
        return joined(out)

    def finish(self) -> list[str | Pause]:
        """No more text comes.

        Raises:
            ValueError: there was no word in it.
        """
        self._take("", final=True)
        self._words.end()
        if not self._sentence.spoken:
            raise ValueError("nothing to say: the text has no word, only marks, signs or tags; give at least one word or number")
        self._sentence.finish()
        return joined(self._sentence.take())

    def _take(self, text: str, *, final: bool) -> None:
        for piece in self._markup.feed(text, final=final):
            if isinstance(piece, Pause):
                self._words.end()
                self._sentence.pause(piece.seconds)
            else:
                self._words.feed(piece)


def joined(pieces: list[str | Pause]) -> list[str | Pause]:
    """Neighbouring strings as one."""
    out: list[str | Pause] = []
    start = 0
    while start < len(pieces):
        end = start
        while end < len(pieces) and isinstance(pieces[end], str):
            end += 1
        if end > start:
            out.append("".join(piece for piece in pieces[start:end] if isinstance(piece, str)))
        out += pieces[end : end + 1]
        start = end + 1
    return out
