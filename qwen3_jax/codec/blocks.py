"""The decoder's upsampling blocks as published, and as they are trained: x [C B T] -> y [C//2 B T*rate]. Speech uses upsampler.py."""

from typing import NamedTuple

from flax import nnx

from qwen3_jax.codec.conv import CausalConv, PointwiseConv, TransposedConv
from qwen3_jax.codec.snake import SnakeBeta
from qwen3_jax.shapes import F32, I32, Array


class BlockState(NamedTuple):
    """State of one upsampling block."""

    overlap: F32[Array, "B O _"]  # see TransposedConv
    units: list[F32[Array, "B O _"]]  # of each residual unit: 6 * dilation inputs, see CausalConv


class ResidualUnit(nnx.Module):
    """Snake, dilated convolution, Snake, 1x1 convolution; added to the input."""

    def __init__(self, channels: int, dilation: int) -> None:
        self.act1 = SnakeBeta(channels)
        self.conv1 = CausalConv(channels, channels, 7, dilation=dilation)
        self.act2 = SnakeBeta(channels)
        self.conv2 = PointwiseConv(channels, channels)

    def __call__(
        self, x: F32[Array, "C B T"], tail: F32[Array, "B C P"], valid: I32[Array, " B"] | None
    ) -> tuple[F32[Array, "C B T"], F32[Array, "B C P"]]:
        y, tail = self.conv1(self.act1(x), tail, valid)
        return x + self.conv2(self.act2(y)), tail


class UpsamplingBlock(nnx.Module):
    """Snake, transposed convolution to ``rate`` times the length and half the channels, three residual units."""

    def __init__(self, channels: int, rate: int) -> None:
        half, self.rate = channels // 2, rate
        units = [ResidualUnit(half, dilation) for dilation in (1, 3, 9)]
        self.block = nnx.List([SnakeBeta(channels), TransposedConv(channels, half, rate), *units])

    def initial(self, rows: int) -> BlockState:
        """The state at the start of a stream."""
        return BlockState(self.block[1].initial(rows), [unit.conv1.initial(rows) for unit in self.block[2:]])

    def __call__(
        self, x: F32[Array, "C B T"], state: BlockState, valid: I32[Array, " B"] | None
    ) -> tuple[F32[Array, "C//2 B T*{self.rate}"], BlockState]:
        x, overlap = self.block[1](self.block[0](x), state.overlap, valid)
        valid = scaled(valid, self.rate)
        tails = []
        for unit, tail in zip(self.block[2:], state.units, strict=True):
            x, tail = unit(x, tail, valid)
            tails.append(tail)
        return x, BlockState(overlap, tails)


def scaled(valid: I32[Array, " B"] | None, rate: int) -> I32[Array, " B"] | None:
    """The valid lengths at ``rate`` times the length."""
    return None if valid is None else valid * rate
