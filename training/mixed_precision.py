"""Mixed precision: linear layers whose products multiply in bfloat16 and add up in float32; everything between them stays float32.

A CPU with AVX512-BF16 multiplies so twice as fast. Activations in bfloat16 as well gain nothing there: each operation on them widens them
first. Figures: training/README.md, "What a step costs".
"""

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.model.layers import Linear
from qwen3_jax.shapes import F32, Array


class MixedLinear(Linear):
    """A `Linear` of float32 parameters, trained with rounded factors; three products a step: y, and the gradients of x and of W."""

    def __call__(self, x: F32[Array, "... I"]) -> F32[Array, "... O"]:
        y = product(x.reshape(-1, x.shape[-1]), self.weight[...]).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias[...]


def mix(module: nnx.Module) -> None:
    """Make every `Linear` within ``module`` a `MixedLinear`."""
    for _, inner in nnx.iter_modules(module):
        if type(inner) is Linear:
            inner.__class__ = MixedLinear


@jax.custom_vjp
def product(x: F32[Array, "N I"], weight: F32[Array, "O I"]) -> F32[Array, "N O"]:
    """x W^T. Not as `products.matmul` has it: with many rows, and for the gradients, W x^T only adds transposes."""
    return _forward(x, weight)[0]


def _forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    rounded = x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
    return _dot(*rounded, 1, 1), rounded


def _backward(rounded: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = rounded
    narrow = gradient.astype(jnp.bfloat16)
    return _dot(narrow, weight, 1, 0), _dot(narrow, x, 0, 0)


def _dot(first: jax.Array, second: jax.Array, over: int, with_: int) -> jax.Array:
    return jax.lax.dot_general(first, second, (((over,), (with_,)), ((), ())), preferred_element_type=jnp.float32)


product.defvjp(_forward, _backward)
