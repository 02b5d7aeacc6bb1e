"""The user's folders: where caches and data of this package lie.

A user without a home (no HOME, no entry in passwd), or with one that cannot be written to, has a cache in the temporary folder, or none,
and no data. One line of the log says so.
"""

import contextlib
import errno
import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path

OWN = "qwen3-jax"
PARTIAL = ".partial"  # how the names of files in a cache end that are being written
log = logging.getLogger(__name__)
_said: set[str] = set()  # what this process has logged of them


def cache_folder() -> Path | None:
    """For what can be made again: ``$XDG_CACHE_HOME/qwen3-jax``, else ``~/.cache/qwen3-jax``; it is made if need be.

    Where that cannot be, a folder of this user's alone in the temporary folder. None: nothing can be kept.
    """
    wanted = _base("XDG_CACHE_HOME", ".cache")
    why = "this user has no home" if wanted is None else trouble_with(wanted)
    if why is None:
        return wanted
    advice = "set XDG_CACHE_HOME to a folder that can be written to"
    try:
        spare = _temporary()
    except OSError as error:
        say_once(f"{why}: compiled programs and prompts of voices are not kept ({error.filename}: {error.strerror}); {advice}")
        return None
    say_once(f"{why}: compiled programs and prompts of voices are kept in {spare}; {advice}")
    return spare


def data_folder() -> Path | None:
    """For what is the user's: ``$XDG_DATA_HOME/qwen3-jax``, else ``~/.local/share/qwen3-jax``. It need not exist. None: no home."""
    return _base("XDG_DATA_HOME", ".local/share")


def expand(location: str | os.PathLike[str]) -> str:
    """A path, or an address, with a leading ``~`` or ``~user`` as the shell has it; a user that nobody knows stays as it is."""
    return os.path.expanduser(os.fspath(location))


def home_path(location: str | os.PathLike[str]) -> Path:
    """The same as a Path: the parser of every option that names a file or a folder. The shell leaves ``--option=~/x`` as it is."""
    return Path(expand(location))


def trouble_with(folder: Path, needs: int = os.R_OK | os.W_OK | os.X_OK) -> str | None:
    """Why a folder cannot be used, in words; None if it can. It is made if need be.

    Args:
        needs: what must be allowed in it, as ``os.access`` has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{folder} cannot be made ({error.strerror})"
    return None if os.access(folder, needs) else f"{folder} cannot be {'written to' if needs & os.W_OK else 'read'}"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file of a cache, so that nobody sees half of it. A process that is killed leaves a file whose name ends with ``PARTIAL``.

    Raises:
        OSError: it cannot be written; then what was there before stands.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}{PARTIAL}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def say_once(message: str, kind: str | None = None) -> None:
    """Log a warning, once in a process; of a ``kind`` of warnings the first."""
    if (kind or message) not in _said:
        _said.add(kind or message)
        log.warning("%s", message)


def _base(variable: str, below_home: str) -> Path | None:
    chosen = os.environ.get(variable, "")
    if os.path.isabs(chosen):  # the XDG specification: a relative path is to be ignored
        return Path(chosen) / OWN
    home = expand("~")
    return Path(home) / below_home / OWN if os.path.isabs(home) else None


def _temporary() -> Path:
    """This user's own folder in the temporary folder. Raises OSError if there is none, or another user may have put something there:

    what is read from the cache of compiled programs is run.
    """
    folder = Path(tempfile.gettempdir()) / f"{OWN}-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "it is no folder of this user's alone", str(folder))
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "it cannot be written to", str(folder))
    return folder
