"""Abbreviations -> words: Mr. -> "Mister", e.g. -> "for example", No. 5 -> "number 5", Henry VIII -> "Henry the eighth"."""

import re

from qwen3_jax.text.spoken.dates import MAYBE, MONTHS
from qwen3_jax.text.spoken.letters import spell
from qwen3_jax.text.spoken.numbers import cardinal, ordinal
from qwen3_jax.text.spoken.units import UNITS

# Before a name; with a full stop or without.
_TITLES = {"mr": "Mister", "mrs": "Missus", "ms": "Miss", "dr": "Doctor", "st": "Saint"}
# Before a name; only with a full stop.
_DOTTED_TITLES = {
    "prof": "Professor", "rev": "Reverend", "hon": "Honorable", "gen": "General", "col": "Colonel", "maj": "Major", "capt": "Captain",
    "cpt": "Captain", "lt": "Lieutenant", "sgt": "Sergeant", "cpl": "Corporal", "pvt": "Private", "adm": "Admiral", "cmdr": "Commander",
    "sen": "Senator", "rep": "Representative", "gov": "Governor", "pres": "President", "mt": "Mount", "ft": "Fort", "messrs": "Messieurs",
    "mme": "Madame", "mlle": "Mademoiselle", "fr": "Father",
}  # fmt: skip
# After a name.
_ROADS = {
    "st": "Street",
    "dr": "Drive",
    "ave": "Avenue",
    "blvd": "Boulevard",
    "rd": "Road",
    "ln": "Lane",
    "hwy": "Highway",
    "pkwy": "Parkway",
}
# Before a number.
_COUNTERS = {
    "no": "number", "nos": "numbers", "fig": "figure", "figs": "figures", "sec": "section", "ch": "chapter", "chap": "chapter",
    "vol": "volume", "vols": "volumes", "p": "page", "pp": "pages", "pg": "page", "art": "article", "par": "paragraph",
    "para": "paragraph", "ed": "edition", "eq": "equation", "ex": "example", "apt": "apartment", "bldg": "building", "ste": "suite",
    "rm": "room", "ext": "extension", "tel": "telephone", "est": "established", "c": "about", "ca": "about", "approx": "about",
    "ver": "version", "v": "version",
}  # fmt: skip
# Anywhere, with a full stop, which may end the sentence.
_ANYWHERE = {
    "etc": "et cetera", "jr": "Junior", "sr": "Senior", "inc": "Incorporated", "ltd": "Limited", "corp": "Corporation", "co": "Company",
    "bros": "Brothers", "dept": "department", "univ": "University", "assn": "association", "assoc": "associates", "govt": "government",
    "vs": "versus", "approx": "approximately", "max": "maximum", "min": "minimum", "avg": "average", "misc": "miscellaneous",
    "incl": "including", "excl": "excluding", "esp": "especially", "cf": "compare", "viz": "namely", "al": "al", "ave": "Avenue",
    "blvd": "Boulevard", "rd": "Road", "hwy": "Highway", "pkwy": "Parkway", "tel": "telephone", "ext": "extension",
    "intl": "international", "natl": "national", "temp": "temperature", "esq": "Esquire", "tbsp": "tablespoon", "tsp": "teaspoon",
    "lbs": "pounds", "hrs": "hours", "mins": "minutes", "secs": "seconds", "yrs": "years",
}  # fmt: skip
# In any place, with no full stop at the end.
_BARE = {
    "e.g": "for example", "i.e": "that is", "a.k.a": "also known as", "aka": "also known as", "n/a": "not applicable", "vs": "versus",
    "w/": "with", "w/o": "without", "b/c": "because",
}  # fmt: skip
_SHORT_MONTHS = {name[:3].lower(): name for name in MONTHS} | {"sept": "September"}
_DAYS = {
    "mon": "Monday", "tue": "Tuesday", "tues": "Tuesday", "wed": "Wednesday", "thu": "Thursday", "thur": "Thursday", "thurs": "Thursday",
    "fri": "Friday", "sat": "Saturday", "sun": "Sunday",
}  # fmt: skip
_ALSO_WORDS = frozenset({"mar", "may", "jun", "mon", "wed", "fri", "sat", "sun"})  # or names: days and months only beside a number
_ALSO_NAMES = frozenset({"jan", "max", "min", "al", "esp", "temp"})  # with a capital: not at the end of a sentence
_REGNAL = frozenset(
    "Henry Edward George Charles James William Richard Elizabeth Mary Louis Philip Napoleon Francis Frederick Wilhelm Nicholas Alexander "
    "Catherine Peter Ivan Leo Pius Paul John Benedict Gregory Clement Innocent Urban Boniface Julius Ferdinand Alfonso Carlos Felipe "
    "Juan Christian Gustav Carl Karl Haakon Olav Harald Frederik Margrethe Ptolemy Ramses Ramesses Cleopatra Victor Vittorio Umberto "
    "Leopold Albert Baldwin".split()
)  # fmt: skip
_PARTS = frozenset(
    "war chapter part book act scene volume section appendix phase type level stage class title article mark round vol".split()
)
_NUMERAL = re.compile(r"(?=[IVX])X{0,3}(?:IX|IV|V?I{0,3})")
_FORM = re.compile(r"([A-Za-z]{1,12}(?:[./][A-Za-z]{1,3}){0,9}/?)(\.?)((?:[^\w.][^ ]*)?)")
_LETTERS = re.compile(r"[A-Za-z](?:\.[A-Za-z])+|(?:Ph|M|B)\.(?:D|Sc|Eng|Ed)")
# What is read in one way or another depending on the word after it, in lower case.
_OPENING = (
    frozenset(f"{name}." for name in (*_TITLES, *_DOTTED_TITLES, *_COUNTERS, *_SHORT_MONTHS, *_DAYS))
    | frozenset((*_TITLES, *_SHORT_MONTHS, *map(str.lower, MONTHS)))
    | frozenset(f"{name}{mark}" for name in _DAYS for mark in (",", ".,"))
)  # fmt: skip


