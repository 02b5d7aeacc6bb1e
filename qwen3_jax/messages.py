"""Values for people: cut to a length, and with nothing in them that a terminal would obey."""

import difflib
import unicodedata
from collections.abc import Collection, Mapping

SHOWN = 80  # characters of a value that a message repeats


def shorten(text: str, most: int = SHOWN) -> str:
    """The text; of a longer one its first ``most`` characters, three dots and its length."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def printable(text: str, kept: str = "") -> str:
    """The text with everything escaped that a terminal, or a log, would take for more than letters (ESC: ``\\x1b``), but for ``kept``."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in kept else one.encode("unicode_escape").decode() for one in text)


def is_control(character: str) -> bool:
    """Whether it is a control character, a separator of lines or paragraphs, or half of a surrogate pair: nothing that people write."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def nearest(name: str, known: Collection[str], other_names: Mapping[str, str] | None = None) -> str:
    """A hint for a name that is not known: ``; did you mean NAME?``, or nothing if none is like it.

    Args:
        name: as it was given.
        known: those that there are.
        other_names: what elsewhere has that name -> its name here.
    """
    meant = (other_names or {}).get(name) or next(iter(difflib.get_close_matches(name, known, 1)), None)
    return f"; did you mean {meant}?" if meant else ""
