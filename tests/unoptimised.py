"""Programs of the tests that are compiled in half the time, since they run only a few steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def unoptimised() -> Iterator[None]:
    """What is compiled inside is hardly optimised. Only for programs of the training, which no other test runs."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
