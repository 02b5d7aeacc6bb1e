"""Weight-only int8: x float32 [*rest I], weight int8 [O I], a scale per row of the weight [O] -> x W^T float32 [*rest O].

Activations stay float32, so int8 costs the rounding of the weights only: at most half a scale step each.
"""

import jax
import jax.numpy as jnp

from qwen3_jax.checkpoint.int8 import LARGEST, STEP
from qwen3_jax.kernels import int8_matmul as kernel
from qwen3_jax.kernels import library
from qwen3_jax.model.products import widened
from qwen3_jax.shapes import F32, I8, Array, Float


def int8_matmul(x: F32[Array, "*rest I"], weight: I8[Array, "O I"], scale: F32[Array, " O"]) -> F32[Array, "*rest O"]:
    """x (scale W)^T, without a float32 copy of ``weight``; without the kernel, of one weight at a time for more than 16 rows.

    On a CPU the rows of a small batch give bit for bit what each gives alone. Raises ValueError: see ``kernels.library.in_use``.
    """
    if library.in_use().instructions is None:
        return by_xla(x, weight, scale)
    return jax.lax.platform_dependent(x, weight, scale, cpu=_by_kernel, default=by_xla)


def by_xla(x: F32[Array, "*rest I"], weight: I8[Array, "O I"], scale: F32[Array, " O"]) -> F32[Array, "*rest O"]:
    """The same in XLA's own operations."""
    y = widened(x, weight)
    return y * jnp.expand_dims(scale, tuple(range(y.ndim - 1)))


def _by_kernel(x: F32[Array, "*rest I"], weight: I8[Array, "O I"], scale: F32[Array, " O"]) -> F32[Array, "*rest O"]:
    return kernel.multiply(x.reshape(-1, x.shape[-1]), weight, scale).reshape(*x.shape[:-1], -1)


def as_int8(rows: Float[Array, "*rest H"]) -> F32[Array, "*rest H"]:
    """Rows of a table as they would be if it had been rounded to int8, a scale a row; number for number what checkpoint/int8.py makes."""
    rows = rows.astype(jnp.float32)
    scale = jnp.max(jnp.abs(rows), axis=-1, keepdims=True) * STEP
    return jnp.clip(jnp.rint(rows / jnp.where(scale > 0, scale, 1)), -LARGEST, LARGEST) * scale
