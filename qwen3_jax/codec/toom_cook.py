"""Dilated convolutions with fewer multiplications: Toom and Cook's way, of which Winograd's is a case. x [B P+T I] -> y [B T O].

For each group of m outputs, whose inputs are n = m + k - 1, the k taps cost n products of matrices [I O] instead of m * k:

    y = A ((G w) * (B x))        A [m n], G [n k], B [n n], "*" is one product for each of the n points

G w is computed once, when the checkpoint is loaded. Products of smaller size and more sums round more: 3e-6 of the RMS after plain
products' 4e-7 (192 channels of noise, float32).
Channels are the last axis here, so that every step reads and writes whole lines of channels, whatever the dilation.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, arXiv 1509.09308.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.shapes import F32, F64, Array

TAPS = 7
POINTS = (0, 0.75, -0.75, 1.5, -1.5, 0.375, -0.375, 3, -3)  # and infinity: F(4, 7), 10 products instead of 28


class Transforms(NamedTuple):
    """See the module's docstring."""

    outputs: F64[np.ndarray, "m n"]
    kernel: F64[np.ndarray, "n k"]
    inputs: F64[np.ndarray, "n n"]


@functools.cache
def transforms() -> Transforms:
    """The three matrices. They multiply polynomials by their values at the points; filtering is the transpose of that."""
    products = len(POINTS) + 1

    def values(coefficients: int) -> F64[np.ndarray, "n {coefficients}"]:
        at_infinity = np.arange(coefficients) == coefficients - 1
        return np.vstack([np.vander(POINTS, coefficients, increasing=True), at_infinity])

    outputs, kernel, inputs = values(products - TAPS + 1).T, values(TAPS), np.linalg.inv(values(products)).T
    inputs[np.abs(inputs) < 1e-9] = 0
    for axis, matrix in ((0, outputs), (1, inputs)):  # powers of two, so that nothing is rounded: the kernel takes the sizes
        scale = 2.0 ** np.round(np.log2(np.abs(matrix).max(axis)))
        matrix /= np.expand_dims(scale, axis)
        kernel *= scale[:, None]
    return Transforms(outputs, kernel, inputs)


def prepare(weight: F32[Array, "O I k"]) -> F32[Array, "n I O"]:
    """The kernel's values at the points, as `convolve` takes them."""
    return jnp.einsum("nk,oik->nio", transforms().kernel.astype(np.float32), weight, precision="highest")


def convolve(x: F32[Array, "B X I"], prepared: F32[Array, "n I O"], dilation: int) -> F32[Array, "B X-{dilation}*6 O"]:
    """Convolution without padding."""
    outputs, _, inputs = transforms()
    group, products = outputs.shape
    rows, length, width = len(x), x.shape[1] - dilation * (TAPS - 1), x.shape[2]
    groups = -(-length // (dilation * group))
    whole = groups + (products - 1) // group  # the last groups' inputs reach into the next ones
    x = jnp.pad(x, ((0, 0), (0, whole * group * dilation - x.shape[1]), (0, 0)))
    # Inputs are read n times: without the barrier XLA would compute anew what made them. The sums are products of small matrices: written
    # out they were as quick, and took longer to compile.
    x = jax.lax.optimization_barrier(x).reshape(rows, whole, group, dilation, width)
    slabs = [jnp.moveaxis(x[:, at : at + groups, : products - at * group], 2, 0) for at in range(-(-products // group))]
    columns = jnp.concatenate(slabs)
    points = (inputs.astype(np.float32) @ columns.reshape(products, -1)).reshape(products, -1, width)
    multiplied = jax.lax.dot_general(points, prepared, (((2,), (1,)), ((0,), (0,))))
    y = (outputs.astype(np.float32) @ multiplied.reshape(products, -1)).reshape(group, rows, groups, dilation, -1)
    return jnp.moveaxis(y, 0, 2).reshape(rows, groups * group * dilation, -1)[:, :length]
