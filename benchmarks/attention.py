"""Attention of one query per head on a CPU: the kernel, beside XLA's own operations. Prints a table.

usage: python -m benchmarks.attention [--rows 1,8] [--columns 256] [--seen 64,128,256] [--layers 28] [--heads 8] [--queries 2] [--size 128]

Each line of the table goes through the KV caches of all layers once, in one program; the least of seven goes counts. A row sees the first
columns; "bytes a second" are those of the keys and values that are seen, in float32.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measure import seconds_of, this_machine
from qwen3_jax.kernels import attention as kernel
from qwen3_jax.kernels import library
from qwen3_jax.model.layers import mix_on_cpu
from qwen3_jax.runtime.allocation import TUNABLES, restart_with_large_pages

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]  # q [B J G D], k and v [B J S D], mask [B S] -> [B J G D]


def by_xla(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """As the kernel, without it."""
    return mix_on_cpu(q[:, :, :, None], k, v, mask[:, None])[:, :, :, 0]


def seconds(attend: Attend, query: jax.Array, layers: list[tuple[jax.Array, jax.Array]], mask: jax.Array) -> float:
    """The least time of seven in which the query went through all layers."""

    @jax.jit
    def go(query: jax.Array, layers: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
        for k, v in layers:  # each waits for the one before
            query = query + 1e-6 * attend(query, k, v, mask)
        return query

    return min(seconds_of(lambda: go(query, layers), 7))


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=[1, 8], type=numbers)
    parser.add_argument("--columns", default=256, type=int)
    parser.add_argument("--seen", default=[64, 128, 256], type=numbers, help="columns that each row sees")
    parser.add_argument("--layers", default=28, type=int)
    parser.add_argument("--heads", default=8, type=int, help="of keys and values")
    parser.add_argument("--queries", default=2, type=int, help="heads of queries for each of them")
    parser.add_argument("--size", default=128, type=int, help="of a head")
    given = parser.parse_args()
    if not all(0 < seen <= given.columns for seen in given.seen):
        parser.error(f"--seen {given.seen}: from 1 to the {given.columns} of --columns")
    restart_with_large_pages(TUNABLES)
    found = library.in_use()
    if found.instructions is None:
        raise SystemExit(f"there are no compiled kernels to measure: {found.why_not}")
    machine = f"{this_machine()}, jax {jax.__version__}"
    table = Table(
        "rows x columns, seen", "XLA, ms", f"{found.instructions}, ms", "bytes a second", title=f"{machine}, {given.layers} layers"
    )
    random = np.random.RandomState(0)
    for rows in given.rows:
        shape = (rows, given.heads, given.columns, given.size)
        made = [jnp.asarray(random.standard_normal(shape).astype(np.float32)) for _ in range(2 * given.layers)]
        layers = list(zip(made[::2], made[1::2], strict=True))
        query = jnp.asarray(random.standard_normal((rows, given.heads, given.queries, given.size)).astype(np.float32))
        for seen in given.seen:
            mask = jnp.broadcast_to(jnp.arange(given.columns) < seen, (rows, given.columns))
            xla, own = (seconds(attend, query, layers, mask) for attend in (by_xla, kernel.attend))
            read = 4 * 2 * given.layers * rows * given.heads * seen * given.size
            name = f"{rows} x {given.columns}, {seen}"
            table.add_row(name, f"{1e3 * xla:.2f}", f"{1e3 * own:.2f}", f"{read / own / 1e9:.0f} GB")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
