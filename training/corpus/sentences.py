"""Raw text -> clean sentences that can be spoken, each for good on one side of the split: training, or held out.

Clean: 3 to 20 words (our own phrases may be shorter), ASCII letters and , . ; : ! ? ' - only (digits in our own phrases), a capital at
the head, a mark at the end, no two alike. The side is decided by a hash of the letters alone, so it depends on nothing else, and a
sentence that differs in marks or capitals only is on the same side.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from qwen3_jax.evaluate.texts import held_out
from training.corpus.sources import RawText, read_folder

MIN_WORDS, MAX_WORDS, MAX_WORD = 3, 20, 16
HELD_OUT_SHARE = 100  # one sentence in so many is never trained on
HELD_OUT_COUNT = 100  # of those, this many are the evaluation's own

_QUOTES = str.maketrans({"‘": "'", "’": "'", "`": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})
_SPEAKABLE = re.compile(r"[A-Za-z ,.;:!?'-]+")
_WITH_DIGITS = re.compile(r"[A-Za-z0-9 ,.;:!?'$%-]+")


class CorpusSentence(msgspec.Struct, frozen=True):
    """Text to be spoken, and where it is from."""

    text: str
    source: str


def clean(raw: RawText) -> str | None:
    """The sentence as it is spoken, or None if it is not worth it."""
    ours = raw.source == "phrases"
    text = unicodedata.normalize("NFC", raw.text).translate(_QUOTES)
    text = re.sub(r"\s*--+\s*|\s+-\s+", ", ", text)  # a dash between clauses
    text = text.replace('"', "").replace("_", "")  # quotation marks and emphasis are not spoken
    text = re.sub(r"(?<![A-Za-z])'|'(?![A-Za-z])", "", text)  # quotation marks again; the apostrophe inside a word stays
    text = re.sub(r"\s+", " ", text).strip(" ,;:-")
    text = re.sub(r" +([,.;:!?])", r"\1", text)
    text = re.sub(r"\.{2,}(?=.*\w)", ", ", text).replace("..", ".")  # dots inside a sentence are a pause
    text = re.sub(r"[,;:]+(?=[,;:.!?])|(?<=[,;:.!?])[,;:]+", "", text)
    text = re.sub(r" {2,}", " ", text).strip()
    if not (_WITH_DIGITS if ours else _SPEAKABLE).fullmatch(text):
        return None
    words = text.split()
    if not (1 if ours else MIN_WORDS) <= len(words) <= MAX_WORDS:
        return None
    if any(len(word) > MAX_WORD or (word.isupper() and len(word) > 1 and not ours) for word in words):
        return None  # headings, acronyms, what no dictionary has
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else text + "."


def key(text: str) -> str:
    """What makes two sentences the same: letters and digits in order, in lower case."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower().replace("'", "")).strip()


def number(text: str, salt: str = "") -> int:
    """64 bits that depend on the words (and ``salt``) and on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{salt}|{key(text)}".encode()).digest()[:8], "big")


def is_held_out(text: str) -> bool:
    """True for the share of all possible sentences that training must never see, whatever the source."""
    return number(text) % HELD_OUT_SHARE == 0 or key(text) in _own_keys()


def unique(raws: Iterable[RawText]) -> Iterator[CorpusSentence]:
    """Clean sentences, the first of each kind."""
    seen: set[str] = set()
    for raw in raws:
        text = clean(raw)
        if text is not None and key(text) not in seen:
            seen.add(key(text))
            yield CorpusSentence(text, raw.source)


def training(folder: Path) -> list[CorpusSentence]:
    """All sentences below ``folder`` that may be trained on. Errors as for ``sources.read_folder``."""
    return [sentence for sentence in unique(read_folder(folder)) if not is_held_out(sentence.text)]


def choose_held_out(folder: Path) -> list[CorpusSentence]:
    """The sentences that the package's ``held_out.txt`` was made of: of those held out by the hash, the first by another hash."""
    bucket = [
        s
        for s in unique(read_folder(folder))
        if number(s.text) % HELD_OUT_SHARE == 0 and s.source != "phrases" and len(s.text.split()) >= 5
    ]
    return sorted(bucket, key=lambda sentence: number(sentence.text, "evaluation"))[:HELD_OUT_COUNT]


@functools.cache
def _own_keys() -> frozenset[str]:
    return frozenset(key(text) for text in held_out())
