"""Numbers that name and do not count -> words: telephone and card numbers, versions, rooms, numbers inside of names."""

import re

from qwen3_jax.text.spoken.dates import END, START
from qwen3_jax.text.spoken.numbers import MOST_DIGITS, cardinal, digits, pair, plain, whole

_ALONE = r"(?<![\w.,$-])"
_INTERNATIONAL = re.compile(rf"(?<![\w.,])\+\d{{1,3}}(?:[ .-]?\(?\d{{1,5}}\)?){{2,6}}{END}")
_TELEPHONES = re.compile(
    rf"{_ALONE}(?:(?:1[ .-])?(?:\(\d{{3}}\) ?|\d{{3}}[ .-])\d{{3}}[ .-]\d{{4}}|\d{{3}}-(?!0000)\d{{4}}|\d{{3}}-\d\d-\d{{4}}"
    rf"|0\d{{2,4}}[ -]\d{{3,4}}[ -]?\d{{3,4}}|0\d(?: \d\d){{4}}|\d{{4}}([ -])\d{{4}}\1\d{{4}}\1\d{{4}}){END}(?!-\d)"
)
_THREE = re.compile(rf"(\d)(\d\d){END}(?![/:%-])")
_SECRET = re.compile(rf"\d{{3,12}}{END}")
_LETTERED = re.compile(rf"{_ALONE}(?:1-)?8\d\d-(?=[A-Z]{{4,10}}(?![^\W_]))|{_ALONE}911{END}(?![/:%])")
_CALLS = frozenset("call called calling dial dialed dialled dialing phone".split())
_PLACES = frozenset("apartment apt area boeing bus flight gate highway interstate room route suite".split())
_SECRETS = frozenset("code passcode password pin otp zip".split())
_VERSION = re.compile(r"(?<![\w.])[vV](?=\d)((?:\d{1,9}\.){0,5}\d{1,9})(?![^\W_])")
_DOTTED = re.compile(rf"(?<![\w.])(?:\d{{1,9}}\.){{2,6}}\d{{1,9}}{END}")
_HYPHENED = re.compile(rf"{START}\d{{1,9}}(?:-\d{{1,9}}){{2,9}}{END}")
_STATE = re.compile(r"(?<=\b[A-Z]{2} )\d{5}(?:-\d{4})?(?![\w-])")
_GLUED_A = re.compile(r"(?<=\d)A(?![^\W_])|(?<![^\W_])A(?=\d)")  # the letter, not the article
_GLUED = re.compile(r"\d{1,40}")


def read(text: str, before: tuple[str, str]) -> str:
    """All such numbers of a text but those inside of names; ``before``: the two words before it."""
    text = _INTERNATIONAL.sub(_international, text)
    text = _TELEPHONES.sub(lambda found: _groups(found[0]), text)
    text = _LETTERED.sub(lambda found: _groups(found[0]) + " ", text)
    earlier, last = before[0].lower(), before[1].lower()
    if last in _CALLS or last in _PLACES:
        named = last in _PLACES
        text = re.sub(rf"\A{_THREE.pattern}", lambda found: pair(int(found[1]), int(found[2])) if named else digits(found[0]), text)
    if last in _SECRETS or (earlier in _SECRETS and last in ("is", "was", "number")):
        text = re.sub(rf"\A{_SECRET.pattern}", lambda found: digits(found[0]), text)
    if len(before[1]) == 2 and before[1].isupper():
        text = re.sub(r"\A\d{5}(?:-\d{4})?(?![\w-])", lambda found: _groups(found[0]), text)
    text = _STATE.sub(lambda found: _groups(found[0]), text)
    text = _VERSION.sub(lambda found: f"version {_points(found[1])}", text)
    text = _DOTTED.sub(_dotted, text)
    return _HYPHENED.sub(lambda found: ", ".join(map(plain, found[0].split("-"))), text)


def glued(text: str) -> str:
    """What digits are left, inside of names: MP3, H2O, A320."""
    text = _GLUED_A.sub(" ay ", text)
    return _GLUED.sub(lambda found: f" {_short(found[0])} ", text)


def _short(number: str) -> str:
    if len(number) == 3 and number[0] != "0":
        return pair(int(number[0]), int(number[1:]))
    if number[0] == "0" or len(number) > 4:
        return digits(number)
    return pair(int(number[:2]), int(number[2:])) if len(number) == 4 and number[1:] != "000" else plain(number)


def _groups(number: str) -> str:
    return " " + ", ".join(digits(group) for group in re.findall(r"\d+", number))


def _international(found: re.Match[str]) -> str:
    count = sum(character.isdigit() for character in found[0])
    return f" plus{_groups(found[0])}" if 7 <= count <= 15 else found[0]


def _points(number: str) -> str:
    return " point ".join(map(_part, number.split(".")))


def _part(number: str) -> str:
    return digits(number) if len(number) > MOST_DIGITS or (number[0] == "0" and len(number) > 1) else cardinal(int(number))


def _dotted(found: re.Match[str]) -> str:
    parts = found[0].split(".")
    if len(parts) != 4 and len(parts[0]) <= 3 and all(len(part) == 3 for part in parts[1:]):
        return whole("".join(parts))  # thousands, as Europe writes them
    machine = len(parts) == 4 and all(len(part) <= 3 and int(part) < 256 for part in parts)
    return " dot ".join(map(digits, parts)) if machine else _points(found[0])
