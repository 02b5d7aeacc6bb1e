"""What an engine's memory must hold: shapes -> bytes, before anything is allocated; a configuration that cannot fit is refused.

Of the work space only the parts that grow with the batch are counted: the logits, their sorting, and the codec's widest layer (its
columns, see codec/conv.py). XLA's own plan of a step is exact, but known only after minutes of compiling.
"""

import math
import os
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from qwen3_jax.checkpoint.mapping import flatten
from qwen3_jax.checkpoint.table import TABLE
from qwen3_jax.engine import programs
from qwen3_jax.model.model import Model
from qwen3_jax.runtime.devices import name_of_place

SHARE = 0.9  # of the memory may be planned; the rest is for programs and the allocator's gaps


class Plan(NamedTuple):
    """Bytes by purpose."""

    weights: dict[str, int]  # dtype -> bytes
    cache: int
    codec: int  # the codec's states and their marks
    other: int  # the rest of the slots' state
    reading: int  # a row whose prompt is read, before it takes its place
    work: int
    slots: int
    columns: int
    cache_dtype: str
    available: int
    device: str

    @property
    def total(self) -> int:
        """Of all."""
        return sum(self.weights.values()) + self.cache + self.codec + self.other + self.reading + self.work

    @property
    def fits(self) -> bool:
        """Whether it may be begun with."""
        return self.total <= SHARE * self.available

    def __str__(self) -> str:
        weights = ", ".join(f"{_size(size)} {dtype}" for dtype, size in sorted(self.weights.items()))
        return (
            f"{_size(self.total)} of {_size(self.available)} on {self.device}: weights {weights}; KV cache {_size(self.cache)} "
            f"({self.slots} slots x {self.columns} positions, {self.cache_dtype}, {_size(self.cache // self.slots)} a slot); "
            f"codec states {_size(self.codec)} float32; other state {_size(self.other)}; a prompt {_size(self.reading)}; "
            f"work space about {_size(self.work)}"
        )


def plan(model: Model, slots: int, columns: int, *, available: int | None = None) -> Plan:
    """Count.

    Args:
        model: loaded, where it will be computed.
        slots, columns: of the engine.
        available: bytes; default: what the device says it has.
    """
    first = jax.tree.leaves(model.params)[0]
    device, parts = min(first.devices(), key=lambda one: one.id), len(first.devices())
    weights: dict[str, int] = {}
    kept = {path: leaf for path, leaf in flatten(model.params).items() if path != TABLE or leaf.ndim == 2}  # else it lies in its file
    for leaf in kept.values():  # of weights that are split over several devices, those of one
        weights[leaf.dtype.name] = weights.get(leaf.dtype.name, 0) + math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(() if model.later is None else model.later.shapes):
        weights[leaf.dtype.name] = weights.get(leaf.dtype.name, 0) + leaf.size * leaf.dtype.itemsize
    talker = model.params["talker"]
    if programs.copies(talker, slots):
        weights["float32"] = weights.get("float32", 0) + sum(4 * leaf.size for leaf in programs.narrow(talker).values())
    graphs, params = model.graphs, model.params

    def shapes() -> programs.State:
        talker, decoder = nnx.merge(graphs.talker, params["talker"]), nnx.merge(graphs.codec_decoder, params["codec"]["decoder"])
        return programs.initial(talker, decoder, slots, columns, columns)

    state = jax.eval_shape(shapes)
    whole, codec = _bytes(state.caches), _bytes((state.codec, state.mark.codec))
    cache, other = whole // parts, _bytes(state) - whole - codec  # the heads of a split cache are shared out evenly
    return Plan(
        weights, cache, codec, other, (cache + codec + other) // slots, _work(model, slots), slots, columns,
        state.caches[0].k.dtype.name,
        memory(device) if available is None else available, name_of_place(first),
    )  # fmt: skip


def require(planned: Plan) -> None:
    """Refuse what cannot fit.

    Raises:
        ValueError: with the numbers, and how many slots would fit.
    """
    if planned.fits:
        return
    each = (planned.cache + planned.codec + planned.other + planned.work) // planned.slots
    fit = int((SHARE * planned.available - sum(planned.weights.values()) - planned.reading) // each)
    advice = f"{fit} slots of this length would fit" if fit > 0 else "the weights alone leave no room for a slot"
    raise ValueError(f"{planned.slots} slots do not fit: {planned}. At most {SHARE:.0%} of the memory is planned: {advice}")


def memory(device: jax.Device) -> int:
    """Bytes that the device has for us; of several CPU devices (XLA_FLAGS), each has its share of the host's."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // device.client.local_device_count()


def _work(model: Model, slots: int) -> int:
    talker, codec = model.config.talker_config, model.codec_config.decoder_config
    logits = 4 * 4 * (talker.vocab_size + talker.num_code_groups * talker.code_predictor_config.vocab_size)
    widest, length = 0, int(np.prod(codec.upsampling_ratios))
    for block, rate in enumerate(codec.upsample_rates):
        length *= rate
        widest = max(widest, 4 * (7 + 3) * length * codec.decoder_dim // 2 ** (block + 1))
    return slots * (logits + widest)


def _bytes(tree: object) -> int:
    return sum(leaf.size * (leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
