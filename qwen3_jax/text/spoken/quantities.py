"""Amounts -> words: money, percentages, units, fractions, ranges, arithmetic, ordinals, decades, plain numbers."""

import re

from qwen3_jax.text.spoken.dates import END, MAYBE, START
from qwen3_jax.text.spoken.numbers import cardinal, decimal, ordinal, plain, plural
from qwen3_jax.text.spoken.units import CODE, DOTTED, MONEY, NAMES, POWERS, SCALE, SCALES, SIGN, TIGHT, UNCOUNTED, UNITS

_NUMBER = r"(?:\d{1,3}(?:,\d{3}){1,8}(?:\.\d{1,40})?|\d{1,40}(?:\.\d{1,40})?|\.\d{1,40})"
_HEIGHT = re.compile(rf"{START}(\d{{1,2}})' ?(\d{{1,2}})(?:\"|'')?(?![^\W_])")
_MONEY_RANGE = re.compile(rf"({SIGN} ?{_NUMBER}) ?[-–—] ?(?={SIGN}? ?\d)")
_BEFORE = re.compile(rf"(?<![^\W_])(-?)({SIGN}|{CODE}) ?(-?)({_NUMBER}){SCALE}(?!\d)(?![^\W_])(?: ?/ ?([A-Za-z]{{1,12}})(?![^\W_])(\.?))?")
_AFTER = re.compile(rf"{START}(-?)({_NUMBER}){SCALE} ?({SIGN}|{CODE})(?![^\W_])(?!\d)")
_RANGE = re.compile(rf"{START}({_NUMBER}%?) ?[-–—] ?(?=-?{_NUMBER})")
_DECADE = re.compile(r"(?<![^\W_])'?((?:1\d|20)?\d0)'?s(?![^\W_])")
_ORDINAL = re.compile(rf"{START}(\d{{1,3}}(?:,\d{{3}}){{1,4}}|\d{{1,15}})(st|nd|rd|th)(?![^\W_])", re.IGNORECASE)
_MIXED = r"(?:\d{1,3}[ -])?\d{1,3}/\d{1,3}(?![/\d])"
_FRACTION = re.compile(rf"{START}{_MIXED}{END}")
_HALF = re.compile(rf"{START}1/2(?= an?(?![^\W_]))")
_PERCENT = re.compile(rf"{START}(-?)({_NUMBER}) ?%")
_UNIT = re.compile(
    rf"{START}(-?)({_NUMBER}|{_MIXED})(?: (hundred|thousand|million|billion|trillion))?"
    rf"([ -]?)(?:sq\.? ?(ft|m|km|mi)|({DOTTED}|{NAMES})(?:\^([23]))?)"
    rf"(?![^\W_])(?:/({NAMES}|[a-z]{{2,12}})(?![^\W_]))?"
)
_SIZE = re.compile(rf"{START}({_NUMBER}) ?[x×] ?(?={_NUMBER})")
_TIMES = re.compile(rf"{START}({_NUMBER})[x×](?![^\W_])")
_SCALED = re.compile(rf"{START}({_NUMBER})([kKMBT]|bn|mn|tn)(?![^\W_])")
_SCIENTIFIC = re.compile(rf"{START}({_NUMBER})[eE]([+-]?)(\d{{1,3}})(?: ?({NAMES}))?(?![^\W_])")
_POWER = re.compile(r"(?<=[\w)]) ?(?:\^|\*\*) ?(-?)(\d{1,9})(?![^\W_])")
_BETWEEN = {  # in this order
    "minus": re.compile(r"(?<=[\d)]) ?[-–] ?(?=[\d(][^=]{0,40}=)"),
    "plus": re.compile(r"(?<=[\d)]) ?\+ ?(?=[\d(])"),
    "equals": re.compile(r"(?<=[\d)]) ?={1,2} ?(?=[-\w(])|(?<=\w)=(?=-?\d)"),
    "times": re.compile(r"(?<=[\d)]) ?\*(?!\*) ?(?=[\w(])|(?<=\d) ?× ?(?=\d)"),
    "divided by": re.compile(r"(?<=[\d)]) / (?=[\d(])|(?<=[\d)]) ?÷ ?(?=[\d(])"),
}
_RATIO = re.compile(rf"{START}(\d{{1,6}}):(\d{{1,6}})(?![:\w])")
_SIGNED = re.compile(rf"(?<![\w)^*])([-+~#<>≤≥±≈]) ?(?=-?[$€£]?{_NUMBER})")
_SIGNS = {
    "-": "minus", "+": "plus", "~": "about", "#": "number", "<": "less than", ">": "more than", "≤": "at most", "≥": "at least",
    "±": "plus or minus", "≈": "about",
}  # fmt: skip
_SHORT_YEAR = re.compile(r"(?<![^\W_])'(\d\d)(?![^\W_])")
_LIST = re.compile(rf"{START}\d{{1,9}}(?:,\d{{1,9}}){{1,40}}{END}")
_PLAIN = re.compile(rf"{START}{_NUMBER}(?![^\W_])")
_PARTS = {2: "half", 3: "third", 4: "quarter"} | {below: ordinal(below) for below in (5, 6, 7, 8, 9, 12, 16)}


