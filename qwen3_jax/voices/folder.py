"""One folder of voices, ``{root}/{name}/{reference.wav, transcript.txt, metadata.json}`` -> a Listing of StoredVoice.

The layout is that of the specification's 6.2.1. ``transcript.txt`` may be missing (x-vector cloning), ``metadata.json`` too. A voice that
cannot be used is left out and named, with the reason; it never hides others.
"""

import errno
import hashlib
import os
import unicodedata
from typing import BinaryIO, NamedTuple

import msgspec

from qwen3_jax.audio import recording
from qwen3_jax.messages import printable
from qwen3_jax.text.files import decode
from qwen3_jax.voices.files import METADATA, REFERENCE, TRANSCRIPT, Files, Found, Stamp, open_files
from qwen3_jax.voices.voice import spelling

MAX_ID, MAX_ID_BYTES = 64, 200  # characters; in UTF-8, so that a temporary sibling's name fits into 255 bytes
ID_RULE = "an id is 1 to 64 letters, digits, spaces, _ . - (of any script); it begins with a letter or digit and does not end with a space"
MAX_REFERENCE, MAX_TEXT = 100 * 1024 * 1024, 1024 * 1024  # bytes
_LASTING = (PermissionError, IsADirectoryError, NotADirectoryError)  # a voice's own fault, not a moment's of the disk
_LASTING_CODES = (errno.ELOOP, errno.ENAMETOOLONG)


class VoiceGone(FileNotFoundError):
    """A voice that was listed is not there any more. The message has no path: a client may read it."""


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """``metadata.json``; unknown fields are left alone. The last three are the server's."""

    name: str = ""
    language: str = ""
    description: str = ""
    licence: str = ""
    consent: str = ""
    owner: str = ""  # a principal; empty: everybody's
    created: str = ""
    duration_seconds: float = 0.0


class StoredVoice(msgspec.Struct, frozen=True, kw_only=True):
    """One voice. ``id`` is its own folder's name in NFC; ``revision`` changes with the recording and with the transcript."""

    id: str
    metadata: Metadata
    transcript: str | None
    revision: str
    folder: str = ""  # the address of the folder of voices
    name: str = ""  # of its own folder

    @property
    def mode(self) -> str:
        """``icl`` (the transcript is known) or ``xVector``."""
        return "xVector" if self.transcript is None else "icl"

    def visible_to(self, principal: str | None) -> bool:
        """Built-in voices are everybody's; others their owner's alone."""
        return not self.metadata.owner or self.metadata.owner == principal


class Listing(NamedTuple):
    """The voices that are there.

    ``left_out``: what looks like a voice and cannot be used, name -> why. ``troubles``: what could not be looked at just now.
    """

    voices: dict[str, StoredVoice]
    left_out: dict[str, str]
    troubles: tuple[str, ...] = ()

    def find(self, name: str) -> StoredVoice | None:
        """The voice of that id, in any Unicode form; else the only one whose id differs by case alone."""
        if len(name) > 4 * MAX_ID:  # no form of an id, and a client's: normalising it would take time
            return None
        found = spelling(_composed(name), self.voices)
        return None if found is None else self.voices[found]

    def default(self, wanted: str) -> StoredVoice | None:
        """The voice of that id, else the first; None if there is none."""
        return self.find(wanted) or next(iter(self.voices.values()), None)


class _Known(NamedTuple):
    """What was made of a folder: a voice, a fault, or neither if it is no voice at all."""

    stamps: dict[str, Stamp]
    settled: bool
    voice: StoredVoice | None = None
    fault: str | None = None


