"""Plain text -> words and marks. Tokens are read one by one, but for runs whose tokens decide about each other ("March 4, 2026", "5 p.m.").

A run ends with the first token that nothing after it can change, and at most at `RUN` tokens or `RUN_LENGTH` characters.
"""

import re

from qwen3_jax.text.spoken import abbreviations, addresses, codes, dates, letters, quantities
from qwen3_jax.text.spoken.sentence import SentenceWriter

RUN, RUN_LENGTH, TOKEN = 12, 200, 400  # tokens and characters of a run, characters of a token: longer ones are cut

_SPLIT = re.compile(r"[^ \n]+|[ \n]+")
_SIMPLE = re.compile(r"([A-Z]?[a-z]{2,}(?:['-][a-z]+)?)([.,;:!?]?)")
_VOWEL = re.compile(r"[aeiouyAEIOUY]")
_OPEN = re.compile(
    r"(?:\d(?:st|nd|rd|th|['\")\],:]*)|\d ?[ap]\.?m\.?|[$€£¥₹₩₽₿₺₪₫฿₦₴₱¢]|\b(?:USD|EUR|GBP|JPY|CHF|INR|CAD|AUD|CNY))\Z", re.IGNORECASE
)
_BEFORE = frozenset("< > ≤ ≥ ≈ ± ~".split())
_BETWEEN = frozenset("- – — x × * ** + = == / ÷ ^ ± hundred thousand million billion trillion".split())
_DIGIT = re.compile(r"\d")
_AROUND = "\"'([{.,;:!?)]}"
_EMOTICON = re.compile(r"(?:[:;=][o'^]?-?[)(\]\[DPpOo3|/\\*]{1,5}|[xX]D+|<3+|:[a-z][a-z0-9_+-]{1,30}:)[.,!?]*")
_PLURAL = re.compile(r"(?<=[a-z])\((e?s)\)")
_NAMES = {"c++": "C plus plus", "c#": "C sharp", "f#": "F sharp", ".net": "dot net", "&c": "et cetera"}
_NAMED = re.compile(r"(?<![^\s\"'(])(?:c\+\+|[cf]#|\.net|&c)(?![^\W_+#])", re.IGNORECASE)
_PIECE = re.compile(r"([^\W_]+(?:['-][^\W_]+)*)|(\.{2,})|(-{2,}|[-=]+>|<[-=]+)|([&+=@<>≤≥≈≠±×÷√∞])|(.)", re.DOTALL)
_SIGNS = {
    "&": "and", "+": "plus", "=": "equals", "@": "at", "<": "is less than", ">": "is more than", "≤": "is at most", "≥": "is at least",
    "≈": "is about", "≠": "is not", "±": "plus or minus", "×": "times", "÷": "divided by",
}  # fmt: skip
_ALWAYS = frozenset("≤≥≈≠±")  # read whether or not there are words on both sides
_WORDS = {"√": "the square root of", "∞": "infinity"}
_PAUSES, _DASHES, _MARKS = frozenset("(){}—|•→"), frozenset("-–/"), frozenset(".,:;!?")
_PAIRED = re.compile(r"(?<![^\W_])([A-Z]{1,3})&([A-Z]{1,3})(?![^\W_])")  # R&D
_GRADE = re.compile(r"([A-F])([+-])([.,;:!?)\"']*)")
_SHORT = re.compile(r"(?:\d|(?<![^\W_])[^\W_])[)\"']*\Z")
_COMPARED = {">=": "≥", "<=": "≤", "!=": "≠", "==": "="}


