"""The convolutions against JAX's own, with odd sizes, and their state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.codec import toom_cook
from qwen3_jax.codec.conv import CausalConv, TransposedConv, Upsample, convolve


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize(
    ("outputs", "inputs", "size", "dilation", "stride"),
    [(6, 4, 7, 3, 1), (6, 4, 8, 1, 4), (5, 3, 1, 1, 1), (1, 9, 7, 1, 1), (1, 9, 7, 2, 3)],
)
def test_convolve(outputs: int, inputs: int, size: int, dilation: int, stride: int) -> None:
    x, weight = normal(inputs, 2, 45), normal(outputs, inputs, size, seed=1)
    wanted = jax.lax.conv_general_dilated(
        x, weight, (stride,), "VALID", rhs_dilation=(dilation,), dimension_numbers=("CNW", "OIW", "CNW"), precision="highest"
    )
    np.testing.assert_allclose(convolve(x, weight, dilation=dilation, stride=stride), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [2, 5])
@pytest.mark.parametrize("overlapping", [False, True])
def test_transposed(rate: int, overlapping: bool) -> None:
    size = 2 * rate if overlapping else rate
    layer = TransposedConv(4, 3, rate) if overlapping else Upsample(4, 3, rate)
    layer.conv.weight[...], layer.conv.bias[...] = normal(4, 3, size), normal(3, seed=1)
    x = normal(4, 2, 6, seed=2)
    wanted = np.zeros((3, 2, 6 * rate + size - rate))
    for t in range(6):
        wanted[:, :, t * rate : t * rate + size] += np.einsum("iok,ib->obk", layer.conv.weight[...], x[:, :, t])
    wanted = wanted[:, :, : 6 * rate] + np.asarray(layer.conv.bias[...])[:, None, None]
    found = layer(x, layer.initial(2))[0] if isinstance(layer, TransposedConv) else layer(x)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("valid", [[5, 0], [2, 4]])
@pytest.mark.parametrize(
    "make", [lambda: CausalConv(4, 3, 3, dilation=3), lambda: CausalConv(4, 4, 7, grouped=True), lambda: TransposedConv(4, 3, 2)]
)
def test_state_stops_at_the_valid_end(make: object, valid: list[int]) -> None:
    layer = make()  # type: ignore[operator]  # a parametrised factory
    layer.conv.weight[...] = normal(*layer.conv.weight.shape)
    x = normal(4, 2, 5, seed=3)
    _, found = layer(x, layer.initial(2), jnp.asarray(valid))
    for row, length in enumerate(valid):
        tail = layer.initial(1)
        if length:
            _, tail = layer(x[:, row : row + 1, :length], tail)
        np.testing.assert_allclose(found[row], tail[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dilation", [1, 3, 9])
@pytest.mark.parametrize("length", [1, 35, 37])  # less than a group of outputs, and a part of one more
def test_toom_cook(dilation: int, length: int) -> None:
    x, weight = normal(8, 2, length + 6 * dilation), normal(5, 8, 7, seed=1)
    wanted = sum(np.einsum("oi,ibt->bto", *map(np.float64, (weight[:, :, k], x[:, :, k * dilation :][:, :, :length]))) for k in range(7))
    found = toom_cook.convolve(jnp.moveaxis(x, 0, -1), toom_cook.prepare(weight), dilation)
    assert found.shape == wanted.shape
    # of the RMS; plain float32 products make 4e-7
    assert np.sqrt(np.mean(np.square(found - wanted))) < 3e-6 * np.sqrt(np.mean(np.square(wanted)))
