"""Words, marks and pauses one after another -> the text that is read: one mark at most between two words, of letters and ,.;:!?'- only.

A mark waits for the word after it, which may decide what it is; at the end of the text it is written as it is.
"""

from qwen3_jax.text.spoken import abbreviations
from qwen3_jax.text.spoken.pause import LONGEST, LONGEST_IN_ALL, Pause

_RANKS = {"": 0, "maybe": 1, "aside": 2, ",": 3, ":": 4, ";": 5, "more": 6, ".": 7, "!": 8, "?": 9}
_OPEN = frozenset(("", "maybe", "aside", "more"))  # no mark that was written
_ENDS = frozenset(".!?")


class SentenceWriter:
    """The writer of one text."""

    def __init__(self) -> None:
        self._out: list[str | Pause] = []
        self._mark = self._sign = ""
        self._block = False
        self._pause = self._paused = 0.0
        self._tokens = ("", "")  # the last two words, the first with the mark after it
        self._written = False  # the text since the last pause has a word
        self._begins = True  # the next word is the first of a sentence
        self.spoken = False  # there was a word at all

    def take(self) -> list[str | Pause]:
        """What has been written since the last call."""
        out, self._out = self._out, []
        return out

    def word(self, word: str, *, capital: bool) -> None:
        """A word; ``capital``: it was not written with a small letter, so it gets a capital at the head of a sentence."""
        if self._block and self._written and self._mark in _OPEN:
            self._mark = "."
        elif self._mark == "maybe":
            self._mark = "." if word in abbreviations.STARTERS and capital else ""
        elif self._mark == "aside":
            self._mark = ","
        elif self._mark == "more":
            self._mark = "." if word[0].isupper() and word.partition("'")[0] != "I" else ","
        large = word[0].upper() + word[1:] if capital else word
        if self._pause:
            self._write_pause()
        elif self._written:
            self._check(large if self._mark in _ENDS else word)
            self._write(f"{self._mark} ")
        if self._mark in _ENDS:
            self._begins = True
        elif self._sign and self._written:
            self._write(f"{self._sign} ")
        word = large if self._begins else word
        self._write(word)
        *head, last = (self._tokens[1] + self._mark, *word.split(" "))
        self._tokens = (head[-1], last)
        self._mark = self._sign = ""
        self._begins = self._block = False
        self._written = self.spoken = True

    def mark(self, mark: str) -> None:
        """One of , : ; . ! ? or "maybe" (an abbreviation's full stop), "aside" (a dash, a bracket), "more" (dots)."""
        if self._block and mark not in _ENDS:
            return
        if _RANKS[mark] > _RANKS[self._mark] and self._written:
            self._mark = mark
        if mark != "maybe":
            self._sign = ""

    def sign(self, word: str) -> None:
        """A sign between two words, and no word by itself. Two of them are an ornament."""
        self._sign = "" if self._sign else word

    def block(self) -> None:
        """A heading, an item or a paragraph ends."""
        self._block, self._sign = True, ""

    def pause(self, seconds: float) -> None:
        """Silence before the next word."""
        room = min(LONGEST - self._pause, LONGEST_IN_ALL - self._paused)
        taken = max(0.0, min(seconds, room))
        self._pause, self._paused, self._sign = self._pause + taken, self._paused + taken, ""

    def finish(self) -> None:
        """No more comes."""
        if self._pause:
            self._write_pause()
        else:
            self._write_last()

    def _write_pause(self) -> None:
        self._write_last()
        self._out.append(Pause(self._pause))
        self._pause, self._written = 0.0, False

    def _write_last(self) -> None:
        """The mark before a pause or the end."""
        self._mark = {"maybe": ".", "more": ".", "aside": ""}.get(self._mark, self._mark)
        self._check("")
        if self._mark:
            self._write(self._mark)

    def _check(self, following: str) -> None:
        """Leave a mark out that would make an abbreviation of the word before it: what is read once, stays."""
        before, word = self._tokens
        known = bool(self._mark) and abbreviations.known_dotted(word.lower())
        if known and abbreviations.expand(word + self._mark, before, following) is not None:
            self._mark = ""

    def _write(self, text: str) -> None:
        self._out.append(text)
