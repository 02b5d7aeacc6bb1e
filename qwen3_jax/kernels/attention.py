"""The compiled attention of one query per head, for CPUs: q [B J G D], k and v [B J S D], mask [B S] -> [B J G D], all float32."""

import jax
import jax.numpy as jnp

from qwen3_jax.kernels import library
from qwen3_jax.shapes import F32, Array, Bool, Float

LARGEST_GROUP = 64  # query heads per key/value head


def takes(q: Float[Array, "B 1 A D"], k: Float[Array, "B J S D"], v: Float[Array, "B J S D"]) -> bool:
    """Whether the kernel computes arrays of these shapes and dtypes; A = J x G."""
    float32 = all(x.dtype == jnp.float32 for x in (q, k, v))
    return float32 and q.shape[2] <= LARGEST_GROUP * k.shape[1] and q.shape[3] % 16 == 0


def attend(q: F32[Array, "B J G D"], k: F32[Array, "B J S D"], v: F32[Array, "B J S D"], mask: Bool[Array, "B S"]) -> F32[Array, "B J G D"]:
    """softmax(q k^T / sqrt(D)) v over the columns that ``mask`` has, on a CPU. `library.in_use` must have found the kernels.

    Columns outside the mask are not read. A row of the result depends neither on the other rows nor on S. A row that sees NaN gives NaN; a
    row that sees no column, too.
    """
    call = jax.ffi.ffi_call(library.target("attention"), jax.ShapeDtypeStruct(q.shape, jnp.float32), vmap_method="sequential")
    return call(q, k, v, mask)
