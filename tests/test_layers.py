"""Weights kept narrow, arithmetic wide: the same numbers as with wide weights; gradients included."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.model.layers import take
from qwen3_jax.model.model import Model, abstract
from qwen3_jax.model.products import matmul


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 1), (16, 1), (1, 17), (2, 40)])
def test_narrow_weights_give_what_wide_ones_give(shape: tuple[int, int]) -> None:
    noise = np.random.RandomState(0)
    x = jnp.asarray(noise.standard_normal((*shape, 64)).astype(np.float32))
    weight = jnp.asarray(noise.standard_normal((24, 64))).astype(jnp.bfloat16)
    narrow, wide = jax.jit(matmul)(x, weight), jax.jit(matmul)(x, weight.astype(jnp.float32))
    assert narrow.dtype == jnp.float32 and narrow.shape == (*shape, 24)
    np.testing.assert_allclose(narrow, wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_leaves_the_others_alone(rows: int, value: float) -> None:
    noise = np.random.RandomState(0)
    x = noise.standard_normal((rows, 64)).astype(np.float32)
    for weight in (jnp.asarray(noise.standard_normal((24, 64)), jnp.bfloat16), jnp.asarray(noise.standard_normal((24, 64)), jnp.float32)):
        whole = np.asarray(jax.jit(matmul)(x, weight))
        for row in (0, 2):
            damaged = x.copy()
            damaged[row] = value
            found = np.asarray(jax.jit(matmul)(damaged, weight))
            assert not np.isfinite(found[row]).any()
            np.testing.assert_array_equal(np.delete(found, row, axis=0), np.delete(whole, row, axis=0))


def temporaries(call: Callable[..., jax.Array], *arguments: jax.Array) -> int:
    """Bytes that the compiled call needs beside arguments and result."""
    analysis = jax.jit(call).lower(*arguments).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)


def test_a_loop_reads_rows_of_a_narrow_table_without_a_copy_of_the_table() -> None:
    table = jnp.asarray(np.random.RandomState(0).standard_normal((5000, 64))).astype(jnp.bfloat16)
    ids = jnp.array([[0, 4999], [17, 17], [4, 3]])

    def loop(table: jax.Array, ids: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda _, row: (None, take(table, row, jnp.dtype(jnp.float32))), None, ids)[1]

    rows = jax.jit(loop)(table, ids)
    assert rows.dtype == jnp.float32
    np.testing.assert_array_equal(rows, np.asarray(table.astype(jnp.float32))[np.asarray(ids)])
    assert temporaries(loop, table, ids) < table.nbytes / 10


def test_many_rows_widen_one_weight_at_a_time() -> None:
    x, weights = jnp.ones((40, 256)), jnp.ones((20, 256, 256), jnp.bfloat16)

    def chain(x: jax.Array, *weights: jax.Array) -> jax.Array:
        for weight in weights:
            x = matmul(x, weight)
        return x

    assert temporaries(chain, x, *weights) < 4 * (4 * 256 * 256)


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
