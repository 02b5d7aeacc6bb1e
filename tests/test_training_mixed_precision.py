"""Mixed precision of training: products of bfloat16 factors, sums and everything else in float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwen3_jax.model.layers import Linear
from qwen3_jax.model.model import Model
from training import mixed_precision
from training.language import objective


def test_a_product_and_its_gradients_are_those_of_rounded_factors() -> None:
    """Integers up to 256 are exact in bfloat16, and so are their sums in float32: not one of the three products may differ at all."""
    noise = np.random.default_rng(0)
    x, weight, weighed = (jnp.asarray(noise.integers(-200, 200, shape), jnp.float32) for shape in ((7, 64), (5, 64), (7, 5)))

    def exact(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.vdot(jnp.matmul(x, weight.T, precision="highest"), weighed)

    found = jax.value_and_grad(lambda *both: jnp.vdot(mixed_precision.product(*both), weighed), argnums=(0, 1))(x, weight)
    wanted = jax.value_and_grad(exact, argnums=(0, 1))(x, weight)
    for mine, his in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert mine.dtype == jnp.float32
        np.testing.assert_array_equal(mine, his)
    third = jnp.full((1, 1), 1 / 3)
    assert float(mixed_precision.product(third, jnp.ones((1, 1)))[0, 0]) == float(jnp.bfloat16(1 / 3)) != float(third[0, 0])


def test_all_linear_layers_of_talker_and_predictor_are_mixed_and_nothing_else_changes(model: Callable[[str], Model]) -> None:
    """The tree of parameters is the same, so that a run goes on with either; the exact definition is not touched by the other."""
    base = model("base")
    exact, shapes = objective.define(base.config)
    rounded, same = objective.define(base.config, mixed=True)
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(lambda leaf: leaf.shape, same)
    for graphs, kind in ((exact, Linear), (rounded, mixed_precision.MixedLinear)):
        talker = nnx.merge(graphs.talker, base.params["talker"])
        kinds = {type(module) for _, module in nnx.iter_modules(talker) if isinstance(module, Linear)}
        assert kinds == {kind}


@pytest.mark.parametrize("bias", [False, True])
def test_a_mixed_layer_says_what_the_exact_one_says_nearly(bias: bool) -> None:
    """Within what eight bits of each factor can do: 2^-8 of the product of lengths."""
    noise = np.random.default_rng(1)
    layer = Linear(96, 40, bias=bias)
    layer.weight[...] = jnp.asarray(noise.standard_normal((40, 96)), jnp.float32)
    x = jnp.asarray(noise.standard_normal((2, 3, 96)), jnp.float32)
    exact = layer(x)
    mixed_precision.mix(layer)
    assert type(layer) is mixed_precision.MixedLinear
    error = np.abs(np.asarray(layer(x) - exact))
    assert 0 < error.max() < 2**-8 * float(jnp.linalg.norm(x, axis=-1).max() * jnp.linalg.norm(layer.weight[...], axis=-1).max())