# A full stop of an abbreviation ends the sentence if one of these comes next.
STARTERS = frozenset(
    "The A An This That These Those It Its He She They We You I There Here In On At But And So If When While After Before As For From To "
    "My Your His Her Our Their What Who Why How Where Then Now No Yes Not One Some Many Most All Also However Please Let".split()
)  # fmt: skip
_SMALL = frozenset("the in at near visit from to of on and by for see a an with".split())
_MONTH_NAMES = frozenset((*_SHORT_MONTHS, *map(str.lower, MONTHS)))
_KNOWN = frozenset((*_TITLES, *_BARE, *_SHORT_MONTHS))
_KNOWN_DOTTED = frozenset((*_TITLES, *_DOTTED_TITLES, *_ROADS, *_COUNTERS, *_ANYWHERE, *_BARE, *_SHORT_MONTHS, *_DAYS))


def opens(token: str) -> bool:
    """The word after this one decides how it is read."""
    return token.lower() in _OPENING or (len(token) == 2 and token[1] == "." and token[0].isupper() and token[0] != "I")


def known(core: str) -> bool:
    """A word without its marks, in lower case, may be an abbreviation."""
    return core in _KNOWN


def known_dotted(core: str) -> bool:
    """The same, of a word with a mark after it."""
    return core in _KNOWN_DOTTED or len(core) == 1


def expand(token: str, before: str, after: str) -> str | None:
    """A token -> the words that it stands for, with the marks that follow it; None: it is no abbreviation.

    Args:
        before, after: the tokens beside it, as they are written, or "".
    """
    found = _FORM.fullmatch(token)
    if found is None:
        return None
    core, dot, rest = found.groups()
    name, low = before.strip("\"'([{.,;:!?)]}"), core.lower()
    following = after.lstrip("\"'([{")
    if before[-1:] in (".", "!", "?") and name[:1].isdigit():
        name = ""
    maybe = MAYBE if dot and not rest.strip("\"')]}") else ""
    if (words := _beside(core, dot, rest, name, following)) is not None:
        return words + rest
    if (words := _numeral(core, name, dot + rest)) is not None:
        return words + dot + rest
    if low in _BARE:
        return _BARE[low] + rest
    unit = name[-1:].isdigit() and low in UNITS
    if dot and low in _ANYWHERE and not unit and not (low == "al" and name != "et") and (core.islower() or _no_word(low, following)):
        return _ANYWHERE[low] + maybe + rest
    if _LETTERS.fullmatch(core) and (dot or len(core) > 3):
        return spell(core.replace(".", "")) + maybe + rest
    if len(core) == 1 and core.isupper() and core != "I" and dot and not rest:
        initial = following[:1].isupper() and (not before or before[-1] in ".!?" or before[0].isupper())
        return spell(core) + ("" if initial else ".")
    return None


def _beside(core: str, dot: str, rest: str, name: str, following: str) -> str | None:
    """What depends on the words beside it: titles, roads, what counts, days and months."""
    low = core.lower()
    a_name, a_number = following[:1].isupper(), following[:1].isdigit()
    road = bool(rest) or not a_name or following.rstrip(".,;:!?") in STARTERS - {"Who", "No"}
    if low in _ROADS and dot and road and (name[:1].isupper() or name[:1].isdigit()) and name.lower() not in _SMALL:
        return _ROADS[low] + (MAYBE if not rest else "")
    if low in _TITLES and (core.istitle() or (dot and core.isupper())) and not rest and (dot or a_name) and (a_name or low != "st"):
        return _TITLES[low]
    if low in _DOTTED_TITLES and dot and core.istitle() and a_name:
        return _DOTTED_TITLES[low]
    if low in _COUNTERS and dot and not rest and a_number and (len(core) > 1 or core.islower()):
        return _COUNTERS[low]
    if low in _SHORT_MONTHS and core.istitle() and ((a_number and not rest) or name[:1].isdigit() or (dot and _no_word(low, following))):
        return _SHORT_MONTHS[low] + (MAYBE if dot and not a_number else "")
    if low in _DAYS and core.istitle() and (dot or rest == ","):
        beside = a_number or following.rstrip(".,").lower() in _MONTH_NAMES
        if beside or (dot and _no_word(low, following)):
            return _DAYS[low] + (MAYBE if dot and not beside and not rest else "")
    return None


def _no_word(low: str, following: str) -> bool:
    """With its full stop it is neither a word nor a name at the end of a sentence."""
    return low not in _ALSO_WORDS and (low not in _ALSO_NAMES or following[:1].islower())


def _numeral(core: str, name: str, rest: str) -> str | None:
    """A Roman numeral up to 39, where it can be nothing else."""
    if not core.isupper() or not _NUMERAL.fullmatch(core) or ("'" in rest and rest.rstrip('.,;:!?)"') != "'s"):
        return None
    values = [{"I": 1, "V": 5, "X": 10}[letter] for letter in core]
    value = sum(-this if this < following else this for this, following in zip(values, [*values[1:], 0], strict=True))
    last = rest[:1] in tuple(".,;:!?)") or rest.startswith("'s")
    if name in _REGNAL and (core != "I" or last):
        return f"the {ordinal(value)}"
    part = name.lower() in _PARTS and (core != "I" or name.lower() == "war" or last)
    if part or core in ("II", "III") or (len(core) > 1 and name[:1].isupper()):
        return cardinal(value)
    return None
