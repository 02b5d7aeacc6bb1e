"""Dates and times of the day in digits -> words: 3/4/2026 -> "March fourth, twenty twenty-six" (American order), 5pm -> "five pee em"."""

import re

from qwen3_jax.text.spoken.numbers import cardinal, ordinal, year

MAYBE = "\x01"  # a full stop that may belong to an abbreviation only; no text has this character
START = r"(?<![^\W_])(?<![^\W_][.,:])"  # of a number: not inside of a word or another number
END = r"(?![^\W_])(?![.,]\d)"
MONTHS = tuple("January February March April May June July August September October November December".split())
_MONTH = f"({'|'.join(MONTHS)})"
_NTH = "(?:st|nd|rd|th)?"
_HALF = r" ?([AaPp])\.?[Mm](?![^\W_])(\.?)"

_ISO = re.compile(rf"{START}(\d{{4}})-(\d\d?)-(\d\d?)(?:T(\d\d):(\d\d)(?::\d\d(?:\.\d{{1,9}})?)?(?:Z|[+-]\d\d:?\d\d)?)?{END}(?!-)")
_NUMERIC = re.compile(rf"{START}(\d\d?)([/.-])(\d\d?)\2(\d{{4}}|\d\d){END}(?![/-]\d)")
_MONTH_DAY = re.compile(rf"\b{_MONTH} (\d\d?){_NTH}(?: ?[-–—] ?(\d\d?){_NTH})?(?:,? (\d{{4}}))?{END}(?![:/%])")
_DAYS = re.compile(rf"\b({_MONTH} \d\d?{_NTH}) ?[-–—] ?(?={_MONTH} \d)")
_DAY_MONTH = re.compile(rf"(\b[Tt]he )?{START}(\d\d?){_NTH} (?:of )?{_MONTH}(?:,? (\d{{4}}))?{END}")
_TIMES = re.compile(rf"{START}(\d\d?(?::\d\d)?(?: ?[AaPp]\.?[Mm]\.?)?) ?[-–—] ?(?=\d\d?(?::\d\d|(?: ?[AaPp]\.?[Mm](?![^\W_]))))")
_CLOCK = re.compile(rf"{START}(\d\d?):(\d\d)(?::(\d\d))?(?:{_HALF}|{END})(?!:\d)")
_DOTTED_CLOCK = re.compile(rf"{START}(\d\d?)\.(\d\d){_HALF}")
_HOUR = re.compile(rf"{START}(\d\d?){_HALF}")


def read(text: str, before: str) -> str:
    """All dates and times of a text; ``before``: the word before it."""
    text = _ISO.sub(_iso, text)
    text = _NUMERIC.sub(_numeric, text)
    text = _DAY_MONTH.sub(lambda found: _day_month(found, the=found.start() > 0 or before.lower() != "the"), text)
    text = _DAYS.sub(r"\1 to ", text)
    text = _MONTH_DAY.sub(_month_day, text)
    text = _TIMES.sub(r"\1 to ", text)
    text = _CLOCK.sub(_clock, text)
    text = _DOTTED_CLOCK.sub(lambda found: _time(found, int(found[1]), int(found[2]), found[3], found[4]), text)
    return _HOUR.sub(lambda found: _time(found, int(found[1]), 0, found[2], found[3]), text)


def _date(month: int, day: int, in_year: int | None) -> str:
    return f" {MONTHS[month - 1]} {ordinal(day)}" + ("" if in_year is None else f", {year(in_year)}")


def _possible(month: int, day: int, in_year: int | None = None) -> bool:
    return 1 <= month <= 12 and 1 <= day <= 31 and (in_year is None or 1000 <= in_year <= 2999)


def _iso(found: re.Match[str]) -> str:
    in_year, month, day = (int(found[part]) for part in (1, 2, 3))
    if not _possible(month, day, in_year):
        return found[0]
    time = _spoken_time(int(found[4]), int(found[5]), half=False) if found[4] else None
    return _date(month, day, in_year) + (f", {time}" if time else "")


def _numeric(found: re.Match[str]) -> str:
    first, second, in_year = (int(found[part]) for part in (1, 3, 4))
    if len(found[4]) == 2:
        if found[2] == ".":
            return found[0]  # a version
        in_year += 2000 if in_year < 70 else 1900
    month, day = (second, first) if first > 12 or found[2] == "." else (first, second)
    return _date(month, day, in_year) if _possible(month, day, in_year) else found[0]


def _month_day(found: re.Match[str]) -> str:
    month, days = MONTHS.index(found[1]) + 1, [int(found[part]) for part in (2, 3) if found[part]]
    in_year = int(found[4]) if found[4] else None
    if not all(_possible(month, day, in_year) for day in days):
        return found[0]
    last = f" to {ordinal(days[1])}" if len(days) > 1 else ""
    return _date(month, days[0], None) + last + ("" if in_year is None else f", {year(in_year)}")


def _day_month(found: re.Match[str], *, the: bool) -> str:
    day, in_year = int(found[2]), int(found[4]) if found[4] else None
    if not _possible(1, day, in_year):
        return found[0]
    article = found[1] or ("the " if the else "")
    return f"{article}{ordinal(day)} of {found[3]}" + ("" if in_year is None else f", {year(in_year)}")


def _spoken_time(hour: int, minute: int, *, half: bool) -> str | None:
    """``half``: "a.m." or "p.m." follows. None: no time of the day."""
    if hour > 24 or minute > 59:
        return None
    if minute:
        return f"{cardinal(hour)} " + (f"oh {cardinal(minute)}" if minute < 10 else cardinal(minute))
    return cardinal(hour) if half else f"{cardinal(hour)} " + ("o'clock" if 1 <= hour <= 12 else "hundred")


def _clock(found: re.Match[str]) -> str:
    if found[3] and int(found[3]) > 59:
        return found[0]
    return _time(found, int(found[1]), int(found[2]), found[4], found[5], int(found[3]) if found[3] else None)


def _time(found: re.Match[str], hour: int, minute: int, half: str | None, dot: str | None, second: int | None = None) -> str:
    words = _spoken_time(hour, minute, half=half is not None or second is not None)
    if words is None or (half is not None and hour > 12):
        return found[0]
    if second is not None:
        words += f" {cardinal(second)}" if minute or second else ""
    if half is not None:
        words += f" {'ay' if half in 'aA' else 'pee'} em{MAYBE if dot else ''}"
    return words
