"""A client's long text -> its normal form, while the event loop serves others."""

import asyncio

from qwen3_jax.text.nfc import AROUND, nfc, slices

SHRINKS = 4  # NFC makes one character of so many at most


async def normal_form(text: str, most: int) -> str:
    """The text in NFC. Its length is looked at first; then the loop goes round after each slice.

    Args:
        most: characters that the text may have in NFC, after trimming; only what cannot come down to that is refused here.

    Raises:
        ValueError: too long, or too many combining marks in a row.
    """
    check_length(text, most)
    done = []
    for piece in slices(text):
        done.append(nfc(piece))
        await asyncio.sleep(0)
    return "".join(done)


def check_length(text: str, most: int) -> None:
    """Raises ValueError if the text cannot come down to ``most`` characters by trimming and NFC."""
    characters = len(text.strip(AROUND))
    if characters > SHRINKS * most:
        raise too_long(characters, most)


def too_long(characters: int, most: int) -> ValueError:
    """What is told of a text that is too long, or empty."""
    return ValueError(f"text of {characters} characters: must be 1 to {most} after trimming")
