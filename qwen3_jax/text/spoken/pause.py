"""SSML's ``<break>`` -> seconds of silence."""

import re

import msgspec

LONGEST, LONGEST_IN_ALL = 5.0, 10.0  # seconds: of one pause, of all pauses of a text
_STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.25, "medium": 0.5, "strong": 1.0, "x-strong": 1.5}
_TIME = re.compile(r"""\btime\s*=\s*["']?\s*\+?(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})\s*(ms|s)\b""", re.IGNORECASE)
_STRENGTH = re.compile(r"""\bstrength\s*=\s*["']?\s*([a-z-]{1,8})""", re.IGNORECASE)


class Pause(msgspec.Struct, frozen=True):
    """Silence between two texts: at most `LONGEST` seconds, and `LONGEST_IN_ALL` in all pauses of a text. More than that is cut."""

    seconds: float


def seconds(tag: str) -> float:
    """What a ``<break>`` tag asks for, at most `LONGEST`. A time or strength that cannot be read counts as medium, as none at all."""
    if time := _TIME.search(tag):
        return min(float(time[1]) / (1000 if time[2].lower() == "ms" else 1), LONGEST)
    strength = _STRENGTH.search(tag)
    return _STRENGTHS.get(strength[1].lower() if strength else "medium", _STRENGTHS["medium"])
