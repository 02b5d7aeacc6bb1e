"""Text, whole or as it is written -> parts to be spoken one after the other; and how much of a text is settled for the tokenizer.

A part ends with the first sentence that makes it LEAST characters long (a short text is one part), and at a comma, a space or anywhere
if MOST are reached without one. Where a part ends depends on the text up to there and one character more: so a text makes the same
parts whether it comes at once or letter by letter.
"""

import unicodedata

import sentencex

from qwen3_jax.text.languages import NAMES, language_name

LEAST, MOST = 80, 240  # characters; at 240 about 16 s of English
FED = 1024  # characters that a Splitter looks at together: for each part, what is left of them is copied
_ENDS, _CLOSERS, _CLAUSES = ".!?…。！？", "\"'”’»)]）」』】", ",;:、，；："
_UNSPACED = "。！？、，；："  # no space follows these


class Splitter:
    """Parts of one text that comes in pieces.

    Args:
        language: as ``Qwen3TTS`` takes it; sentences of unknown ones, and of auto, are split as English ones.
    """

    def __init__(self, language: str) -> None:
        self._code = NAMES.get(language_name(language), NAMES["english"])[0]
        self._looked = 0  # no part ends before this character of `rest`
        self.rest = ""  # of the text, the part that is not complete

    def feed(self, text: str) -> list[str]:
        """More text. Returns the parts that are complete now, without spaces around them."""
        parts = []
        for start in range(0, len(text), FED):
            self.rest += text[start : start + FED] if self.rest else text[start : start + FED].lstrip()
            while (end := self._end()) is not None:
                parts.append(self.rest[:end].strip())
                self.rest, self._looked = self.rest[end:].lstrip(), 0
        return parts

    def finish(self) -> list[str]:
        """No more comes. Returns the last part, if there is one."""
        last, self.rest, self._looked = self.rest.strip(), "", 0
        return [last] if last else []

    def _end(self) -> int | None:
        for at in range(max(self._looked, LEAST), min(len(self.rest), MOST + 1)):
            if self._sentence_ends(at):
                return at
        self._looked = min(len(self.rest), MOST)  # the character at its end has not been seen yet
        return self._clause() if len(self.rest) > MOST else None

    def _sentence_ends(self, at: int) -> bool:
        head, following = self.rest[:at], self.rest[at]
        if following == "\n":
            return True
        mark = head.rstrip(_CLOSERS)[-1:]
        if not mark or mark not in _ENDS or following in _ENDS + _CLOSERS or not (following.isspace() or mark in _UNSPACED):
            return False
        found = list(sentencex.segment(self._code, head + ("" if mark in _UNSPACED else " ") + "Xx"))
        return found[-1].strip() == "Xx"

    def _clause(self) -> int:
        for last in (
            [
                at
                for at in range(LEAST, MOST + 1)
                if self.rest[at - 1] in _CLAUSES and (self.rest[at].isspace() or self.rest[at - 1] in _UNSPACED)
            ],
            [at for at in range(LEAST, MOST + 1) if self.rest[at].isspace()],
        ):
            if last:
                return last[-1]
        return MOST


def split(text: str, language: str) -> list[str]:
    """All parts of a whole text."""
    splitter = Splitter(language)
    return splitter.feed(text) + splitter.finish()


def settled(text: str) -> int:
    """How many characters, from the start, have tokens that no further text can change; 0: none yet.

    They end before a space or a punctuation mark that follows a word. Byte-level BPE merges within its pre-tokens only, and none of the
    published pattern (see tokenizer.py) or of GPT-2's reaches over such a place; nor does NFC compose anything there.
    """
    for at in range(len(text) - 1, 0, -1):
        before, here = text[at - 1], text[at]
        if here == " " and not before.isspace():
            return at
        if before.isalnum() and unicodedata.category(here)[0] == "P":
            return at
    return 0
