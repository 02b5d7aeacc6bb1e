"""Entries of JAX's persistent compilation cache: each is written whole, and one that cannot be read is removed and compiled again.

JAX (0.10.2) writes an entry in place and never over another. So one that is cut off, empty or scrambled (a kill, a power loss) would be
a warning and a compilation at every later start.
"""

import contextlib
import os
import time
import zlib
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache
from jax._src.compilation_cache_interface import CacheInterface
from jax._src.lru_cache import LRUCache

from qwen3_jax.checkpoint.folders import PARTIAL, say_once, write_whole

STALE_SECONDS = 3600.0  # after which nobody writes at an entry any more
_jax_open, _jax_read = compilation_cache.get_file_cache, compilation_cache.get_executable_and_time
_zstd = getattr(compilation_cache, "zstandard", None)  # JAX compresses with it where it is installed
_DAMAGED: tuple[type[Exception], ...] = (zlib.error, ValueError, RuntimeError, *(() if _zstd is None else (_zstd.ZstdError,)))


def install() -> None:
    """Put our functions in the place of JAX's, which has no switches for them."""
    compilation_cache.get_file_cache, compilation_cache.get_executable_and_time = _open, _read


class WholeEntries(CacheInterface):
    """JAX's cache of files, with writing that nobody sees half of."""

    def __init__(self, cache: LRUCache) -> None:
        self._cache, self._path = cache, cache._path

    def get(self, key: str) -> bytes | None:
        """The entry, as JAX has compressed it; None if there is none."""
        return self._cache.get(key)

    def put(self, key: str, value: bytes) -> None:
        """Keep an entry. Where it cannot be written, one line of the log says so."""
        path = _file(Path(self._path), key)
        try:
            write_whole(path, value)
        except OSError as error:
            say_once(
                f"compiled programs are not kept in {path.parent} ({error.strerror or error}): "
                "make it a folder that can be written to, or set JAX_COMPILATION_CACHE_DIR to another",
                "entries that cannot be written",
            )


def _open(path: str) -> Any:
    found = _jax_open(path)
    if found is None or type(found[0]) is not LRUCache or found[0].eviction_enabled or "://" in path:
        return found  # JAX's own writing: with a limit of its size, or to a bucket
    _sweep(Path(path))
    return WholeEntries(found[0]), path


def _read(cache_key: str, *how: Any, **named: Any) -> tuple[Any, int | None]:
    """JAX's reading; what cannot be read is no entry."""
    try:
        return _jax_read(cache_key, *how, **named)
    except OSError as error:  # it may be there again
        _say(cache_key, error, "they are compiled again")
    except _DAMAGED as error:
        kept = Path(jax.config.jax_compilation_cache_dir)
        for path in (_file(kept, cache_key), kept / f"{cache_key}-atime"):
            with contextlib.suppress(OSError):  # another process was faster, or owns it; or it lies in a bucket
                path.unlink()
        _say(cache_key, error, "they are removed and compiled again")
    return None, None


def _say(key: str, error: Exception, what_is_done: str) -> None:
    program, why = key.rpartition("-")[0], " ".join(str(error).split())
    say_once(
        f"compiled programs in {jax.config.jax_compilation_cache_dir} cannot be read, {program} for one "
        f"({type(error).__name__}: {why}): {what_is_done}",
        "entries that cannot be read",
    )


def _file(kept: Path, key: str) -> Path:
    return kept / f"{key}-cache"


def _sweep(kept: Path) -> None:
    """Remove what killed processes have left half-written."""
    with contextlib.suppress(OSError):  # a folder that cannot be listed
        for path in os.scandir(kept):
            if path.name.endswith(PARTIAL) and time.time() - path.stat().st_mtime > STALE_SECONDS:
                os.unlink(path)
