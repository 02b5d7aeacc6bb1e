"""KV cache: a list of LayerCache, one per layer, each k and v [B J S D]; new rows in -> the same cache, written.

Columns are positions. A row of length 3 in a cache of S = 6, writing its next position:

    start = 3          | k0 k1 k2 .. .. .. |   ->   | k0 k1 k2 k3 .. .. |
    visible (mask)     | 1  1  1  1  0  0  |   columns j <= position of the query

What lies beyond a row's position is garbage (a longer neighbour's padding): it is overwritten by the very step that makes it visible, so
rows cannot see one another. But it must be finite, for masked values are multiplied by 0: each prompt is read into a cache of zeros.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from qwen3_jax.shapes import I32, Array, Bool, Float


class LayerCache(NamedTuple):
    """Keys (rotated) and values of one layer."""

    k: Float[Array, "B J S D"]
    v: Float[Array, "B J S D"]


KVCache = list[LayerCache]


def empty(layers: int, rows: int, kv_heads: int, columns: int, head_dim: int, dtype: jnp.dtype) -> KVCache:
    """A cache of zeros for ``layers`` layers. Bytes: 2 x layers x B x J x S x D x itemsize."""
    shape = (rows, kv_heads, columns, head_dim)
    return [LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(layers)]


def write(cache: LayerCache, k: Float[Array, "B T J D"], v: Float[Array, "B T J D"], start: I32[Array, " B"]) -> LayerCache:
    """Write T new columns into each row, from that row's own ``start``; start + T <= S is the caller's promise."""

    def put(head: Float[Array, "S D"], new: Float[Array, "T D"], at: I32[Array, ""]) -> Float[Array, "S D"]:
        return jax.lax.dynamic_update_slice(head, new, (at, 0))

    # A scatter with an index for each head. One slice of one row XLA's CPU compiler fused into both of its readers, attention and the
    # decoding loop, and then copied the whole cache five times a frame to keep both.
    put_rows = jax.vmap(jax.vmap(put))
    start = jnp.broadcast_to(start[:, None], cache.k.shape[:2])
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
