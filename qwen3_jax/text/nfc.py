"""Text -> NFC, whole or in pieces, in time that grows with its length and no faster.

CPython sorts the combining marks after a letter by insertion: one run of n marks in the wrong order costs n^2 steps. Unicode's stream-safe
text format (UAX #15, section 13) has at most 30 of them in a row, and no language needs more than a handful, so a longer run is refused.
What is left is normalised slice by slice, each of which is short work.
"""

import re
import unicodedata
from collections.abc import Iterator

from qwen3_jax.messages import shorten

MARKS = 30  # in a row: UAX #15's limit
SLICE = 2048  # characters that are normalised at a time
CLOSED = frozenset(" \t\r\n.,;:!?")  # no mark composes with these
_MARK = "\u0301"
_SURROGATE = re.compile("[\ud800-\udfff]")
AROUND = "".join(character for character in map(chr, range(0x3001)) if character.isspace()) + "\ufeff"  # white space, byte order marks
_LONG_RUN = re.compile(rb"[^\0]{%d}" % (MARKS + 1))  # in the combining classes of a text's characters


def _joining_starters() -> str:
    """Characters of class 0 that act on what precedes them all the same, as a regular expression's set.

    They compose with it (vowels and final consonants of Hangul, some vowel signs of India), or stand for marks (vowel signs of Tibet).
    """
    found = {*map(chr, range(0x1161, 0x1176)), *map(chr, range(0x11A8, 0x11C3))}
    for code in (*range(0x900, 0x1C00), *range(0x11000, 0x12000)):
        match unicodedata.decomposition(chr(code)).split():
            case [first, second] if not first.startswith("<"):
                found.add(chr(int(second, 16)))
                if unicodedata.combining(chr(int(first, 16))):
                    found.add(chr(code))
    return "".join(sorted(one for one in found if not unicodedata.combining(one)))


_JOINING_STARTER = re.compile(f"[{_joining_starters()}]")


def normalise(text: str) -> str:
    """NFC, trimmed, without a byte order mark.

    Raises:
        ValueError: it is no string, it has half of a surrogate pair, nothing is left of it, or too many combining marks follow each other.
    """
    if not isinstance(text, str):
        raise ValueError(f"text of type {type(text).__name__}: must be a string")
    if half := _SURROGATE.search(text):
        raise ValueError(f"the text contains U+{ord(half[0]):04X}, half of a surrogate pair, which is no character: decode it as UTF-8")
    clean = nfc(text).strip(AROUND)
    if not clean:
        raise ValueError(f"the text {shorten(text)!r} is empty: give at least one character that is spoken")
    return clean


def nfc(text: str) -> str:
    """NFC.

    Raises:
        ValueError: more than ``MARKS`` combining marks in a row.
    """
    return text if text.isascii() else "".join(map(_slice_nfc, slices(text)))


def slices(text: str) -> Iterator[str]:
    """The text in slices of about ``SLICE`` characters. The NFC of the text is that of its slices, put together.

    Raises:
        ValueError: more than ``MARKS`` combining marks in a row where a slice ends.
    """
    start = 0
    while start < len(text):
        end = start + SLICE
        while end < len(text) and _joins(text[end]):
            end += 1
            if end - start - SLICE > MARKS:
                _check_runs(text[end - MARKS - 1 : end])
        yield text[start:end]
        start = end


def settle(held: str, piece: str) -> tuple[str, str]:
    """A text that comes in pieces -> the part that is settled, in NFC, and what the next piece may still compose with, as it came.

    Args:
        held: what was held back of the pieces before, at most ``MARKS`` + 1 characters; empty at first. At the end of the text,
            ``nfc(held)`` is the rest.
        piece: the next one.

    Raises:
        ValueError: more than ``MARKS`` combining marks in a row, in whichever pieces.
    """
    text = held + piece
    _check_runs(text)
    if not text or text[-1] in CLOSED:
        return nfc(text), ""
    end = len(text) - 1
    while end and _joins(text[end]):
        end -= 1
    return nfc(text[:end]), text[end:]


def _slice_nfc(text: str) -> str:
    _check_runs(text)
    return unicodedata.normalize("NFC", text)


def _check_runs(text: str) -> None:
    if text.isascii():
        return
    if _JOINING_STARTER.search(text):
        text = _JOINING_STARTER.sub(_MARK, text)
    if _LONG_RUN.search(bytes(map(unicodedata.combining, text))):
        raise ValueError(f"the text has more than {MARKS} combining marks in a row, the limit of Unicode's stream-safe text: remove some")


def _joins(character: str) -> bool:
    """Whether it may compose with what precedes it."""
    return character > "\u02ff" and (unicodedata.combining(character) > 0 or _JOINING_STARTER.match(character) is not None)
