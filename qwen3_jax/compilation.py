"""JAX's persistent compilation cache, on by default in the user's cache folder: a program is compiled once per machine.

All programs, the small ones as well: a server that finds every one begins in 4.7 s, one that finds only what took half a second in 8.4 s.
"""

import contextlib
import logging
import os
import time
from pathlib import Path

import jax

from qwen3_jax.folders import cache_folder

log = logging.getLogger(__name__)
_MISS = "/jax/compilation_cache/cache_misses"  # a program was compiled and written to the cache
_misses = 0


def use_persistent_cache() -> None:
    """Point JAX at the user's cache folder, unless the user has chosen one (JAX_COMPILATION_CACHE_DIR) already; keep all programs there,
    unless the user has said which (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS)."""
    if jax.config.jax_compilation_cache_dir is None:
        base = cache_folder()
        if base is None:
            log.warning("compiled programs are not kept: this user has no home; set XDG_CACHE_HOME to a folder that can be written to")
            return
        jax.config.update("jax_compilation_cache_dir", str(base / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def folder() -> Path | None:
    """Where compiled programs are kept; None if nowhere, or not on a file system."""
    chosen = jax.config.jax_compilation_cache_dir
    return Path(chosen) if chosen and "://" not in chosen else None


def drop_unfinished(seconds: float = 1.0) -> None:
    """Remove entries that were written in the last ``seconds``, before a process ends in the midst of compiling.

    JAX writes an entry in place, so the last one may be half there, and every later start would stumble over it.
    """
    if (kept := folder()) is None or not kept.is_dir():
        return
    for path in kept.iterdir():
        with contextlib.suppress(OSError):  # another process was faster, or owns it
            if path.suffix != ".json" and path.is_file() and time.time() - path.stat().st_mtime < seconds:
                path.unlink()


def compiled() -> int:
    """Programs that this process has compiled and put into the cache, since this module was imported."""
    return _misses


def _count(event: str, **_: str | int) -> None:
    global _misses
    _misses += event == _MISS


jax.monitoring.register_event_listener(_count)