class VoiceFolder:
    """A folder of voices that may be looked at again and again: only what has changed is read.

    Args:
        location: a path, or an address that fsspec knows. It need not exist.

    Raises:
        ValueError: an address that cannot be opened here.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.files: Files = open_files(location)
        self._known: dict[str, _Known] = {}

    def __str__(self) -> str:
        return self.address

    @property
    def address(self) -> str:
        """The absolute path, or the bucket's address."""
        return self.files.address

    def look(self) -> Listing:
        """The voices as they are now; of one that cannot be read just now what is known of it stands.

        Raises:
            OSError: the folder itself cannot be listed.
        """
        found = self.files.scan()
        known: dict[str, _Known] = {}
        voices: dict[str, StoredVoice] = {}
        left_out: dict[str, str] = {}
        troubles: list[str] = []
        for name in sorted(found, key=lambda name: (_composed(name) != name, name)):
            before = self._known.get(name)
            if before is not None and before.settled and before.stamps == found[name].stamps:
                one = before
            else:
                one = self._look_at(name, found[name], before, troubles)
            if one.voice is not None and one.voice.id in voices:
                where = printable(self._path(name))
                one = one._replace(
                    voice=None, fault=f"{where} has the name of another voice in another Unicode form: rename one of the two"
                )
            known[name] = one
            if one.voice is not None:
                voices[one.voice.id] = one.voice
            elif one.fault is not None:
                left_out[_composed(name)] = one.fault
        self._known = known
        return Listing(dict(sorted(voices.items())), left_out, tuple(troubles))

    def voice(self, name: str) -> StoredVoice:
        """The voice in the folder of that name, whether that is an id or not.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it cannot be used; says why.
            OSError: it cannot be read.
        """
        found = self.files.look(name)
        if found.error is not None:
            raise found.error
        voice = self._read(name, found.stamps)
        if voice is None:
            raise FileNotFoundError(f"{self._path(name)} is not a voice: it has no {REFERENCE}")
        return voice

    def reference(self, voice: StoredVoice) -> bytes:
        """The recording, a WAV file.

        Raises:
            VoiceGone: the voice is not there any more.
            OSError: it cannot be read.
        """
        try:
            return self.files.read(voice.name, REFERENCE)
        except FileNotFoundError as error:
            raise VoiceGone(f"voice {voice.id!r} is not here any more") from error

    def open_reference(self, voice: StoredVoice) -> BinaryIO:
        """The same, to be read piece by piece."""
        try:
            return self.files.open(voice.name, REFERENCE)
        except FileNotFoundError as error:
            raise VoiceGone(f"voice {voice.id!r} is not here any more") from error

    def _path(self, name: str, file: str = "") -> str:
        return f"{self.address}/{name}{file and '/'}{file}"

    def _look_at(self, name: str, found: Found, before: _Known | None, troubles: list[str]) -> _Known:
        try:
            if found.error is not None:
                raise found.error
            if REFERENCE in found.stamps and not is_id(name):
                raise ValueError(f"{self._path(name)}: {name!r} is no id: {ID_RULE}; rename the folder")
            return _Known(found.stamps, found.settled, self._read(name, found.stamps))
        except FileNotFoundError:  # removed while we looked
            return _Known({}, False)
        except ValueError as error:
            return _Known(found.stamps, found.settled, fault=printable(str(error)))
        except OSError as error:
            fault = printable(f"{self._path(name)} cannot be read: {error.strerror or error}")
            if isinstance(error, _LASTING) or error.errno in _LASTING_CODES:
                hint = f"{fault}; make its files readable, or remove it" if is_id(name) else None  # lost+found is no voice
                return _Known({}, False, fault=hint)
            troubles.append(fault)
            voice = None if before is None else before.voice
            return _Known({}, False, voice, None if voice else f"{fault}; it is tried again")

    def _read(self, name: str, stamps: dict[str, Stamp]) -> StoredVoice | None:
        """The voice; None if the folder is none. Raises ValueError with the reason to leave it out, or OSError."""
        if REFERENCE not in stamps:
            if stamps:
                raise ValueError(f"{self._path(name)} has no {REFERENCE}: put the recording there, or remove the folder")
            return None
        for file, stamp in stamps.items():
            most = MAX_REFERENCE if file == REFERENCE else MAX_TEXT
            if not stamp.regular:
                raise ValueError(f"{self._path(name, file)} is not a file: remove it, or put the right file there")
            if stamp.size > most:
                raise ValueError(f"{self._path(name, file)} has {stamp.size:,} bytes: at most {most:,} are read")
        metadata = self._metadata(name) if METADATA in stamps else Metadata()
        transcript = self._transcript(name) if TRANSCRIPT in stamps else None
        content, told = f"{stamps[REFERENCE]}".encode(), bool(stamps[REFERENCE].version) and not self.files.nearby
        if not told or not metadata.duration_seconds:
            sound = self.files.read(name, REFERENCE)
            metadata = msgspec.structs.replace(metadata, duration_seconds=self._seconds(name, sound))
            content = content if told else sound  # a bucket tells whether the content has changed
        return StoredVoice(
            id=_composed(name),
            metadata=metadata,
            transcript=transcript,
            revision=revision(content, transcript),
            folder=self.address,
            name=name,
        )

    def _metadata(self, name: str) -> Metadata:
        where = self._path(name, METADATA)
        text = decode(self.files.read(name, METADATA), where)
        try:
            return msgspec.json.decode(text, type=Metadata)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(f"{where} is not a voice's metadata ({error}): mend it, or remove it") from error

    def _transcript(self, name: str) -> str:
        where = self._path(name, TRANSCRIPT)
        words = decode(self.files.read(name, TRANSCRIPT), where).strip()
        if not words:
            raise ValueError(f"{where} is empty: write what the reference says, or remove the file for x-vector cloning")
        return words

    def _seconds(self, name: str, content: bytes) -> float:
        """How long it is, by its header."""
        try:
            return round(recording.length(content), 3)
        except recording.Refusal as error:
            raise ValueError(f"{self._path(name, REFERENCE)}: {error}") from error


def revision(content: bytes, transcript: str | None) -> str:
    """What tells a recording with its transcript from others, 16 hex digits."""
    digest = hashlib.sha256(content)
    digest.update(b"" if transcript is None else f"\0{transcript}".encode())
    return digest.hexdigest()[:16]


def is_id(name: str) -> bool:
    """Whether a folder of that name can be a voice; see ``ID_RULE``."""
    name = _composed(name)
    kinds = [unicodedata.category(character)[0] for character in name]
    return (
        1 <= len(name) <= MAX_ID
        and kinds[0] in "LN"
        and all(kind in "LMN" or character in " _.-" for kind, character in zip(kinds, name, strict=True))
        and not name.endswith(" ")
        and len(name.encode()) <= MAX_ID_BYTES
    )


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
