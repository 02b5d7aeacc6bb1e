"""Values for messages and logs: cut to a length, and without what would move a terminal's cursor."""

SHOWN = 80  # characters of a value that a message repeats


def shorten(text: str, most: int = SHOWN) -> str:
    """The text; of a longer one its first ``most`` characters, three dots and its length."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def printable(text: str, kept: str = "") -> str:
    """The text with control characters, line breaks and lone surrogates escaped (ESC: ``\\x1b``), but for those of ``kept``."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in kept else one.encode("unicode_escape").decode() for one in text)
