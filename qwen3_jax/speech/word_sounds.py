"""A word as it is spelled -> the kinds of its sounds, one after the other, as they can be told apart by loudness and spectrum alone.

English spelling by rule; other Latin scripts are read by the same rules, with accents off. A letter of another script is a sound of any
kind, a character of a script without spaces a syllable of any kind.
"""

import re
import unicodedata

VOWEL, SONORANT, BREATH, SIBILANT, STOP, LETTER, SYLLABLE = range(7)
_RULES = (  # the first that fits
    (r"tch|ch|sh|sch|ss|dge|j|z|x|s|c(?=[eiy])|ti(?=on)", (SIBILANT,)),
    (r"igh|eigh|ough|augh", (VOWEL,)),
    (r"(?<=[aeiou])(?:w|y)(?![aeiou])|h(?![aeiouy])", ()),  # of the vowel before it; silent
    (r"wh|w|y(?=[aeiou])|r+h?|l+|m+b?$|m+|ng|n+|kn|gn", (SONORANT,)),
    (r"ph|th|f+|v+|h", (BREATH,)),
    (r"qu", (STOP, SONORANT)),
    (r"ck|[ckq]+|p+|t+|b+|d+|g+", (STOP,)),
    (r"e$|(?<=[^aeiouy])ed$(?<![td]ed)", ()),  # silent, unless it is the only vowel
    (r"[aeiouy]+", (VOWEL,)),
)
_PATTERN = re.compile("|".join(f"({rule})" for rule, _ in _RULES))
_VOWELS = re.compile(r"[aeiouy]")


def sounds(word: str) -> list[int]:
    """Kinds of the sounds of a word; none of a mark."""
    found: list[int] = []
    latin = ""
    for character in unicodedata.normalize("NFKD", word.casefold()):
        if "a" <= character <= "z":
            latin += character
        elif character.isalpha():
            found.append(SYLLABLE if unicodedata.category(character) == "Lo" and ord(character) >= 0x3040 else LETTER)
        elif character.isnumeric():
            found += [LETTER] * 4  # as it is read
    return _latin(latin) + found


def _latin(word: str) -> list[int]:
    """Of a word in small letters a to z."""
    kinds = [kind for found in _PATTERN.finditer(word) for kind in _RULES[(found.lastindex or 1) - 1][1]]
    if word and VOWEL not in kinds:  # "the", "me", "hmm", "by", or letters that are spelled
        if _VOWELS.search(word):
            kinds.append(VOWEL)
        else:
            kinds = [kind for one in kinds for kind in (one, VOWEL)] or [VOWEL]
    return kinds
