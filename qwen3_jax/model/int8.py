"""Weight-only int8: x float32 [*rest I], weight int8 [O I], a scale per row of the weight [O] -> x W^T float32 [*rest O].

Activations stay float32, so int8 costs the rounding of the weights only: at most half a scale step each.
"""

import jax

from qwen3_jax.model.products import widened
from qwen3_jax.shapes import F32, I8, Array


def int8_matmul(x: F32[Array, "*rest I"], weight: I8[Array, "O I"], scale: F32[Array, " O"]) -> F32[Array, "*rest O"]:
    """x (scale W)^T, without a float32 copy of ``weight``, except for more rows than ``products.ROWS_ALONE``: then of one weight at a time.

    On a CPU the rows of a small batch give bit for bit what each gives alone.
    """
    y = widened(x, weight)
    return y * jax.numpy.expand_dims(scale, tuple(range(y.ndim - 1)))
