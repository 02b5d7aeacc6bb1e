"""Products of rows and a weight: x [*rest I], W [O I] -> x W^T [*rest O], the weight in the dtype of x or a narrower one."""

import jax
import jax.numpy as jnp

from qwen3_jax.shapes import Array, Float, Real

ROWS_ALONE = 16  # more rows than this are cheaper with the whole weight widened first


def matmul(x: Float[Array, "*rest I"], weight: Float[Array, "O I"]) -> Float[Array, "*rest O"]:
    """x W^T in the dtype of x, which may be wider than that of the weight.

    As W x^T: XLA on a CPU packs the right factor anew for every product of more than one row. 126 MB of weights of 3072 x 1024, float32,
    two cores (Zen 4), ms for 1 / 4 / 8 / 16 / 64 rows: as x W^T 3.8 / 8.4 / 10.0 / 12.6 / 33, as W x^T 4.1 / 4.4 / 5.1 / 6.7 / 26.
    """
    if weight.dtype != x.dtype:
        return widened(x, weight)
    rows = x.reshape(-1, x.shape[-1])
    # "highest": GPUs and TPUs would else multiply float32 in fewer bits; bfloat16 is not touched by it
    found = jax.lax.dot_general(weight, rows, (((1,), (1,)), ((), ())), precision="highest")
    # The barrier keeps XLA from making x W^T of it again.
    return jax.lax.optimization_barrier(found).T.reshape(*x.shape[:-1], -1)


def widened(x: Float[Array, "*rest I"], weight: Real[Array, "O I"]) -> Float[Array, "*rest O"]:
    """float32 x bfloat16 or int8 on a CPU, bit for bit as with a float32 weight, for a half or a quarter of the bytes.

    XLA fuses the widening into a product of one row only (30 GB/s of bfloat16, all that two cores read); for more rows it
    writes the wide weight to memory first. So a few rows go one by one. What follows keeps XLA from fusing more than that:
    ``0 * x`` is not nothing to it, since x may be NaN.
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) > ROWS_ALONE:
        narrow, rows = jax.lax.optimization_barrier((weight, rows))  # else the widening is hoisted out of the decoding loop
        # Else nothing stops every weight from being widened before the first product: 1.8 GB at full size. Of a comparison, because
        # 0 * NaN would reach every row.
        return matmul(rows, narrow.astype(x.dtype) + 0 * (rows[0, 0] > 0).astype(x.dtype)).reshape(*x.shape[:-1], -1)
    # Else what made the row (a transpose, an activation) is computed again for each of O outputs: up to six times slower.
    rows = rows / (1 + 0 * rows)
    products = []
    for index in range(len(rows)):
        # The barrier keeps XLA from hoisting the widening out of the decoding loop, or sharing it between rows.
        narrow, row = jax.lax.optimization_barrier((weight, rows[index : index + 1]))
        products.append(row @ narrow.astype(row.dtype).T)
    return jnp.concatenate(products).reshape(*x.shape[:-1], -1)
