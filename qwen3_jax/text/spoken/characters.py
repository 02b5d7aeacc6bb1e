"""Characters of any script and keyboard -> those that the rules know: ASCII where there is a reading, dashes, money, a few signs.

Each character is looked at by itself, so text may come in any pieces. An emoji or a sign without a reading becomes a space.
"""

import unicodedata

_SIGNS = "•–—×÷±≈≠≤≥∞√°→"  # besides ASCII, money, letters and numerals, what later rules read
_ALIKE = {
    "\n": "\r\x0b\x0c\x85\u2028\u2029", " ": "\t", "'": "’‘‛‚′ʼʹ´＇‵", '"': "“”„‟″«»‹›〝〞〟＂「」『』【】〈〉《》",
    "-": "‐‑−﹣－", "–": "‒", "—": "―", "~": "〜～", "•": "‣◦●○▪▫■□⁃∙·・", "×": "✕", "→": "⇒➔➜➡⟶", "°": "º˚", "μ": "µ", "/": "⁄∕",
    "...": "…⋯", "..": "‥", ". ": "。｡۔।", ", ": "、､，،", "! ": "！՜", "? ": "？؟՞", ": ": "：", "; ": "；؛", " (": "（", ") ": "）",
    "": "¿¡™℠ª", "No. ": "№",
    "ss": "ß", "SS": "ẞ", "ae": "æ", "Ae": "Æ", "oe": "œ", "Oe": "Œ", "o": "ø", "O": "Ø", "th": "ðþ", "Th": "ÐÞ", "l": "ł", "L": "Ł",
    "d": "đ", "D": "Đ", "h": "ħ", "H": "Ħ", "i": "ı", "ng": "ŋ",
}  # fmt: skip
_READINGS = {character: reading for reading, characters in _ALIKE.items() for character in characters} | {"\n": "\n"}


class _Readings(dict[int, str]):
    """For ``str.translate``: a reading is worked out when its character is first met."""

    def __missing__(self, number: int) -> str:
        reading = _reading(chr(number))
        if len(self) < 20000:
            self[number] = reading
        return reading


def clean(text: str) -> str:
    """Map every character.

    Raises:
        ValueError: a lone surrogate.
    """
    return text if text.isascii() and text.isprintable() else text.translate(_readings)


def _reading(character: str) -> str:
    if character in _READINGS:
        return _READINGS[character]
    kind = unicodedata.category(character)
    if " " <= character <= "~" or kind == "Sc" or character in _SIGNS:
        return character
    if kind == "Cs":
        raise ValueError(
            f"the text contains U+{ord(character):04X}, half of a surrogate pair, which is no character: decode it with errors='replace'"
        )
    if kind[0] in "CM":
        return ""  # controls, zero-width, directions, soft hyphens; accents, which no English word needs
    if kind[0] == "Z":
        return " "
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    parts = unicodedata.normalize("NFKD", character)
    tag = unicodedata.decomposition(character).partition(" ")[0]
    if tag == "<fraction>":
        return " " + parts.replace("⁄", "/")
    if tag == "<super>" and parts in "0123456789−":
        return "^" + parts.replace("−", "-")
    if tag.startswith("<") and len(parts) <= 8:  # not the ligatures of whole phrases
        return "".join(part if part == character else _reading(part) for part in parts)
    base = "".join(part for part in parts if unicodedata.category(part)[0] != "M")
    if base.isascii() and base:
        return base  # a Latin letter with accents
    return character if kind[0] in "LN" else " "


_readings = _Readings()
