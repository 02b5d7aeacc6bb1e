"""A text as it is written, and its parts as they are read ("$12" as "twelve dollars") -> which written word each spoken word belongs to.

Both run in the same order. Words that are spelled alike in both are anchors (difflib); the words between two anchors are shared out by
length.
"""

import re
from difflib import SequenceMatcher
from typing import NamedTuple

_WORD = re.compile(  # characters of scripts without spaces (kana, Han, half-width kana) are words of their own, with the marks that follow
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
    r"[^\w\s]*"
    r"|(?:(?![\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff])\S)+"
)
AHEAD = 12  # written words looked at beyond as many as are spoken
_LONG = 6  # letters that a digit or a sign stands for when it is read


class WrittenWord(NamedTuple):
    """A word with its marks, from ``start`` to ``end`` of the text."""

    text: str
    start: int
    end: int


class WrittenWords:
    """The words of a text that comes in pieces, and how far its parts have been spoken."""

    def __init__(self) -> None:
        self.text = ""
        self.words: list[WrittenWord] = []
        self.given = 0  # words that belong to parts that were added

    def write(self, text: str) -> None:
        """More text: the last word may go on with it."""
        start = self.words[-1].start if self.words else 0
        if self.words and len(self.words) > self.given:
            self.words.pop()
        else:
            start = self.words[-1].end if self.words else 0
        self.text += text
        self.words += [WrittenWord(found[0], found.start(), found.end()) for found in _WORD.finditer(self.text, start)]

    def settled(self) -> list[WrittenWord]:
        """Words after the last part that no further text can change."""
        words = self.words[self.given :]
        return words[:-1] if words and words[-1].end == len(self.text) else words

    def add_part(self, spoken: list[str], *, last: bool) -> list[int]:
        """A part is complete: it is read as these words. ``last``: no part follows, so all that is left belongs to it.

        Returns the index of the written word of each spoken one.
        """
        rest = self.words[self.given : None if last else self.given + len(spoken) + AHEAD]
        keys, theirs = [key(word.text) for word in rest], [key(word) for word in spoken]
        blocks = [(0, 0, 0)]
        blocks += [tuple(block) for block in SequenceMatcher(None, keys, theirs, autojunk=False).get_matching_blocks()[:-1]]
        of: list[int] = []
        for (before, said, size), (at, at_said, _) in zip(blocks, [*blocks[1:], (-1, len(spoken), 0)], strict=True):
            of += range(before, before + size)
            gap = [weight(word) for word in spoken[said + size : at_said]]
            end = at if at >= 0 else len(rest) if last else _reach(rest, before + size, sum(gap))
            of += _shared(gap, rest, before + size, end)
        of = [min(one, len(rest) - 1) for one in of] if rest else []
        taken = len(rest) if last else (of[-1] + 1 if of else 0)
        first, self.given = self.given, self.given + taken
        return [first + one for one in of]


def key(word: str) -> str:
    """What is equal in a written and a spoken word: letters and digits, in small letters."""
    return "".join(character for character in word.casefold() if character.isalnum()) or word


def weight(word: str) -> float:
    """How long a word takes to say, in letters; a mark none."""
    letters = sum(character.isalpha() for character in word)
    return letters + _LONG * sum(character.isnumeric() or character in "$€£¥%&@+=#°" for character in word)


def _reach(words: list[WrittenWord], start: int, length: float) -> int:
    """Where the written words end that take about so long to say."""
    end, said = start, 0.0
    while end < len(words) and (more := weight(words[end].text)) / 2 <= length - said:
        if length == said and more:
            break
        said += more
        end += 1
    return max(end, min(start + 1, len(words))) if length else start


def _shared(gap: list[float], words: list[WrittenWord], start: int, end: int) -> list[int]:
    """The written word, from ``start`` to ``end``, of each spoken word in between, by where their middles lie."""
    if not gap:
        return []
    if end <= start:
        return [max(0, start - 1)] * len(gap)
    ends, reached = [], 0.0
    for word in words[start:end]:
        reached += weight(word.text)
        ends.append(reached)
    whole, said, of = sum(gap) or 1.0, 0.0, []
    for one in gap:
        middle = (said + one / 2) / whole * (reached or 1.0)
        of.append(start + next((number for number, last in enumerate(ends) if middle <= last), end - start - 1))
        said += one
    return of
