"""How a program's memory is kept. On a CPU, generation reads gigabytes a frame and every operation's result is fresh memory.

With pages of 4 kB, page faults and address look-ups are a large part of that: full size, 24 frames on two cores took 8.1 s without and
7.4 s with large ones, a training step of the codec 2.4 s and 1.2 s. One arena for all threads: each keeps the most that it ever held
(a server of ten streams grew by 23 MB a minute in its first two with eight a core, and by 3 with two), and because only the first may be
larger than 64 MB: with a second, a training step's 630 MB of work space were mapped and cleared anew each time, and took 0.95 s, so 0.64 s.
What is freed stays with the process up to a limit. glibc reads the settings when a process starts, hence the restart.
"""

import ctypes
import errno
import gc
import os
import sys

_ONE_ARENA = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"
# A step's work space stays, weights that were read to be converted go: page faults of ten streams fell by six tenths.
TUNABLES = f"{_ONE_ARENA}:glibc.malloc.mmap_threshold={32 << 20}:glibc.malloc.trim_threshold={256 << 20}"
# All of it stays: for training, whose steps ask for the same sizes again and again.
KEEPING = f"{_ONE_ARENA}:glibc.malloc.mmap_threshold={4 << 30}:glibc.malloc.trim_threshold={16 << 30}"
_PR_SET_THP_DISABLE = 41  # linux/prctl.h


def restart_with_large_pages(tunables: str = TUNABLES) -> None:
    """On Linux, start this program anew in its place (same process, same arguments) with glibc's ``tunables`` and one thread for NumPy.

    To be called first thing, before anything heavy is imported. Nothing happens elsewhere, or when GLIBC_TUNABLES is set
    already: so a second call returns, and a user's own value counts.
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = tunables
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads spin beside XLA's: on two busy cores a batch took 5.1 s, so 0.4 s
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def give_back() -> None:
    """Free what Python's youngest garbage holds. On Linux with glibc, give what is free back to the system, at once and all of it."""
    gc.collect(0)  # JAX lets go of NumPy's memory that it took over when Python next collects garbage
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def settle(size: int = 96 << 20) -> None:
    """On Linux, give back what is free, and have the heap grow by ``size`` bytes, with pages behind them, for what comes later.

    To be called when a server is warm. Compiling left one of ten streams 620 MB of free pieces. Work spaces of steps that overlap,
    and what little lies between them, made it grow by 14 MB three times in its first four minutes, and not afterwards. What is large by
    then stays so, but no more pages are made large: the kernel (khugepaged) made them of what had been given back, 20 to 67 MB a minute,
    while no more than 339 MB were in use.
    """
    import numpy as np  # not before the restart

    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    give_back()
    _large_pages(libc, True)
    piece = 16 << 20  # below the size from which a block is given back by itself
    pieces = [np.ones(piece, np.uint8) for _ in range(size // piece)]
    pieces.clear()  # all at once: side by side they are one free block
    _large_pages(libc, False)


def _large_pages(libc: ctypes.CDLL, wanted: bool) -> None:
    """Whether the kernel may make pages of this process large from now on. Some sandboxes forbid or do not know the call; then it may."""
    refused = libc.prctl(_PR_SET_THP_DISABLE, *map(ctypes.c_ulong, (not wanted, 0, 0, 0)))
    if refused and (error := ctypes.get_errno()) not in (errno.EPERM, errno.EINVAL):
        raise OSError(error, os.strerror(error))
