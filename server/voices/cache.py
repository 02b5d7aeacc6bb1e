"""What engines make of recordings, kept in the user's cache folder: a name and bytes -> one file, with a checksum in front.

Everything here can be made again, so nothing here fails: what is damaged or unreadable counts as missing, and where nothing can be
written the server works without. All methods block, and may run in several threads and processes at once.
"""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from qwen3_jax.checkpoint.folders import cache_folder, write_whole

MAX_FILES, MAX_BYTES = 4096, 256 * 1024 * 1024  # what was used least recently goes
_DIGEST = hashlib.sha256().digest_size
log = logging.getLogger(__name__)


class Name(NamedTuple):
    """What a prompt belongs to. Each part is hashed, so that nothing of a user's becomes part of a path."""

    folder: str  # the address of the folder of voices
    voice: str  # the id
    content: str  # the recording's and its transcript's digest
    model: str  # the fingerprint

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{voice_prefix(self.folder, self.voice)}{_hash(self.content)}-{_hash(self.model)}.prompt"


class PromptCache:
    """Files in one folder.

    Args:
        folder: default: ``prompts`` in the user's cache folder. It is made when there is something to keep.
    """

    def __init__(self, folder: Path | None = None) -> None:
        base = cache_folder()
        self._folder = folder if folder is not None or base is None else base / "prompts"
        self._told: set[str] = set()

    def load(self, name: Name) -> bytes | None:
        """What ``save`` kept; None if there is none, or none that can be read."""
        if self._folder is None:
            return None
        path = self._folder / name.file
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell(path.name, f"the kept prompt of voice {name.voice} cannot be read and is made anew: {error}")
            return None
        if data[:_DIGEST] != hashlib.sha256(data[_DIGEST:]).digest():
            log.warning("the kept prompt of voice %s is damaged and is made anew: %s", name.voice, path)
            return None
        with contextlib.suppress(OSError):  # a read-only disk
            os.utime(path)
        return data[_DIGEST:]

    def save(self, name: Name, data: bytes) -> None:
        """Keep a prompt. Those that other recordings of the same voice have left go, and, if there are too many, the oldest of all."""
        if self._folder is None:  # cache_folder has said so
            return
        path = self._folder / name.file
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # a voice is its speaker's own
            if path.is_dir():
                _unlink(path)
            write_whole(path, hashlib.sha256(data).digest() + data)
        except OSError as error:
            why = f"prompts of voices are not kept in {self._folder}: {error.strerror or error}"
            self._tell("save", f"{why}; make it a folder that can be written to, or set XDG_CACHE_HOME to another")
            return
        same_content = path.name.rpartition("-")[0]
        prefix = voice_prefix(name.folder, name.voice)
        self._remove(other for other in self._names() if other.startswith(prefix) and not other.startswith(same_content))
        self._bound()

    def discard(self, folder: str, voice: str) -> None:
        """Remove what there is of a voice."""
        prefix = voice_prefix(folder, voice)
        self._remove(name for name in self._names() if name.startswith(prefix))

    def keep_only(self, folder: str, voices: Iterable[str]) -> None:
        """Remove what there is of all other voices of that folder."""
        here, known = f"{_hash(folder)}-", tuple(voice_prefix(folder, voice) for voice in voices)
        self._remove(name for name in self._names() if name.startswith(here) and not name.startswith(known))

    def _names(self) -> list[str]:
        if self._folder is None:
            return []
        try:
            return os.listdir(self._folder)
        except OSError:
            return []

    def _remove(self, names: Iterable[str]) -> None:
        if self._folder is None:
            return
        for name in names:
            try:
                _unlink(self._folder / name)
            except OSError as error:
                self._tell(name, f"{self._folder / name} cannot be removed: {error.strerror or error}; remove it by hand")

    def _bound(self) -> None:
        """The partial files of killed processes count as well: they are the oldest one day."""
        assert self._folder is not None
        ages = []
        for name in self._names():
            try:
                info = os.stat(self._folder / name)
            except OSError:
                continue
            ages.append((info.st_mtime, info.st_size, name))
        files, size = len(ages), sum(age[1] for age in ages)
        for _, bytes_of, name in sorted(ages):
            if files <= MAX_FILES and size <= MAX_BYTES:
                return
            self._remove([name])
            files, size = files - 1, size - bytes_of

    def _tell(self, what: str, message: str) -> None:
        """Log it, once."""
        if what not in self._told:
            self._told.add(what)
            log.warning("%s", message)


def _unlink(path: Path) -> None:
    """Remove a file, or a folder that stands where one should be; another process may be faster."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def voice_prefix(folder: str, voice: str) -> str:
    """How the names of a voice's files begin."""
    return f"{_hash(folder)}-{_hash(voice)}-"


def _hash(part: str) -> str:
    return hashlib.sha256(part.encode("utf-8", "surrogateescape")).hexdigest()[:16]
