"""Weights kept narrow, arithmetic wide: the same numbers as with wide weights; gradients included."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.layers import matmul
from qwen3_jax.model import Model, abstract


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (16, 1), (1, 17), (2, 40)])
def test_narrow_weights_give_what_wide_ones_give(shape: tuple[int, int]) -> None:
    noise = np.random.RandomState(0)
    x = jnp.asarray(noise.standard_normal((*shape, 64)).astype(np.float32))
    weight = jnp.asarray(noise.standard_normal((24, 64))).astype(jnp.bfloat16)
    narrow, wide = jax.jit(matmul)(x, weight), jax.jit(matmul)(x, weight.astype(jnp.float32))
    assert narrow.dtype == jnp.float32 and narrow.shape == (*shape, 24)
    np.testing.assert_allclose(narrow, wide, rtol=1e-5, atol=1e-5)


def test_gradients_pass_through_narrow_weights() -> None:
    weight = jnp.ones((3, 4), jnp.bfloat16)
    gradient = jax.grad(lambda x: matmul(x, weight).sum())(jnp.ones((2, 4)))
    np.testing.assert_array_equal(gradient, np.full((2, 4), 3.0))


def test_only_matrices_are_kept_narrow(model: Callable[[str], Model]) -> None:
    base = model("base")
    _, tree = abstract(base.config, base.codec_config, jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))
    for leaf in jax.tree.leaves(tree["talker"]):
        assert leaf.dtype == (jnp.bfloat16 if leaf.ndim > 1 else jnp.float32)
    for part in ("codec", "speaker_encoder"):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree[part])} == {jnp.dtype(jnp.float32)}