def read(text: str) -> str:
    """All amounts of a text."""
    text = re.sub(r"(?<=\^[-\d])\^(?=\d)", "", text)  # powers of several digits
    text = _HEIGHT.sub(lambda found: f"{decimal(found[1])} foot {decimal(found[2])}", text)
    text = _SCIENTIFIC.sub(_scientific, text)
    text = _MONEY_RANGE.sub(r"\1 to ", text)
    text = _BEFORE.sub(_before, text)
    text = _AFTER.sub(lambda found: _sum(found[1], found[4], found[2], found[3]), text)
    for words, pattern in _BETWEEN.items():
        text = pattern.sub(f" {words} ", text)
    text = _RANGE.sub(r"\1 to ", text)
    text = _SIGNED.sub(lambda found: f"{_SIGNS[found[1]]} ", text)
    text = _DECADE.sub(_decade, text)
    text = _ORDINAL.sub(lambda found: ordinal(int(found[1].replace(",", ""))), text)
    text = _HALF.sub("half", text)
    text = _PERCENT.sub(lambda found: f"{_minus(found[1])}{decimal(found[2])} percent", text)
    text = _UNIT.sub(_unit, text)
    text = _FRACTION.sub(lambda found: _amount(found[0]), text)
    text = _SIZE.sub(r"\1 by ", text)
    text = _TIMES.sub(lambda found: f"{decimal(found[1])} times", text)
    text = _SCALED.sub(_scaled, text)
    text = _POWER.sub(_power, text)
    text = _RATIO.sub(r"\1 to \2", text)
    text = _SHORT_YEAR.sub(lambda found: decimal(found[1]) if found[1] > "09" else f"oh {decimal(found[1][1])}", text)
    text = _LIST.sub(_list, text)
    return _PLAIN.sub(lambda found: plain(found[0]), text)


def _minus(sign: str | None) -> str:
    return "minus " if sign else ""


def _scientific(found: re.Match[str]) -> str:
    return f"{decimal(found[1])} times ten to the power of {'minus ' if found[2] == '-' else ''}{cardinal(int(found[3]))}" + (
        f" {_unit_name(found[4], one=False)}" if found[4] else ""
    )


def _before(found: re.Match[str]) -> str:
    words = _sum(found[1] or found[3], found[2], found[4], found[5])
    return words if found[6] is None else f"{words} per {_unit_name(found[6])}{MAYBE if found[7] else ''}"


def _sum(sign: str | None, money: str, amount: str, scale: str | None) -> str:
    """Words for an amount of money."""
    bill, _, coin = MONEY[money].partition(" ")
    bill = bill.replace("-", " ")
    if scale:
        return f"{_minus(sign)}{decimal(amount)} {SCALES.get(scale, scale)} {_several(bill)}"
    head, _, tail = amount.partition(".")
    if len(tail) != 2 or not coin:
        return f"{_minus(sign)}{decimal(amount)} {bill if amount == '1' else _several(bill)}"
    parts = []
    if head.strip("0,"):
        parts.append(f"{decimal(head)} {bill if head == '1' else _several(bill)}")
    if int(tail) or not parts:
        parts.append(f"{cardinal(int(tail))} {coin if tail == '01' else _several(coin)}")
    return _minus(sign) + " and ".join(parts)


def _several(name: str) -> str:
    return name if name in UNCOUNTED else f"{name}s"


def _decade(found: re.Match[str]) -> str:
    if len(found[1]) == 2:
        return found[0] if found[1] in ("00", "10") else plural(cardinal(int(found[1])))
    return plural(plain(found[1]))


def _amount(text: str) -> str:
    """An integer, a decimal, or a fraction: 1/2, 3 1/2."""
    if "/" not in text:
        return decimal(text)
    *whole, fraction = re.split("[ -]", text)
    head = decimal(whole[0]) if whole else ""
    above, below = map(int, fraction.split("/"))
    if 0 < above < below and below in _PARTS:
        name = _PARTS[below] if above == 1 else plural(_PARTS[below]).replace("halfs", "halves")
        part = f"{'a' if whole else 'one'} {name}" if above == 1 else f"{cardinal(above)} {name}"
        return f"{head} and {part}" if whole else part
    return f"{head} {plain(str(above))} {'out of ' if below in (10, 100) and above <= below else ''}{plain(str(below))}".strip()


def _unit(found: re.Match[str]) -> str:
    sign, amount, scale, gap, squared, name, power, per = found.groups()
    key = (name or squared).rstrip(".")
    dotted = bool(name) and name.endswith(".")
    if key in TIGHT and gap and not dotted:
        return found[0]
    one = scale is None and (amount == "1" or gap == "-" or (amount[0] != "0" and "/" in amount and " " not in amount))
    adjective = f"{POWERS['2' if squared else power]} " if squared or power else ""
    words = f"{_minus(sign)}{_amount(amount)} {f'{scale} ' if scale else ''}{adjective}{_unit_name(key, one=one)}{MAYBE if dotted else ''}"
    return words if per is None else f"{words} per {_unit_name(per)}"


def _unit_name(key: str, *, one: bool = True) -> str:
    """The name of a unit, or the word itself."""
    if key not in UNITS:
        return key
    name, _, rest = UNITS[key].partition("|")
    single, _, several = name.partition(" ")
    words = (single if one else several or f"{single}s").replace("-", " ")
    return f"{words} {rest}" if rest else words


def _scaled(found: re.Match[str]) -> str:
    if (found[2] == "K" and found[1] in ("2", "4", "5", "8")) or (found[2] == "B" and "." not in found[1]):
        return f"{decimal(found[1])} {found[2]}"  # a picture's size, a run; a flat, a house
    return f"{decimal(found[1])} {SCALES[found[2]]}"


def _power(found: re.Match[str]) -> str:
    if not found[1] and found[2] in ("2", "3"):
        return " squared" if found[2] == "2" else " cubed"
    return f" to the power of {_minus(found[1])}{decimal(found[2])}"


def _list(found: re.Match[str]) -> str:
    groups = found[0].split(",")
    if len(groups[0]) <= 3 and all(len(group) == 3 for group in groups[1:]):
        return found[0]  # thousands
    return ", ".join(map(plain, groups))
