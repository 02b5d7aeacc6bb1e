"""Write a whole folder or nothing: work goes into a temporary sibling that is renamed when everything is on the disk."""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen3_jax.runtime.extras import NotHere

try:
    import fcntl
except ModuleNotFoundError as error:
    raise NotHere("qwen3-jax runs on Linux and macOS, and this Python has no fcntl: on Windows, install it in WSL") from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on a clean exit it becomes ``folder``, otherwise it is removed.

    A process that is killed leaves only its temporary folder, ``.NAME.partial-XXXX``, which the next call for the same
    ``folder`` removes. A folder that a living process is writing is locked, and left alone.

    Raises:
        ValueError: ``folder`` exists and is not empty.
    """
    folder = folder.absolute()
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    temporary = Path(tempfile.mkdtemp(prefix=_prefix(folder), dir=folder.parent))
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        temporary.chmod(0o755)  # mkdtemp makes 0700
        yield temporary
        _sync(temporary)
        check_free(folder)
        os.rename(temporary, folder)  # an empty folder of that name is replaced
        _sync_one(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _prefix(folder: Path) -> str:
    return f".{folder.name}.partial-"


def check_free(folder: Path) -> None:
    """Raise ValueError if ``folder`` exists and is not an empty folder, or is a link, which a rename does not follow."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; remove it or choose another name")
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link: give the folder that it stands for, {os.path.realpath(folder)}, or remove it")


def remove_folder(folder: Path) -> None:
    """Remove a whole folder, or the link that stands for one: it is renamed first, so that nobody sees half of it.

    Raises:
        FileNotFoundError: there is none, or another process was faster.
        OSError: it cannot be renamed; or it was, and something in it cannot be removed.
    """
    hidden = folder.with_name(f"{_prefix(folder)}{secrets.token_hex(4)}")
    os.rename(folder, hidden)
    _remove([hidden])


def remove_leftovers(parent: Path) -> None:
    """Remove what killed writers of any folder in ``parent`` have left; none if there is no such folder."""
    if parent.is_dir():
        _remove([path for path in parent.iterdir() if path.name.startswith(".") and ".partial-" in path.name and path.is_dir()])


def _remove_stale(folder: Path) -> None:
    _remove([path for path in folder.parent.iterdir() if path.name.startswith(_prefix(folder))])


def _remove(leftovers: list[Path]) -> None:
    for leftover in leftovers:
        with contextlib.suppress(FileNotFoundError):  # another process removes it as well
            if leftover.is_symlink():
                leftover.unlink()
            else:
                _remove_unlocked(leftover)


def _remove_unlocked(leftover: Path) -> None:
    lock = os.open(leftover, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(leftover)
    except BlockingIOError:
        pass  # whoever writes or removes it lives
    finally:
        os.close(lock)


def _sync(folder: Path) -> None:
    """Force every file and folder below ``folder`` to the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            _sync_one(Path(root, name))
        _sync_one(Path(root))


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
