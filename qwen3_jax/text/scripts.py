"""Letters of a text -> whether a model's languages are written with them, so that Chinese is not read to an English voice, as noise.

A text is refused if most of its letters are of scripts that none of the languages uses. Every language takes Latin letters. Single ones of
Greek are signs. Of languages that are not known here, a checkpoint's own, nothing is known: then no text is refused.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from functools import lru_cache

from qwen3_jax.text.languages import MULTILINGUAL, NAMES

_HAN, _KANA, _HANGUL, _CYRILLIC, _GREEK = "Chinese characters", "Japanese kana", "Korean Hangul", "Cyrillic letters", "Greek letters"
_SCRIPTS: dict[str, frozenset[str]] = dict.fromkeys(NAMES, frozenset[str]()) | {
    "chinese": frozenset({_HAN}),
    "japanese": frozenset({_HAN, _KANA}),
    "korean": frozenset({_HAN, _HANGUL}),
    "russian": frozenset({_CYRILLIC}),
}
_WRITTEN_BY = {_HAN: "chinese", _KANA: "japanese", _HANGUL: "korean", _CYRILLIC: "russian"}
_BY_NAME = {  # the first word of Unicode's name
    "CJK": _HAN, "IDEOGRAPHIC": _HAN, "BOPOMOFO": _HAN, "HIRAGANA": _KANA, "KATAKANA": _KANA, "HANGUL": _HANGUL, "CYRILLIC": _CYRILLIC,
}  # fmt: skip
_SHARED = frozenset({"LATIN", "MODIFIER"})  # every language's, and signs
_SIGN = 2  # letters in a row that may be a sign where they are Greek (μ, μΩ)
_NO_WORDS = re.compile(r"<[^<>]{1,200}>|\bhttps?://\S+")  # tags and addresses
_WORD = re.compile(r"[^\W\d_]+")


class Letters:
    """The letters of a text, counted as they come.

    Args:
        languages: of the model, in any case; empty: nobody says.
    """

    def __init__(self, languages: Collection[str]) -> None:
        self._languages = sorted(name.lower() for name in languages)
        self._checks = bool(languages) and all(name in NAMES for name in self._languages)
        self._taken = frozenset[str]().union(*(_SCRIPTS.get(name, frozenset()) for name in self._languages))
        self._count, self._foreign = 0, Counter[str]()

    def add(self, text: str) -> None:
        """More of it."""
        if self._checks:
            count, foreign = self._counted(text)
            self._count += count
            self._foreign += foreign

    def mostly_foreign(self, more: str = "") -> bool:
        """Whether most of the letters, those of ``more`` among them, are of other scripts."""
        if not self._checks or (more.isascii() and not self._foreign):
            return False
        count, foreign = self._counted(more)
        return 2 * (self._foreign.total() + foreign.total()) > self._count + count

    def check(self) -> None:
        """Raises ValueError if most of the letters are of other scripts."""
        if self.mostly_foreign():
            script = self._foreign.most_common(1)[0][0]
            speaks = ", ".join(name.capitalize() for name in self._languages)
            other = f", or load {MULTILINGUAL}, which speaks {_WRITTEN_BY[script].capitalize()}" if script in _WRITTEN_BY else ""
            raise ValueError(
                f"{self._foreign[script]} of the text's {self._count} letters are {script}, and this model speaks {speaks}: write the text "
                f"in {'that' if len(self._languages) == 1 else 'one of these'}{other}"
            )

    def _counted(self, text: str) -> tuple[int, Counter[str]]:
        """(letters, those of scripts that are not taken)."""
        foreign: Counter[str] = Counter()
        if text.isascii():
            return sum(map(str.isalpha, text)), foreign
        for word in _WORD.findall(text):
            scripts = () if word.isascii() else [script for script in map(_script, word) if script and script not in self._taken]
            foreign.update(script for script in scripts if script != _GREEK or len(word) > _SIGN)
        return sum(map(str.isalpha, text)), foreign


def check_letters(text: str, languages: Collection[str]) -> None:
    """Look at a whole text, but for its tags and addresses.

    Args:
        languages: of the model; empty: nobody says.

    Raises:
        ValueError: most of its letters are of scripts that none of the languages uses; the message names script and languages.
    """
    if not text.isascii():
        letters = Letters(languages)
        letters.add(_NO_WORDS.sub(" ", text))
        letters.check()


@lru_cache(4096)
def _script(letter: str) -> str:
    """What the letter belongs to, in words; empty for Latin ones and signs."""
    plain = unicodedata.normalize("NFKD", letter)[:1]  # wide, circled, mathematical ones
    name = unicodedata.name(plain, "")
    first = re.split("[ -]", name, maxsplit=1)[0]
    return "" if first in _SHARED or not plain.isalpha() else _BY_NAME.get(first, f"{first.capitalize()} letters")
