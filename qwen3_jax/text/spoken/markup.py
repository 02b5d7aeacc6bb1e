"""Markdown, SSML and HTML -> plain text, in which a newline ends a block (a heading, an item, a paragraph), and pauses.

The marks of emphasis, code and links vanish whether or not they are closed, so no word waits for a closing one. What waits: a tag, an
entity or a link's target that has begun, `LOOK` characters at most; and the head of a line while it may be a mark.
No rule depends on where the pieces end.
"""

import html
import re

from qwen3_jax.text.spoken.characters import clean
from qwen3_jax.text.spoken.numbers import cardinal
from qwen3_jax.text.spoken.pause import Pause, seconds

LOOK = 600  # characters: a longer tag or target is read as it stands
SHORT_LINE = 40  # characters: a shorter line, with a capital at the head of the next, was ended on purpose

# Each construct, and what may still become it: the text ends (\Z) before it is decided.
_RULE = re.compile(r"([-*_=~])\1{1,200} {0,20}(?=\n|\Z)")
_FENCE = re.compile(r"(?:`{3,20}|~{3,20})[^\n`]{0,60}(?=\n|\Z)")
_DEFINITION = re.compile(r"\[[^\[\]\n]{1,100}\]: {1,20}<?(?:[a-z]{2,6}://|www\.|/|#)[^\n]{0,400}(?=\n|\Z)")
_FOOTNOTE = re.compile(r"\[\^[^\[\]\n]{1,40}\]: {0,20}")
_HEADING = re.compile(r"#{1,6} ")
_BULLET = re.compile(r"[-*+•–—] {1,20}(?:\[[ xX]\] )?")
_ITEM = re.compile(r"(\d{1,3})[.)] {1,20}(?=[^ \n])")
_HEAD_SO_FAR = re.compile(
    r"(?:([-*_=~])\1{0,200} {0,20}|(?:`{1,20}|~{1,20})[^\n`]{0,60}|\[[^\[\]\n]{0,100}(?:\](?:: {0,20}[^\n]{0,420})?)?"
    r"|#{1,6}|[-*+•–—](?: {1,20}(?:\[(?:[ xX]\]?)?)?)?|\d{1,3}(?:[.)] {0,20})?)\Z"
)  # fmt: skip
_ANGLES = re.compile(r"<[A-Za-z/!?][^<>]{0,600}>")
_TAG = re.compile(
    r"</?([A-Za-z][\w:.-]{0,40})(?:\s+[A-Za-z_:][\w:.-]{0,40}\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'=<>]+))*\s*/?>"
)  # fmt: skip
_LINK = re.compile(r"<((?:[a-z]{2,6}://|mailto:)[^\s<>]+|[^\s<>@]+@[^\s<>@]+)>")
_TAG_SO_FAR = re.compile(r"<(?:[A-Za-z/!?][^<>]{0,600})?\Z")
_TARGET = re.compile(r"\](?:\([^()\s]{0,400}(?:\([^()\s]{0,60}\)[^()\s]{0,60})?(?: \"[^\"\n]{0,60}\")?\)|\[[^\[\]\n]{0,100}\])")
_TARGET_SO_FAR = re.compile(
    r"\](?:\((?:[^()\s]{0,400}(?:\([^()\s]{0,60}(?:\)[^()\s]{0,60})?)?(?: (?:\"[^\"\n]{0,60}\"?)?)?)|\[[^\[\]\n]{0,100})?\Z"
)  # fmt: skip
_NOTE = re.compile(r"\[(?:\^[^\[\]\s]{1,40}|\d{1,3})\]")  # a footnote's mark, a citation's number
_NOTE_SO_FAR = re.compile(r"\[(?:\^[^\[\]\s]{0,40}|\d{0,3})\Z")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_ENTITY_SO_FAR = re.compile(r"&(?:#[xX]?[0-9a-fA-F]{0,7}|[A-Za-z0-9]{0,32})\Z")

_PLAIN = re.compile(r"[^\n\\`*_~=<\[\]&!]+")
_RUN = {character: re.compile(re.escape(character) + "{1,200}") for character in "`*_~="}
_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_BLOCKS = frozenset(
    "p s div li ul ol tr table br hr h1 h2 h3 h4 h5 h6 title blockquote pre section article header footer dt dd option".split()
)  # fmt: skip


