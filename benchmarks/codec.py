"""The codec's decoder, layer by layer: operations, bytes, time, and the parts of this machine's bounds that are reached. Prints a table.

usage: python -m benchmarks.codec CHECKPOINT [--rows 1] [--frames 4] [--dtype int8] [--repeats 9]

CHECKPOINT: a published or converted folder, or one that benchmarks.full_size made. Each layer is compiled and timed alone, then the whole
decoder. Operations are those of the published formula, two for each weight and position. A layer that needs fewer products may reach more
than the machine's peak, which is that of a float32 product of 2048 x 2048 matrices. Bytes are those of the weights. The bound of a layer is
the longer one of the times that its operations and its bytes take.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from benchmarks.compare.machine import bandwidth, float32_peak
from qwen3_jax.codec import Decoder, DecoderState
from qwen3_jax.model.model import Model, load
from qwen3_jax.runtime.allocation import TUNABLES, restart_with_large_pages


class DecoderPart(NamedTuple):
    """One call of the decoder."""

    name: str
    call: Callable[[Decoder, Any, DecoderState], Any]  # its result, or a tuple whose first entry is that
    weights: Any  # parameters, by name
    operations: float


def layers(model: Model, positions: int) -> Iterator[DecoderPart]:
    """The decoder's layers in their order, for this many positions (rows x frames)."""
    decoder, trees = _published(model)
    params = model.params["codec"]["decoder"]

    def operations(tree: Any, count: int) -> float:
        return 2.0 * count * sum(leaf.size for leaf in jax.tree.leaves(tree) if leaf.ndim > 1)

    def layer(name: str, path: tuple[Any, ...], count: int, call: Callable[..., Any]) -> DecoderPart:
        return DecoderPart(name, call, _at(params, path), operations(_at(trees, path), count))

    yield layer("pre_conv", ("pre_conv",), positions, lambda d, x, s: d.pre_conv(x, s.pre_conv))
    yield layer("transformer", ("pre_transformer",), positions, lambda d, x, s: d.pre_transformer(x, s.window, s.position, None))
    for index, rate in enumerate(model.codec_config.decoder_config.upsampling_ratios):
        yield layer(f"upsample {index}", ("upsample", index, 0), positions, lambda d, x, s, i=index: d.upsample[i][0](x))
        positions *= rate
        yield layer(
            f"ConvNeXt {index}", ("upsample", index, 1), positions, lambda d, x, s, i=index: d.upsample[i][1](x, s.convnext[i], None)
        )
    yield layer("first_conv", ("decoder", 0), positions, lambda d, x, s: d.decoder[0](x, s.first_conv))
    for index in range(1, len(decoder.decoder) - 2):
        block = ("decoder", index, "block")
        rate = decoder.decoder[index].rate
        stretched = operations(_at(trees, (*block, 1)), positions)
        positions *= rate
        inner = [operations(_at(trees, (*block, unit)), positions) for unit in (2, 3, 4)]
        yield DecoderPart(
            f"block {index}",
            functools.partial(_block, index),
            _at(params, block),
            stretched + sum(inner),
        )
    last = len(decoder.decoder) - 1
    yield layer("last_conv", ("decoder", last), positions, lambda d, x, s: d.decoder[last](d.decoder[last - 1](x), s.last_conv))


def _block(index: int, decoder: Decoder, x: Any, state: DecoderState) -> Any:
    return decoder.decoder[index](x, state.blocks[index - 1], None)


def _published(model: Model) -> tuple[Decoder, Any]:
    graph, state = nnx.split(nnx.eval_shape(lambda: Decoder(model.codec_config.decoder_config)))
    return nnx.merge(graph, state), nnx.to_pure_dict(state)


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def milliseconds(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """The shortest of some calls, by the clock and in time of all cores: others may work on the machine, too."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        taken.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    clock, cores = zip(*taken, strict=True)
    return 1e3 * min(clock), 1e3 * min(cores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--frames", type=int, default=4, help="that are decoded at once")
    parser.add_argument("--dtype", choices=("float32", "int8"), default="float32", help="int8: with prepared kernels")
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    restart_with_large_pages(TUNABLES)
    stored = jnp.dtype(jnp.int8) if given.dtype == "int8" else None
    model, rows, frames = load(given.checkpoint, stored=stored, lean=True), given.rows, given.frames
    graph, params = model.graphs.codec_decoder, model.params["codec"]["decoder"]
    state = jax.jit(lambda params: nnx.merge(graph, params).initial(rows))(params)
    codes = jnp.asarray(np.random.default_rng(0).integers(0, 2048, (rows, frames, 16)), jnp.int32)
    flops, stream = float32_peak(), bandwidth()
    table = Table("layer", "GFLOP", "MB", "ms", "ms of cores", "of the peak", "bound, ms", "of the bound")

    def row(name: str, operations: float, size: int, taken: float, cores: float, bound: float) -> None:
        share = f"{operations / (taken / 1e3) / flops:.2f}"
        table.add_row(
            name,
            f"{operations / 1e9:.2f}",
            f"{size / 1e6:.1f}",
            f"{taken:.2f}",
            f"{cores:.2f}",
            share,
            f"{bound:.2f}",
            f"{bound / taken:.2f}",
        )

    x = jax.jit(lambda params, codes: jnp.moveaxis(nnx.merge(graph, params).quantizer(codes), -1, 0))(params, codes)
    sums = [0.0, 0, 0.0, 0.0, 0.0]
    for layer in layers(model, rows * frames):
        call = jax.jit(lambda params, x, state, layer=layer: layer.call(nnx.merge(graph, params), x, state))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(layer.weights))
        bound = 1e3 * max(layer.operations / flops, size / stream)
        with jax.default_matmul_precision("highest"):
            taken = milliseconds(functools.partial(call, params, x, state), given.repeats)
            found = call(params, x, state)
        x = found[0] if isinstance(found, tuple) else found
        row(layer.name, layer.operations, size, *taken, bound)
        sums = [a + b for a, b in zip(sums, (layer.operations, size, *taken, bound), strict=True)]
    whole = jax.jit(lambda params, codes, state: nnx.merge(graph, params)(codes, state))
    begin = time.perf_counter()
    jax.block_until_ready(whole(params, codes, state))
    first = time.perf_counter() - begin
    table.add_section()
    row("sum", *sums)
    row("whole decoder", sums[0], sums[1], *milliseconds(lambda: whole(params, codes, state), given.repeats), sums[4])
    console = Console(width=120)
    console.print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; {rows} rows x {frames} frames")
    console.print(f"peak {flops / 1e9:.0f} GFLOP/s, memory {stream / 1e9:.1f} GB/s")
    console.print(table)
    console.print(f"first call, with its compilation: {first:.1f} s")


if __name__ == "__main__":
    main()
