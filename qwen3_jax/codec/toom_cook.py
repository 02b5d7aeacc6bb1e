"""Dilated convolutions of 7 taps with fewer multiplications: Toom and Cook's way, of which Winograd's is a case. x [B P+T I] -> y [B T O].

For each group of m outputs, which see n = m + 6 inputs, the 7 taps cost r products of matrices [I O] instead of 7 m:

    y = A ((G w) * (B x))        A [m r], G [r 7], B [r n], "*" is one product for each of the r columns of A

G w is computed once, when the checkpoint is loaded. Here m = 6, r = 18: 0.43 of the products. It is a scheme of two taps at points 0, 1 and
infinity, whose taps are schemes of four at 0, 1, -1, 2, -2 and infinity, which rounds less than one scheme of seven. RMS of the difference
from float64 at full size (random weights, two frames), over the wave's RMS:

    plain products   1.3e-5        this   2.1e-5        7 taps at once, m = 2   2.4e-5        7 taps at once, m = 4   5.5e-5

Channels are the last axis here, so that every step reads and writes whole lines of channels, whatever the dilation.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.shapes import F32, F64, Array

TAPS, PRODUCTS = 7, 18


class Transforms(NamedTuple):
    """See the module's docstring."""

    outputs: F64[np.ndarray, "m r"]
    kernel: F64[np.ndarray, "r k"]
    inputs: F64[np.ndarray, "r n"]


def _scheme(taps: int, points: tuple[int, ...]) -> Transforms:
    """At these points and infinity. It multiplies polynomials by their values there; filtering is the transpose of that."""
    products = len(points) + 1

    def values(coefficients: int) -> F64[np.ndarray, "r {coefficients}"]:
        at_infinity = np.arange(coefficients) == coefficients - 1
        return np.vstack([np.vander(np.array(points, np.float64), coefficients, increasing=True), at_infinity])

    outputs, kernel, inputs = values(products - taps + 1).T, values(taps), np.linalg.inv(values(products)).T
    inputs[np.abs(inputs) < 1e-9] = 0
    for axis, matrix in ((0, outputs), (1, inputs)):  # powers of two, so that nothing is rounded: the kernel takes the sizes
        scale = 2.0 ** np.round(np.log2(np.abs(matrix).max(axis)))
        matrix /= np.expand_dims(scale, axis)
        kernel *= scale[:, None]
    return Transforms(outputs, kernel, inputs)


@functools.cache
def transforms() -> Transforms:
    """The three matrices. Output, tap or input 2 j + i is number i of the outer scheme, number j of the inner one."""
    outer, inner = _scheme(2, (0, 1)), _scheme(4, (0, 1, -1, 2, -2))
    inputs = np.zeros((PRODUCTS, 2 * inner.inputs.shape[1] + 2))
    for i, column in enumerate(outer.inputs.T):
        inputs[:, i : i + 2 * inner.inputs.shape[1] : 2] += np.kron(inner.inputs, column[:, None])
    outputs, kernel = np.kron(inner.outputs, outer.outputs), np.kron(inner.kernel, outer.kernel)
    # The eighth tap is zero, and so is what the last inputs would do.
    return Transforms(outputs, kernel[:, :TAPS], inputs[:, : len(outputs) + TAPS - 1])


def prepare(weight: F32[Array, "O I k"]) -> F32[Array, "r I O"]:
    """G w, as `convolve` takes them."""
    return jnp.einsum("rk,oik->rio", transforms().kernel.astype(np.float32), weight, precision="highest")


def convolve(x: F32[Array, "B X I"], prepared: F32[Array, "r I O"], dilation: int) -> F32[Array, "B X-{dilation}*6 O"]:
    """Convolution without padding."""
    outputs, _, inputs = transforms()
    group, seen = len(outputs), inputs.shape[1]
    rows, length, width = len(x), x.shape[1] - dilation * (TAPS - 1), x.shape[2]
    groups = -(-length // (dilation * group))
    whole = groups + (seen - 1) // group  # the last groups' inputs reach into the next ones
    x = jnp.pad(x, ((0, 0), (0, whole * group * dilation - x.shape[1]), (0, 0)))
    # Inputs are read n times: without the barrier XLA would compute anew what made them. The sums are products of small matrices: written
    # out they were as quick, and took longer to compile.
    x = jax.lax.optimization_barrier(x).reshape(rows, whole, group, dilation, width)
    slabs = [jnp.moveaxis(x[:, at : at + groups, : seen - at * group], 2, 0) for at in range(-(-seen // group))]
    columns = jnp.concatenate(slabs)
    points = (inputs.astype(np.float32) @ columns.reshape(seen, -1)).reshape(PRODUCTS, -1, width)
    multiplied = jax.lax.dot_general(points, prepared, (((2,), (1,)), ((0,), (0,))))
    y = (outputs.astype(np.float32) @ multiplied.reshape(PRODUCTS, -1)).reshape(group, rows, groups, dilation, -1)
    return jnp.moveaxis(y, 0, 2).reshape(rows, groups * group * dilation, -1)[:, :length]
