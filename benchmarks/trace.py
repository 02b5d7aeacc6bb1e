"""Where a step of the engine spends its time: jax's profiler over a few launches, operations by what they take. Prints a table.

usage: python -m benchmarks.trace --model CHECKPOINT [--slots 10] [--columns 512] [--frames 4] [--dtype ...] [--rows 15] [--keep DIR]

Operations are XLA's, after fusion; loops and branches are left out, for what they run is there. A second table adds them up by kind (CPU:
ffi_call: products with int8 weights; ynn_fusion, dot: float32 products and convolutions). On a CPU several threads run them, so their
sum may exceed the step's time, and writing the trace slows the step itself. ``--keep`` leaves the whole trace for XProf or Perfetto.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks.engine import occupy, request
from qwen3_jax.checkpoint import hub
from qwen3_jax.engine import JaxDevice
from qwen3_jax.model.model import DTYPES, is_int8, load
from qwen3_jax.runtime import compilation
from qwen3_jax.runtime.allocation import TUNABLES, restart_with_large_pages

LAUNCHES = 5
_CALLS = ("while", "cond", "call", "async", "command_buffer")  # they are counted by what they run


def operations(folder: Path) -> dict[str, tuple[int, float]]:
    """Of each operation in the folder's newest trace, how often it ran and how many milliseconds in all.

    Raises:
        FileNotFoundError: there is no trace in the folder.
    """
    found: defaultdict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    path = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime, default=None)
    if path is None:
        raise FileNotFoundError(f"{folder} holds no *.xplane.pb: the profiler wrote nothing")
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            on_gpu = plane.name.startswith("/device") and line.name == "XLA Ops"
            for event in line.events:
                if event.name.startswith(_CALLS) or not (on_gpu or any(name == "hlo_op" for name, _ in event.stats)):
                    continue
                count, spent = found[event.name]
                found[event.name] = (count + 1, spent + event.duration_ns / 1e6)
    return dict(found)


def by_kind(found: dict[str, tuple[int, float]]) -> dict[str, tuple[int, float]]:
    """The same, of all operations whose names differ in their number only."""
    kinds: defaultdict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for name, (count, spent) in found.items():
        before = kinds[name.partition(".")[0]]
        kinds[name.partition(".")[0]] = (before[0] + count, before[1] + spent)
    return dict(kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a hub id, or embedded")
    parser.add_argument("--slots", type=int, default=10)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--frames", type=int, default=4, help="of a launch")
    default = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    parser.add_argument("--dtype", choices=DTYPES, help=f"default: int8 if the folder was converted to it, else {default}")
    parser.add_argument("--rows", type=int, default=15, help="of the table")
    parser.add_argument("--keep", type=Path, help="a folder for the trace")
    given = parser.parse_args()
    restart_with_large_pages(TUNABLES)
    compilation.use_persistent_cache()
    console = Console(width=140)
    try:
        folder = hub.local_folder(given.model)
        dtype = given.dtype or ("int8" if is_int8(folder) else default)
        model = load(folder, dtype=jnp.dtype(dtype), stored=jnp.dtype(dtype))
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    device = JaxDevice(model, slots=given.slots, columns=given.columns, frames=given.frames)
    for slot in range(given.slots):
        occupy(device, slot, request(model, slot, given.columns // 2))
    launch = ([given.frames] * given.slots, given.frames)
    device.collect(device.launch(*launch))
    with tempfile.TemporaryDirectory() as temporary:
        kept = given.keep or Path(temporary)
        begun = time.perf_counter()
        with jax.profiler.trace(str(kept)):
            for _ in range(LAUNCHES):
                device.collect(device.launch(*launch))
        taken = 1000 * (time.perf_counter() - begun)
        found = operations(kept)
    steps = LAUNCHES * given.frames
    total = sum(spent for _, spent in found.values())
    title = f"{given.model}, {given.slots} slots, {taken / steps:.1f} ms a step while traced"
    table = Table("operation", "times a step", "ms a step", "share", title=title)
    kinds = by_kind(found)
    kinds_table = Table("kind", "times a step", "ms a step", "share")
    for rows, to in ((found, table), (kinds, kinds_table)):
        for name, (count, spent) in sorted(rows.items(), key=lambda item: -item[1][1])[: given.rows]:
            to.add_row(name, f"{count / steps:.1f}", f"{spent / steps:.2f}", f"{100 * spent / total:.1f} %")
    console.print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {dtype}; {len(found)} operations")
    console.print(table)
    console.print(kinds_table)


if __name__ == "__main__":
    main()
