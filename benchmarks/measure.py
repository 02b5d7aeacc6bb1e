"""What benchmarks share: how long a call takes, and on which machine."""

import os
import time
from collections.abc import Callable
from typing import Any

import jax


def seconds_of(call: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` calls and their results, after one call that is not timed: it compiles."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - begun)
    return taken


def this_machine() -> str:
    """JAX's first device, how many cores the machine has, and how busy they are."""
    return f"{jax.devices()[0].device_kind} ({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f})"
