"""Large pages for a program's memory. On a CPU, generation reads gigabytes a frame and every operation's result is fresh memory.

With pages of 4 kB, page faults and address look-ups are a large part of that: full size, 24 frames on two cores took 8.1 s without and
7.4 s with this, a training step of the codec 2.4 s and 1.2 s. Two arenas for all threads, because each keeps the most that it ever
held: a server of ten streams grew by 23 MB a minute in its first two with eight a core, and by 3 so. glibc reads the settings when a
process starts, hence the restart.
"""

import os
import sys

TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=2"
# Freed blocks stay with the process too: for training, whose steps ask for the same sizes again and again.
KEEPING = f"{TUNABLES}:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"


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
