"""What this machine can do, measured on the spot: bytes a second from memory, float32 operations a second."""

import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import seconds_of

WIDTH = 2048  # of the product that shows the arithmetic's peak


def median_seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Of ``repeats`` calls, after one that is not timed."""
    return statistics.median(seconds_of(call, repeats))


def bandwidth() -> float:
    """Bytes a second at which two threads read an array far larger than the caches."""
    halves = np.array_split(np.ones(1 << 28, np.float32), 2)

    def read() -> None:
        with ThreadPoolExecutor(len(halves)) as pool:
            list(pool.map(lambda half: half.view(np.uint64).max(), halves))

    return sum(half.nbytes for half in halves) / median_seconds(read)


@jax.jit
def _product(x: jax.Array) -> jax.Array:
    return x @ x


def float32_peak() -> float:
    """float32 operations a second of a large square product: the better of NumPy's and XLA's."""
    square = np.ones((WIDTH, WIDTH), np.float32)
    there = jnp.asarray(square)
    return 2 * WIDTH**3 / min(median_seconds(lambda: square @ square), median_seconds(lambda: _product(there)))
