"""Products of rows and int8 weights on a CPU: the kernel, beside XLA's own operations. Prints a table.

usage: python -m benchmarks.int8 [--rows 1,2,4,8,16,64] [--outputs 3072] [--inputs 1024] [--matrices 40] [--json OUT]

Each row of the table goes through all matrices once, in one program; the least of five goes counts. Bounds, measured before the table:
memory, the bytes a second at which XLA sums a gigabyte; arithmetic, the products a second of 64 rows with a matrix that stays in the
cache, of the kernel and of XLA in float32. A fraction is of the bound that comes first.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.engine import bandwidth
from benchmarks.measure import seconds_of, this_machine
from qwen3_jax.kernels import int8_matmul as kernel
from qwen3_jax.kernels import library
from qwen3_jax.model.int8 import by_xla
from qwen3_jax.runtime.allocation import TUNABLES, restart_with_large_pages

Product = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
CACHED, CACHED_ROWS = 512, 64  # a matrix of so many inputs and outputs stays in a core's cache


def seconds(product: Product, rows: int, outputs: int, inputs: int, matrices: int, turns: int = 1) -> float:
    """The least time of five in which ``rows`` went through all the matrices, ``turns`` times."""
    random = np.random.RandomState(0)
    weights = [jnp.asarray(random.randint(-127, 128, (outputs, inputs)).astype(np.int8)) for _ in range(matrices)]
    scale = jnp.full(outputs, 1e-2)

    @jax.jit
    def go(x: jax.Array, weights: list[jax.Array]) -> jax.Array:
        def turn(_: int, x: jax.Array) -> jax.Array:
            for weight in weights:  # each waits for the one before
                x = x + 1e-6 * product(x, weight, scale)[:, :1]
            return x

        return jax.lax.fori_loop(0, turns, turn, x)

    x = jnp.asarray(random.standard_normal((rows, inputs)).astype(np.float32))
    return min(seconds_of(lambda: go(x, weights), 5))


def arithmetic(product: Product) -> float:
    """Products a second of CACHED_ROWS rows with a matrix in the cache."""
    turns = 50
    return turns * CACHED_ROWS * CACHED**2 / seconds(product, CACHED_ROWS, CACHED, CACHED, 1, turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,2,4,8,16,64", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--outputs", type=int, default=3072)
    parser.add_argument("--inputs", type=int, default=1024)
    parser.add_argument("--matrices", type=int, default=40, help="of that size; all of them should be far larger than the cache")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    restart_with_large_pages(TUNABLES)
    console = Console(width=140)
    found = library.in_use()
    if found.instructions is None:
        raise SystemExit(f"there are no compiled kernels to measure: {found.why_not}")
    rate, peak, wide = bandwidth(), arithmetic(kernel.multiply), arithmetic(by_xla)
    machine = f"{this_machine()}, jax {jax.__version__}"
    console.print(
        f"{machine}, {found.instructions}: "
        f"memory {rate / 1e9:.0f} GB/s, arithmetic {peak / 1e9:.0f} G products/s, XLA in float32 {wide / 1e9:.0f}",
        highlight=False,
    )
    size = f"{given.matrices} matrices of {given.outputs} x {given.inputs}"
    table = Table("rows", "G weights/s", "G products/s", "bound", "of the bound", "XLA, G weights/s", "times XLA", title=size)
    weights = given.outputs * given.inputs * given.matrices
    results: dict[str, Any] = {"instructions": found.instructions, "memory": rate, "arithmetic": peak, "xla_arithmetic": wide, "rows": {}}
    timed = functools.partial(seconds, outputs=given.outputs, inputs=given.inputs, matrices=given.matrices)
    for rows in given.rows:
        ours, theirs = weights / timed(kernel.multiply, rows), weights / timed(by_xla, rows)
        bound = min(rate, peak / rows)
        name = "memory" if bound == rate else "arithmetic"
        results["rows"][rows] = {"weights": ours, "xla_weights": theirs, "of_the_bound": ours / bound, "bound": name}
        cells = (
            f"{ours / 1e9:.1f}",
            f"{rows * ours / 1e9:.0f}",
            name,
            f"{ours / bound:.2f}",
            f"{theirs / 1e9:.1f}",
            f"{ours / theirs:.1f}",
        )
        table.add_row(str(rows), *cells)
    console.print(table)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
