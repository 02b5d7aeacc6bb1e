"""The compiled product of rows and int8 weights, for CPUs: x [R I], weight [O I] -> x (scale weight)^T [R O]."""

import jax
import jax.numpy as jnp

from qwen3_jax.kernels import library
from qwen3_jax.shapes import F32, I8, Array


def multiply(x: F32[Array, "R I"], weight: I8[Array, "O I"], scale: F32[Array, " O"]) -> F32[Array, "R O"]:
    """x (scale weight)^T on a CPU. `library.in_use` must have found the kernels.

    A row of the result does not depend on the other rows, nor on how many there are. A row with an infinity or NaN gives NaN.
    """
    (rows, inputs), outputs = x.shape, weight.shape[0]
    space = 256 + 192 * -(-inputs // 64)  # of a row: int8_vnni.inc
    results = jax.ShapeDtypeStruct((rows, outputs), jnp.float32), jax.ShapeDtypeStruct((rows, space), jnp.uint8)
    call = jax.ffi.ffi_call(library.target("int8_matmul"), results, vmap_method="sequential")
    return call(x, weight, scale)[0]