class Words:
    """The tokens of one text, written into ``sentence``."""

    def __init__(self, sentence: SentenceWriter) -> None:
        self._sentence = sentence
        self._token = ""  # the last one, while it may go on
        self._run: list[str] = []
        self._length = 0  # characters of the run
        self._before = ("", "")  # the two tokens before the run

    def feed(self, text: str) -> None:
        """More text, as ``Markup`` gives it."""
        for piece in _SPLIT.findall(text):
            if piece[0] in " \n":
                self._end_token()
                if "\n" in piece:
                    self.end()
                    self._sentence.block()
            else:
                self._token += piece
                while len(self._token) >= TOKEN:
                    rest = self._token[TOKEN:]
                    self._token = self._token[:TOKEN]
                    self._end_token()
                    self._token = rest

    def end(self) -> None:
        """What comes next changes nothing that has come."""
        self._end_token()
        self._read_run()

    def _end_token(self) -> None:
        token, self._token = self._token, ""
        if not token:
            return
        if not self._run and self._simple(token):
            return
        self._run.append(token)
        self._length += len(token) + 1
        if not self._is_open(token) or len(self._run) >= RUN or self._length >= RUN_LENGTH:
            self._read_run()

    def _simple(self, token: str) -> bool:
        """An ordinary word with one mark or none is written at once."""
        found = _SIMPLE.fullmatch(token)
        if found is None or not _VOWEL.search(token) or abbreviations.opens(token):
            return False
        core = found[1].lower()
        if abbreviations.known_dotted(core) if found[2] == "." else abbreviations.known(core):
            return False
        self._sentence.word(found[1], capital=found[1][0].isupper())
        if found[2]:
            self._sentence.mark(found[2])
        self._before = (self._before[1], token)
        return True

    def _is_open(self, token: str) -> bool:
        if _OPEN.search(token) or abbreviations.opens(token.lstrip("\"'(")) or token.strip("\"'(),.!?") in letters.AMBIGUOUS:
            return True
        return token in _BEFORE or (token in _BETWEEN and any(map(_DIGIT.search, self._run)))

    def _read_run(self) -> None:
        run, self._run, self._length = self._run, [], 0
        if not run:
            return
        first = next((character for token in run for character in token if character.isalnum()), "a")
        words = []
        for index, token in enumerate(run):
            before = run[index - 1] if index else self._before[1]
            words.append(self._read(token, before, run[index + 1] if index + 1 < len(run) else ""))
        text = " ".join(words)
        if _DIGIT.search(text):
            earlier, before = (token.strip(_AROUND) for token in self._before)
            text = dates.read(text, before)
            text = codes.read(text, (earlier, before))
            text = codes.glued(quantities.read(text))
        self._write(text, capital=not first.islower())
        self._before = ((self._before[1], *run)[-2], run[-1])

    def _read(self, token: str, before: str, after: str) -> str:
        """A token but for its digits."""
        if _EMOTICON.fullmatch(token):
            return ""
        core = token.lstrip("\"'([{")
        words = abbreviations.expand(core, before, after) if core[:1].isalpha() else None
        if words is None:
            token = _NAMED.sub(lambda found: _NAMES[found[0].lower()], token)
            words = addresses.read(token)
        if words is not None:
            return words
        name = token.strip(_AROUND)
        if name in letters.AMBIGUOUS or name == "A":
            return token.lower() if any(letters.is_loud(other.strip(_AROUND)) for other in (before, after)) else token
        if found := _GRADE.fullmatch(token):
            return f"{found[1]} {'plus' if found[2] == '+' else 'minus'}{found[3]}"
        token = _PAIRED.sub(lambda found: f"{letters.spell(found[1])} and {letters.spell(found[2])}", token)
        return _COMPARED.get(token) or _PLURAL.sub(r"\1", token)

    def _write(self, text: str, *, capital: bool) -> None:
        """Words and marks into the sentence; ``capital`` is for the first word."""
        end = len(text)
        for found in _PIECE.finditer(text):
            word, dots, dash, sign, other = found.groups("")
            before = text[found.start() - 1] if found.start() else " "
            after = text[found.end()] if found.end() < end else " "
            inside = before.isalnum() and after.isalnum()
            if word:
                self._sentence.word(letters.read(word), capital=capital or word[0].isupper())
                capital = False
            elif dots:
                self._sentence.mark("more")
            elif sign in _WORDS:
                self._sentence.word(_WORDS[sign], capital=False)
            elif sign:
                head = self._before[1] + text[max(0, found.start() - 9) : found.start()].rstrip()
                if sign in "<>" and before == after == " " and not _SHORT.search(head):
                    self._sentence.mark("aside")  # a path through menus
                elif inside or before == after == " " or sign in _ALWAYS:
                    self._sentence.sign(_SIGNS[sign])
            elif dash or other in _PAUSES or (other in _DASHES and before == after == " "):
                if other != "(" or not before.isalnum():
                    self._sentence.mark("aside")
            elif other == dates.MAYBE:
                self._sentence.mark("maybe")
            elif inside and other == "–":
                self._sentence.sign("to")
            elif other in _MARKS and not (inside and other in ".:") and not (other == "." and after in ",;:"):
                self._sentence.mark(other)
