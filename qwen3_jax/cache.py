"""KV cache: a list of LayerCache, one per layer, each k and v [B J S D]; new rows in -> the same cache, written.

Columns are positions. A row of length 3 in a cache of S = 6, writing its next position:

    start = 3          | k0 k1 k2 .. .. .. |   ->   | k0 k1 k2 k3 .. .. |
    visible (mask)     | 1  1  1  1  0  0  |   columns j <= position of the query

What lies beyond a row's position is garbage (a longer neighbour's padding): it is overwritten by the very step that makes it visible, so
rows cannot see one another. But it must be finite, for masked values are multiplied by 0: the engine clears a slot for each new owner.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from qwen3_jax.shapes import I32, Array, Bool, Float


class LayerCache(NamedTuple):
    """Keys (rotated) and values of one layer."""

    k: Float[Array, "B J S D"]
    v: Float[Array, "B J S D"]


class SlotCache(NamedTuple):
    """One row of a layer's cache, where it lies among the others: it is written there before it is looked at, so that XLA, which
    copies what is read before and written after, copies nothing (a piece of prompt of the small voice, ten slots: 58 MB)."""

    k: Float[Array, "B J S D"]  # of all rows
    v: Float[Array, "B J S D"]
    slot: I32[Array, ""]  # which

    @property
    def own(self) -> LayerCache:
        """The row alone, [1 J S D]."""
        return LayerCache(*(jax.lax.dynamic_slice_in_dim(side, self.slot, 1, axis=0) for side in (self.k, self.v)))


Cached = TypeVar("Cached", LayerCache, SlotCache)
KVCache = list[LayerCache]


def empty(layers: int, rows: int, kv_heads: int, columns: int, head_dim: int, dtype: jnp.dtype) -> KVCache:
    """A cache of zeros for ``layers`` layers. Bytes: 2 x layers x B x J x S x D x itemsize."""
    shape = (rows, kv_heads, columns, head_dim)
    return [LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(layers)]


def write_slot(cache: SlotCache, k: Float[Array, "1 T J D"], v: Float[Array, "1 T J D"], start: I32[Array, "1"]) -> SlotCache:
    """`write`, for the one row."""

    def put(side: Float[Array, "B J S D"], new: Float[Array, "1 T J D"]) -> Float[Array, "B J S D"]:
        return jax.lax.dynamic_update_slice(side, jnp.swapaxes(new, 1, 2).astype(side.dtype), (cache.slot, 0, start[0], 0))

    return SlotCache(put(cache.k, k), put(cache.v, v), cache.slot)


def write(cache: LayerCache, k: Float[Array, "B T J D"], v: Float[Array, "B T J D"], start: I32[Array, " B"]) -> LayerCache:
    """Write T new columns into each row, from that row's own ``start``; start + T <= S is the caller's promise."""

    def put(row: Float[Array, "J S D"], new: Float[Array, "J T D"], at: I32[Array, ""]) -> Float[Array, "J S D"]:
        return jax.lax.dynamic_update_slice(row, new, (0, at, 0))

    put_rows = jax.vmap(put)
    return LayerCache(
        put_rows(cache.k, jnp.swapaxes(k, 1, 2).astype(cache.k.dtype), start),
        put_rows(cache.v, jnp.swapaxes(v, 1, 2).astype(cache.v.dtype), start),
    )


def causal_mask(start: I32[Array, " B"], length: int, columns: int) -> Bool[Array, "B {length} {columns}"]:
    """Query t of a row (at position start + t) sees columns 0 .. start + t."""
    positions = start[:, None] + jnp.arange(length)[None]
    return jnp.arange(columns)[None, None] <= positions[..., None]


def grow(cache: KVCache, columns: int) -> KVCache:
    """The same cache with S = ``columns`` (not fewer than it has)."""
    extra = columns - cache[0].k.shape[2]
    widths = ((0, 0), (0, 0), (0, extra), (0, 0))
    return cache if extra == 0 else [LayerCache(jnp.pad(c.k, widths), jnp.pad(c.v, widths)) for c in cache]
