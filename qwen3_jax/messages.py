"""Values for error messages, cut to a length."""

SHOWN = 80  # characters of a value that a message repeats


def shorten(text: str, most: int = SHOWN) -> str:
    """The text; of a longer one its first ``most`` characters, three dots and its length."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
