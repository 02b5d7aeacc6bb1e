"""The decoder's upsampling blocks as a loaded checkpoint speaks: x [C B T] -> y [C//2 B T*rate], with kernels prepared at loading.

They compute what UpsamplingBlock does, from the same state. Inside, channels are the last axis; XLA takes out the turns between two blocks.
A convolution of 7 taps is computed in Toom and Cook's way. The outputs of a transposed convolution lie in their order. No kernel is turned.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.codec import toom_cook
from qwen3_jax.codec.blocks import BlockState, scaled
from qwen3_jax.codec.conv import Kernel
from qwen3_jax.codec.snake import SnakeBeta
from qwen3_jax.model.layers import over_last
from qwen3_jax.shapes import F32, I32, Array


def with_past(
    x: F32[Array, "B T C"], tail: F32[Array, "B C P"], valid: I32[Array, " B"] | None
) -> tuple[F32[Array, "B P+T C"], F32[Array, "B C P"]]:
    """As conv.with_past, channels last; the state is the same."""
    x = jnp.concatenate([jnp.swapaxes(tail, 1, 2), x], axis=1)
    return x, jnp.swapaxes(_window_at(x, valid, tail.shape[2]), 1, 2)


def _window_at(x: F32[Array, "B T *rest"], start: I32[Array, " B"] | None, length: int) -> F32[Array, "B {length} *rest"]:
    if start is None:
        return x[:, x.shape[1] - length :]
    return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, length))(x, start)


class PreparedUnit(nnx.Module):
    """ResidualUnit: Snake, dilated convolution, Snake, 1x1 convolution; added to the input."""

    def __init__(self, channels: int, dilation: int) -> None:
        self.act1 = SnakeBeta(channels)
        self.conv1 = nnx.Dict(conv=Kernel((toom_cook.PRODUCTS, channels, channels), channels))
        self.act2 = SnakeBeta(channels)
        self.conv2 = nnx.Dict(conv=Kernel((1, channels, channels), channels))
        self.dilation = dilation

    def __call__(
        self, x: F32[Array, "B T C"], tail: F32[Array, "B C P"], valid: I32[Array, " B"] | None
    ) -> tuple[F32[Array, "B T C"], F32[Array, "B C P"]]:
        first, second = self.conv1["conv"], self.conv2["conv"]
        y, tail = with_past(self.act1.over_last(x), tail, valid)
        y = toom_cook.convolve(y, first.weight[...], self.dilation)
        y = self.act2.over_last(y + over_last(first.bias[...], y))
        y = y @ second.weight[0]
        return x + y + over_last(second.bias[...], y), tail


class PreparedBlock(nnx.Module):
    """UpsamplingBlock: Snake, transposed convolution to ``rate`` times the length and half the channels, three residual units."""

    def __init__(self, channels: int, rate: int) -> None:
        half, self.rate = channels // 2, rate
        stretch = nnx.Dict(conv=Kernel((channels, 2 * rate, half), half))
        layers: list[Any] = [SnakeBeta(channels), stretch, *(PreparedUnit(half, dilation) for dilation in (1, 3, 9))]
        self.block = nnx.List(layers)

    def initial(self, rows: int) -> BlockState:
        """The state at the start of a stream."""
        half = self.block[1]["conv"].bias.shape[0]
        tails = [jnp.zeros((rows, half, (toom_cook.TAPS - 1) * unit.dilation), jnp.float32) for unit in self.block[2:]]
        return BlockState(jnp.zeros((rows, half, self.rate), jnp.float32), tails)

    def __call__(
        self, x: F32[Array, "C B T"], state: BlockState, valid: I32[Array, " B"] | None
    ) -> tuple[F32[Array, "C//2 B T*{self.rate}"], BlockState]:
        x, overlap = self._stretch(self.block[0].over_last(jnp.moveaxis(x, 0, -1)), state.overlap, valid)
        valid = scaled(valid, self.rate)
        tails = []
        for unit, tail in zip(self.block[2:], state.units, strict=True):
            x, tail = unit(x, tail, valid)
            tails.append(tail)
        return jnp.moveaxis(x, -1, 0), BlockState(overlap, tails)

    def _stretch(
        self, x: F32[Array, "B T C"], tail: F32[Array, "B O r"], valid: I32[Array, " B"] | None
    ) -> tuple[F32[Array, "B T*{self.rate} O"], F32[Array, "B O r"]]:
        kernel, (rows, length, width) = self.block[1]["conv"], x.shape
        spread = (x.reshape(-1, width) @ kernel.weight[...].reshape(width, -1)).reshape(rows, length, 2, self.rate, -1)
        reach = jnp.concatenate([jnp.swapaxes(tail, 1, 2)[:, None], spread[:, :, 1]], axis=1)
        y = (spread[:, :, 0] + reach[:, :-1]).reshape(rows, length * self.rate, -1)
        return y + over_last(kernel.bias[...], y), jnp.swapaxes(_window_at(reach, valid, 1)[:, 0], 1, 2)


@jax.jit
def prepare(blocks: dict[int, Any]) -> dict[int, Any]:
    """The parameters of some UpsamplingBlocks -> those of PreparedBlocks. One program for all, since each one has to be compiled."""
    return {index: {"block": _prepared(block["block"])} for index, block in blocks.items()}


def _prepared(layers: Mapping[int, Any]) -> dict[int, Any]:
    snake, stretch, *units = (layers[index] for index in range(len(layers)))
    stretched = _with(stretch, jnp.transpose(stretch["conv"]["weight"], (0, 2, 1)))
    return dict(enumerate([snake, stretched, *map(_prepared_unit, units)]))


def _prepared_unit(unit: Mapping[str, Any]) -> dict[str, Any]:
    first, second = unit["conv1"], unit["conv2"]
    first = _with(first, toom_cook.prepare(first["conv"]["weight"]))
    return {**unit, "conv1": first, "conv2": _with(second, jnp.transpose(second["conv"]["weight"], (2, 1, 0)))}


def _with(layer: Mapping[str, Any], weight: jax.Array) -> dict[str, Any]:
    return {"conv": {**layer["conv"], "weight": weight}}
