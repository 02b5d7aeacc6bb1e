"""The files of a folder of voices, ``{root}/{name}/{file}``, on a disk or in a bucket that fsspec knows. All methods block.

On a disk a voice appears with one rename, and goes with one, so a killed process leaves none by half. In a bucket ``metadata.json`` is
written last and removed first: a voice without it is none.
"""

import contextlib
import io
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, Protocol

import fsspec

from qwen3_jax.checkpoint.atomic import new_folder, remove_folder, remove_leftovers
from qwen3_jax.checkpoint.folders import expand

REFERENCE, TRANSCRIPT, METADATA = "reference.wav", "transcript.txt", "metadata.json"
FILES = (REFERENCE, TRANSCRIPT, METADATA)
SETTLED_SECONDS = 2.0  # two writes may share one time stamp; a file so old has had its last one before it was read
# As buckets' clients call what changes with the content.
_VERSION = ("ETag", "etag", "md5Hash", "generation", "CRC", "mtime", "LastModified", "last_modified", "modified", "modify", "created")


class Stamp(NamedTuple):
    """A file without its content. Another version is another content."""

    regular: bool
    size: int
    version: tuple[str, ...]


class Found(NamedTuple):
    """What lies in a voice's own folder.

    ``settled``: equal stamps of a later look mean equal contents. ``error``: it could not be looked at.
    """

    stamps: dict[str, Stamp]
    settled: bool = True
    error: OSError | None = None


class Files(Protocol):
    """A folder of voices. All methods raise OSError; one of a voice that is not there FileNotFoundError."""

    address: str  # for people, and to tell folders apart
    nearby: bool  # looking costs next to nothing

    def scan(self) -> dict[str, Found]:
        """Every folder by its name, hidden ones excepted; none if the root is not there."""

    def look(self, name: str) -> Found:
        """One folder."""

    def read(self, name: str, file: str) -> bytes:
        """The content of a file."""

    def open(self, name: str, file: str) -> BinaryIO:
        """A file to read piece by piece, where it lies on a disk; of a bucket, a copy in memory."""

    def exists(self, name: str) -> bool:
        """Whether there is such a voice now."""

    def write(self, name: str, files: dict[str, bytes]) -> None:
        """Make a voice; whole or not at all. Raises ValueError if there is one of that name."""

    def remove(self, name: str) -> None:
        """Delete a voice."""

    def tidy(self) -> None:
        """Remove what killed writers have left."""


def open_files(location: str | os.PathLike[str]) -> Files:
    """A path, whose ``~`` is expanded, or an fsspec address.

    Raises:
        ValueError: nothing, a chain of fsspec's (``a::b``), an address that fsspec does not know, or whose package is missing.
    """
    address = expand(location)
    if not address.strip():
        raise ValueError(f"a folder of voices named {address!r}: give a folder, or an address such as s3://bucket/voices")
    if "::" in address:
        raise ValueError(f"voices in {address}: chains of addresses (a::b) are not taken; give one folder, or one address")
    if "://" not in address:
        return Disk(Path(address))
    try:
        system, root = fsspec.core.url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise ValueError(f"voices in {address}: {error}; give a folder, or an address that fsspec can open here") from error
    if isinstance(system, fsspec.implementations.local.LocalFileSystem):
        return Disk(Path(root))
    return Bucket(system, PurePosixPath(root), address)


class Disk:
    """See ``Files``."""

    nearby = True

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # the working directory may change
        self.address = str(self.root)
        self._was_there = False

    def scan(self) -> dict[str, Found]:
        try:
            names = [name for name in os.listdir(self.root) if not name.startswith(".")]
        except FileNotFoundError:
            if self._was_there:  # taken away for a moment, as an unmounted disk is
                raise
            return {}
        self._was_there = True
        return {name: self.look(name) for name in names}

    def look(self, name: str) -> Found:
        stamps, changed = {}, 0.0
        for file in FILES:
            try:
                info = os.stat(self.root / name / file)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                return Found({}, settled=False, error=error)
            stamps[file] = Stamp(stat.S_ISREG(info.st_mode), info.st_size, (str(info.st_mtime_ns), str(info.st_ctime_ns)))
            changed = max(changed, info.st_ctime)  # nobody can set it
        return Found(stamps, settled=time.time() - changed > SETTLED_SECONDS)

    def read(self, name: str, file: str) -> bytes:
        try:
            return (self.root / name / file).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(str(error)) from error

    def open(self, name: str, file: str) -> BinaryIO:
        try:
            return (self.root / name / file).open("rb")
        except NotADirectoryError as error:
            raise FileNotFoundError(str(error)) from error

    def exists(self, name: str) -> bool:
        return (self.root / name / REFERENCE).exists()

    def write(self, name: str, files: dict[str, bytes]) -> None:
        with new_folder(self.root / name) as folder:
            for file, data in files.items():
                write_file(folder / file, data)

    def remove(self, name: str) -> None:
        remove_folder(self.root / name)

    def tidy(self) -> None:
        remove_leftovers(self.root)


class Bucket:
    """See ``Files``."""

    nearby = False

    def __init__(self, system: Any, root: PurePosixPath, address: str) -> None:
        self._system, self._root = system, root
        self.address = address.rstrip("/")

    def scan(self) -> dict[str, Found]:
        with self._errors():
            self._system.invalidate_cache()
            listed = self._system.find(str(self._root), detail=True)
        found: dict[str, Found] = {}
        for path, info in listed.items():
            name, _, file = str(path)[len(str(self._root)) :].lstrip("/").partition("/")
            if file in FILES and not name.startswith("."):
                version = tuple(f"{key}={info[key]}" for key in _VERSION if info.get(key) is not None)
                found.setdefault(name, Found({})).stamps[file] = Stamp(True, int(info.get("size") or 0), version)
        return {name: one for name, one in found.items() if METADATA in one.stamps}

    def look(self, name: str) -> Found:
        return self.scan().get(name, Found({}))

    def read(self, name: str, file: str) -> bytes:
        with self._errors():
            data: bytes = self._system.cat_file(self._path(name, file))
        return data

    def open(self, name: str, file: str) -> BinaryIO:
        return io.BytesIO(self.read(name, file))

    def exists(self, name: str) -> bool:
        with self._errors():
            self._system.invalidate_cache()
            return bool(self._system.exists(self._path(name, METADATA)))

    def write(self, name: str, files: dict[str, bytes]) -> None:
        if self.exists(name):
            raise ValueError(f"{self.address}/{name} exists; remove it or choose another name")
        with self._errors():
            for file in sorted(files, key=lambda file: file == METADATA):
                self._system.pipe_file(self._path(name, file), files[file])

    def remove(self, name: str) -> None:
        if not self.exists(name):  # some buckets remove what is not there
            raise FileNotFoundError(f"{self.address}/{name}")
        with self._errors():
            self._system.rm_file(self._path(name, METADATA))
            with contextlib.suppress(FileNotFoundError):
                self._system.rm(str(self._root / name), recursive=True)

    def tidy(self) -> None:
        """What has no metadata is no voice, and may be one that is being written."""

    def _path(self, name: str, file: str) -> str:
        return str(self._root / name / file)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            raise
        except Exception as error:  # every bucket's client has errors of its own, with no common class
            raise OSError(f"{self.address}: {type(error).__name__}: {error}") from error


def write_file(path: Path, data: bytes) -> None:
    """Write and flush; the one place where a disk can be full."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
