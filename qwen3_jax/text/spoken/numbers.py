"""Digits -> words: cardinals, ordinals, years, decimals, digits one by one. American: no "and" after "hundred"."""

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()  # fmt: skip
_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = ("", "thousand", "million", "billion", "trillion")
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth", "twelve": "twelfth",
}  # fmt: skip
MOST_DIGITS = 15  # longer ones are read digit by digit


def cardinal(value: int) -> str:
    """0 to 10^15 - 1 -> words."""
    if value < 20:
        return _ONES[value]
    if value < 100:
        return _TENS[value // 10] + (f"-{_ONES[value % 10]}" if value % 10 else "")
    if value < 1000:
        return f"{_ONES[value // 100]} hundred" + (f" {cardinal(value % 100)}" if value % 100 else "")
    words = []
    for scale in reversed(range(len(_SCALES))):
        if group := value // 1000**scale % 1000:
            words += [cardinal(group), *([_SCALES[scale]] if scale else [])]
    return " ".join(words)


def ordinal(value: int) -> str:
    """The same, as a rank."""
    head, mark, last = _parted(cardinal(value))
    if last not in _ORDINALS and last.endswith("y"):
        return f"{head}{mark}{last[:-1]}ieth"
    return head + mark + _ORDINALS.get(last, f"{last}th")


def plural(words: str) -> str:
    """ "nineteen ninety" -> "nineteen nineties"."""
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}es" if words.endswith("x") else f"{words}s"


def year(value: int) -> str:
    """1000 to 2099, in pairs but for 1000 to 1009 and 2000 to 2009."""
    if value % 1000 < 10:
        return cardinal(value)
    return pair(value // 100, value % 100)


def pair(head: int, tail: int) -> str:
    """ "nineteen" and "eighty-four", "oh five" or "hundred"."""
    return f"{cardinal(head)} " + ("hundred" if tail == 0 else f"oh {_ONES[tail]}" if tail < 10 else cardinal(tail))


def digits(text: str) -> str:
    """Each digit of a text; all else is left out."""
    return " ".join(_ONES[int(character)] for character in text if character in "0123456789")


def whole(text: str) -> str:
    """An integer as it is written, perhaps with commas."""
    plain = text.replace(",", "")
    if len(plain) > MOST_DIGITS or (plain[0] == "0" and len(plain) > 1):
        return digits(plain)
    return cardinal(int(plain))


def decimal(text: str) -> str:
    """An integer or a decimal as it is written: 1,234.56, .5, 007."""
    integer, point, fraction = text.partition(".")
    if not point:
        return whole(integer)
    return f"{whole(integer)} point {digits(fraction)}" if integer else f"point {digits(fraction)}"


def plain(text: str) -> str:
    """A number that counts nothing we know: four digits from 1000 to 2099 are read as a year."""
    return year(int(text)) if len(text) == 4 and text.isdigit() and 1000 <= int(text) < 2100 else decimal(text)


def _parted(words: str) -> tuple[str, str, str]:
    """The last word, and all before it."""
    at = max(words.rfind(" "), words.rfind("-"))
    return (words[:at], words[at], words[at + 1 :]) if at >= 0 else ("", "", words)
