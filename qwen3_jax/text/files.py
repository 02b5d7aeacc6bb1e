"""Bytes that people wrote, of a file or of stdin -> str: UTF-8, with or without a byte order mark. Others are refused with the fix."""

import codecs
from pathlib import Path

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read(path: Path) -> str:
    """The content of a file. Raises ValueError as ``decode``, or OSError."""
    return decode(path.read_bytes(), str(path))


def decode(data: bytes, what: str) -> str:
    """The text.

    Args:
        what: where the bytes come from, for the error.

    Raises:
        ValueError: they are UTF-16, Latin-1 or anything else but UTF-8.
    """
    if data.startswith(_UTF16) or b"\0" in data:
        raise ValueError(f"{what} is not UTF-8: it looks like UTF-16; save it as UTF-8, or convert it: iconv -f UTF-16 -t UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte, place = data[error.start], error.start
        raise ValueError(
            f"{what} is not UTF-8: byte 0x{byte:02x} at {place} is no part of it; save it as UTF-8, or, if it is Latin-1, convert it: "
            "iconv -f LATIN1 -t UTF-8"
        ) from error