class Markup:
    """One text that comes in pieces."""

    def __init__(self) -> None:
        self._rest = ""  # what is not decided
        self._out: list[str | Pause] = []
        self._at_head = True  # nothing but spaces and marks on this line so far
        self._block = False  # this line has a mark that makes it a block
        self._after_block = False  # the line before had one
        self._newlines = 0  # since the last text
        self._indented = self._fenced = False
        self._length = 0  # characters of text on this line, or on the last that had any
        self._last = " "  # the character before

    def feed(self, text: str, *, final: bool = False) -> list[str | Pause]:
        """More text, as ``characters.clean`` gives it -> what is settled of it. ``final``: no more comes."""
        self._rest += text
        at = 0
        while at < len(self._rest):
            end = self._head(at, final) if self._at_head else self._inline(at, final)
            if end is None:
                break
            if end > at:
                self._last = self._rest[end - 1]
            at = end
        self._rest = self._rest[at:]
        out, self._out = self._out, []
        return out

    def _head(self, at: int, final: bool) -> int | None:
        """At the head of a line: take spaces and marks. Returns where it goes on; None: more text decides."""
        text = self._rest
        if text[at] == " ":
            self._indented = True
            return at + 1
        if text[at] == "\n":
            self._newlines += 1
            self._indented = self._block = False
            return at + 1
        if not final and _HEAD_SO_FAR.match(text, at):
            return None
        if found := _FENCE.match(text, at) or _RULE.match(text, at) or _DEFINITION.match(text, at):
            self._fenced ^= text[at] in "`~" and found.re is _FENCE
            self._after_block, self._newlines = True, max(self._newlines, 1)
            return found.end()
        if found := _HEADING.match(text, at) or _BULLET.match(text, at):
            self._block = True
            return found.end()
        if text[at] == ">":
            return at + 1
        if found := _ITEM.match(text, at):
            self._begin("9", block=True)
            self._out.append(f"{cardinal(int(found[1])).capitalize()}, ")
            return found.end()
        if found := _FOOTNOTE.match(text, at):
            return found.end()
        self._begin(text[at], block=self._block or text[at] == "|")
        return at

    def _begin(self, first: str, *, block: bool) -> None:
        """The text of a line begins: is it another block than the line before?"""
        if self._newlines:
            ended = self._newlines > 1 or block or self._fenced or (self._after_block and not self._indented)
            self._out.append("\n" if ended or (self._length < SHORT_LINE and first.isupper()) else " ")
        self._after_block, self._block = block or self._fenced, False
        self._newlines = self._length = 0
        self._at_head = self._indented = False
        self._last = " "

    def _inline(self, at: int, final: bool) -> int | None:
        """Inside a line. Returns as ``_head`` does."""
        text = self._rest
        if found := _PLAIN.match(text, at):
            self._emit(found[0])
            return found.end()
        here = text[at]
        if here == "\n":
            self._at_head = True
            return at
        if here in _RUN:
            return self._run(here, at, final)
        if here == "<":
            return self._tag(at, final)
        if here == "[":
            return self._bracket(at, final)
        so_far = {"]": _TARGET_SO_FAR, "&": _ENTITY_SO_FAR}.get(here)
        if not final and (so_far.match(text, at) if so_far else at + 1 == len(text)):
            return None
        following = text[at + 1 : at + 2]
        if here == "\\" and following in _PUNCTUATION:
            self._emit(following)
            return at + 1 + len(following)
        if here == "&" and (found := _ENTITY.match(text, at)):
            self._emit(clean(html.unescape(found[0])).replace("\n", " "))
            return found.end()
        if here == "]":
            return found.end() if (found := _TARGET.match(text, at)) else at + 1
        if not (here == "!" and following == "["):  # an image
            self._emit(here)
        return at + 1

    def _run(self, here: str, at: int, final: bool) -> int | None:
        """Marks of emphasis or code, or signs of arithmetic and names."""
        found = _RUN[here].match(self._rest, at)
        assert found is not None
        count = len(found[0])
        if found.end() == len(self._rest) and count < 200 and not final:
            return None
        before, after = self._last, self._rest[found.end() : found.end() + 1] or " "
        words = before.isalnum() and after.isalnum()
        apart = before in " \n" and after in " \n"
        if here == "`":
            kept = ("'" if count == 1 else " ") if words else ""
        elif here == "*":
            kept = found[0] if count < 3 and (apart or (before in "0123456789)" and (after.isalnum() or after == "("))) else ""
        elif here == "_":
            kept = found[0] if words else ""
        elif here == "~":
            kept = here if count == 1 and after in "0123456789$/" else ""
        else:
            kept = here if count < 3 and (count == 1 or apart or not (before in " \n" or after in " \n")) else ""
        self._emit(kept)
        return found.end()

    def _tag(self, at: int, final: bool) -> int | None:
        text = self._rest
        if not final and _TAG_SO_FAR.match(text, at):
            return None
        angles = _ANGLES.match(text, at)
        if angles is None:
            self._emit("<")
            return at + 1
        if found := _TAG.fullmatch(angles[0]):
            name = found[1].lower()
            if name == "break":
                self._out.append(Pause(seconds(found[0])))
            elif name in _BLOCKS:
                self._out.append("\n")
        elif found := _LINK.fullmatch(angles[0]):
            self._emit(found[1].removeprefix("mailto:"))
        elif angles[0][1] not in "!?":
            self._emit("<")
            return at + 1
        return angles.end()

    def _bracket(self, at: int, final: bool) -> int | None:
        """Brackets are not read; a citation's number neither."""
        if not final and _NOTE_SO_FAR.match(self._rest, at):
            return None
        found = _NOTE.match(self._rest, at)
        if found and (self._last not in " \n" or found[0][1] == "^"):
            return found.end()
        if self._last.isalnum():
            self._emit(" ")
        return at + 1

    def _emit(self, text: str) -> None:
        if text:
            self._out.append(text)
            self._length += len(text)
