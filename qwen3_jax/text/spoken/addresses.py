"""Addresses of the web, of mail and of files -> words: jane@example.com -> "jane at example dot com", #JobsNow -> "hashtag Jobs Now"."""

import re

from qwen3_jax.text.spoken.letters import spell
from qwen3_jax.text.spoken.numbers import cardinal, digits

_OPENERS, _CLOSERS = "\"'([{<", "\"')]}>.,;:!?…"
_MAIL = re.compile(r"[\w.+%-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,5}")
_TOP = (
    "com|org|net|edu|gov|mil|int|info|biz|io|ai|dev|app|tv|xyz|uk|de|fr|ca|au|jp|cn|ch|nl|se|es|ru|br|eu|co|ly|gg|cloud|tech|online|site"
    "|blog|shop"
)
_WEB = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]{1,11}://(?:[^\s@/]{1,64}@)?|(?=www\.))([A-Za-z0-9._-]{1,253})(:\d{1,5})?([/?#][^\s]*)?"
    rf"|((?:[A-Za-z0-9][A-Za-z0-9-]{{0,62}}\.){{1,5}}(?:{_TOP}))(:\d{{1,5}})?([/?#][^\s]*)?",
)
_HANDLE = re.compile(r"@[A-Za-z0-9_.]{1,40}")
_TAG = re.compile(r"#[^\W\d_][\w]{0,60}")
_PATH = re.compile(r"(?:~|\.{1,2})?(?:/[\w.@+-]{1,80}){2,30}/?|(?:~|\.{1,2})(?:/[\w.@+-]{1,80}){1,30}/?|/[\w.@+-]{2,80}/?")
_DRIVE = re.compile(r"[A-Za-z]:\\[\w.\\ @+-]{0,200}")
_DOTS = re.compile(r"(?:[A-Za-z0-9_-]{1,80}|)(?:\.[A-Za-z0-9_-]{1,60}){1,12}(?:\(\))?")
_SENTENCES = re.compile(r"[A-Za-z',;:-]*[a-z](?:\.[A-Z][a-z',;:-]*|\.[AI])+")
_PIECES = re.compile(r"[A-Za-z]+|\d+|[^\W\d_]+|.")
_LETTERS = frozenset("io ai tv uk us eu de fr ca au jp cn ch nl se es ru br js ts py md cs cc hs rs".split())
_SIGNS = {".": "dot", "-": "dash", "_": "underscore", "/": "slash", "\\": "backslash", "+": "plus", ":": "colon", "@": "at", "~": "tilde"}


def read(token: str) -> str | None:
    """A token -> its words, with the marks that follow it; None: it is no address."""
    core = token.lstrip(_OPENERS)
    bare = core.rstrip(_CLOSERS)
    rest = core[len(bare) :]
    if not bare or (bare.isalpha() and bare.isascii()):
        return None
    if _MAIL.fullmatch(bare):
        return _spoken(bare) + rest
    if found := _WEB.fullmatch(bare):
        host, port, path = found.group(1, 2, 3) if found[1] else found.group(4, 5, 6)
        return _spoken(host.removeprefix("www.") + (port or "") + _shown(path or "")) + rest
    if _HANDLE.fullmatch(bare):
        return _spoken(bare) + rest
    if _TAG.fullmatch(bare):
        return f"hashtag {_parts(bare[1:].replace('_', ' '))}{rest}"
    if _PATH.fullmatch(bare) or _DRIVE.fullmatch(bare):
        return _spoken(bare) + rest
    if _SENTENCES.fullmatch(bare):
        return bare.replace(".", ". ") + rest  # two sentences without a space
    if _DOTS.fullmatch(bare) and any(character.isalpha() for character in bare) and not re.match(r"[vV]?\d", bare):
        return _spoken(bare.removesuffix("()"), underscore=" ") + rest
    return None


def _shown(path: str) -> str:
    """Of a path, what is read: not the query, the fragment and the last slash."""
    return re.split(r"[?#]", path, maxsplit=1)[0].rstrip("/")


def _spoken(address: str, underscore: str = " underscore ") -> str:
    words: list[str] = []
    for piece in _PIECES.findall(address):
        if piece.isdigit() and piece.isascii():
            words.append(cardinal(int(piece)) if len(piece) < 3 and piece[0] != "0" else digits(piece))
        elif piece == "_":
            words.append(underscore)
        elif piece in _SIGNS:
            words.append(_SIGNS[piece])
        elif piece.isalpha():
            letters = len(piece) == 1 or (piece.lower() in _LETTERS and words[-1:] == ["dot"])
            words.append(spell(piece) if letters else _parts(piece))
    return " ".join(words)


def _parts(name: str) -> str:
    """camelCase and digits apart."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])", " ", name)
    return " ".join(
        cardinal(int(part)) if part.isdigit() and len(part) < 3 else digits(part) if part.isdigit() else part for part in apart.split()
    )
