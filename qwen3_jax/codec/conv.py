"""Causal convolutions with explicit state: x [C B T], tail [B C P] -> y [C B T'], tail [B C P].

Inside the codec an activation is [C B T]: channels first, rows next, time last. A kernel in its published layout [O I k] is
then the left factor of one matrix product, W [O I*k] x columns [I*k B*T], where the columns are k shifted copies of whole
time lines. No kernel is ever transposed: that
would move 450 MB a call. Of nine forms timed on 2 (shared) cores at 1 and 4 frames, this was the fastest for the widest layers;
for the narrow ones a kernel stored as [k I O] was up to 30 % faster in that run, which would need a second layout at loading.

The state of a convolution is what it still remembers of its past: the last P = dilation * (k - 1) inputs, or for a
transposed convolution the part of its output that reaches into the next chunk. State has the rows first, so that a row can
be reset or moved alone; all zeros is the start of a stream, since the published model pads with zeros. ``valid`` [B] is
given when only a row's first inputs are real: the state then is that after those; None: all are.

Source of the formulas: `qwen-tts` 0.1.1, core/tokenizer_12hz/modeling_qwen3_tts_tokenizer_v2.py.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.model.layers import LayerNorm, Linear, RMSNorm
from qwen3_jax.shapes import F32, I32, Array


class Kernel(nnx.Module):
    """Weight [O I k] (of a transposed convolution [I O k]) and bias [O], as published."""

    def __init__(self, shape: tuple[int, int, int], outputs: int, *, bias: bool = True) -> None:
        self.weight = nnx.Param(jnp.zeros(shape))
        self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None


def convolve(
    x: F32[Array, "I B T"], weight: F32[Array, "O I k"], *, dilation: int = 1, stride: int = 1
) -> F32[Array, "O B (T-{dilation}*(k-1)-1)//{stride}+1"]:
    """Convolution without padding."""
    outputs, inputs, size = weight.shape
    length = (x.shape[2] - dilation * (size - 1) - 1) // stride + 1
    reach = (length - 1) * stride + 1

    def shifted(lines: F32[Array, "*rest T"]) -> list[F32[Array, "*rest _"]]:
        return [lines[..., tap * dilation : tap * dilation + reach : stride] for tap in range(size)]

    if 1 < size <= inputs // outputs:  # few outputs: every tap's product first, then the shifts, moves less than the columns would
        taps = jnp.einsum("oik,ibt->kobt", weight, x)
        return functools.reduce(jnp.add, [line[tap] for tap, line in enumerate(shifted(taps))])
    columns = x[:, :, :reach:stride] if size == 1 else jnp.stack(shifted(x), axis=1)
    y = weight.reshape(outputs, -1) @ columns.reshape(inputs * size, -1)
    return y.reshape(outputs, x.shape[1], length)


def dense(linear: Linear, x: F32[Array, "I B T"]) -> F32[Array, "O B T"]:
    """A matrix at every position. As W x, not x W^T: timed on XLA:CPU 1.1 to 2.7 times faster for 4 to 32 positions."""
    y = (linear.weight[...] @ x.reshape(x.shape[0], -1)).reshape(-1, *x.shape[1:])
    return y if linear.bias is None else y + linear.bias[...][:, None, None]


def over_channels(norm: RMSNorm | LayerNorm, x: F32[Array, "C B T"]) -> F32[Array, "C B T"]:
    """A norm of model/layers.py, which works on the last axis."""
    return jnp.moveaxis(norm(jnp.moveaxis(x, 0, -1)), -1, 0)


def depthwise(x: F32[Array, "C B T"], weight: F32[Array, "C 1 k"]) -> F32[Array, "C B T-k+1"]:
    """Each channel with its own kernel, without padding."""
    size = weight.shape[2]
    length = x.shape[2] - size + 1
    taps = (x[:, :, tap : tap + length] * weight[:, :, tap, None] for tap in range(size))
    return functools.reduce(jnp.add, taps)


def window_at(x: F32[Array, "B *rest _"], start: I32[Array, " B"] | None, length: int) -> F32[Array, "B *rest {length}"]:
    """``length`` columns of the last axis from each row's own ``start`` on; None: the last ones."""
    if start is None:
        return x[..., x.shape[-1] - length :]
    return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, length, axis=-1))(x, start)


def with_past(
    x: F32[Array, "C B T"], tail: F32[Array, "B C P"], valid: I32[Array, " B"] | None
) -> tuple[F32[Array, "C B P+T"], F32[Array, "B C P"]]:
    """Put the remembered inputs before the new ones; remember the last P up to the valid end."""
    x = jnp.concatenate([jnp.swapaxes(tail, 0, 1), x], axis=2)
    return x, window_at(jnp.swapaxes(x, 0, 1), valid, tail.shape[2])


class CausalConv(nnx.Module):
    """Convolution that sees its own and the P = dilation * (k - 1) inputs before it. ``grouped``: one kernel per channel."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, dilation: int = 1, grouped: bool = False) -> None:
        self.conv = Kernel((outputs, 1 if grouped else inputs, kernel), outputs)
        self.inputs, self.past, self.dilation, self.grouped = inputs, dilation * (kernel - 1), dilation, grouped

    def initial(self, rows: int) -> F32[Array, "{rows} I P"]:
        """The state at the start of a stream."""
        return jnp.zeros((rows, self.inputs, self.past), jnp.float32)

    def __call__(
        self, x: F32[Array, "I B T"], tail: F32[Array, "B I P"], valid: I32[Array, " B"] | None = None
    ) -> tuple[F32[Array, "O B T"], F32[Array, "B I P"]]:
        x, tail = with_past(x, tail, valid)
        weight = self.conv.weight[...]
        y = depthwise(x, weight) if self.grouped else convolve(x, weight, dilation=self.dilation)
        return _add_bias(y, self.conv), tail


class PointwiseConv(nnx.Module):
    """Convolution with k = 1: no past, no state."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.conv = Kernel((outputs, inputs, 1), outputs)

    def __call__(self, x: F32[Array, "I B T"]) -> F32[Array, "O B T"]:
        return _add_bias(convolve(x, self.conv.weight[...]), self.conv)


class Upsample(nnx.Module):
    """Transposed convolution with k = stride: every input makes ``rate`` outputs of its own. No state."""

    def __init__(self, inputs: int, outputs: int, rate: int) -> None:
        self.conv = Kernel((inputs, outputs, rate), outputs)
        self.rate = rate

    def __call__(self, x: F32[Array, "I B T"]) -> F32[Array, "O B T*{self.rate}"]:
        return _add_bias(_interleave(_spread(x, self.conv.weight[...])), self.conv)


class TransposedConv(nnx.Module):
    """Transposed convolution with k = 2 * rate, stride = rate: the second half of an input's outputs adds to its successor's.

    The state is that second half for the last input, without the bias: [B O rate].
    """

    def __init__(self, inputs: int, outputs: int, rate: int) -> None:
        self.conv = Kernel((inputs, outputs, 2 * rate), outputs)
        self.outputs, self.rate = outputs, rate

    def initial(self, rows: int) -> F32[Array, "{rows} O {self.rate}"]:
        """The state at the start of a stream."""
        return jnp.zeros((rows, self.outputs, self.rate), jnp.float32)

    def __call__(
        self, x: F32[Array, "I B T"], tail: F32[Array, "B O {self.rate}"], valid: I32[Array, " B"] | None = None
    ) -> tuple[F32[Array, "O B T*{self.rate}"], F32[Array, "B O {self.rate}"]]:
        spread = _spread(x, self.conv.weight[...])
        own, reach = spread[..., : self.rate], spread[..., self.rate :]
        reach = jnp.concatenate([tail[:, None], reach], axis=1)
        y = _add_bias(_interleave(own + reach[:, :-1]), self.conv)
        return y, window_at(jnp.moveaxis(reach, 1, -1), valid, 1)[..., 0]


def _add_bias(y: F32[Array, "O B T"], kernel: Kernel) -> F32[Array, "O B T"]:
    return y if kernel.bias is None else y + kernel.bias[...][:, None, None]


def _spread(x: F32[Array, "I B T"], weight: F32[Array, "I O k"]) -> F32[Array, "B T O k"]:
    """What each input adds at each of its k output positions. As x^T W: W^T x would transpose the kernel at every call."""
    inputs, outputs, size = weight.shape
    y = jax.lax.dot_general(x.reshape(inputs, -1), weight.reshape(inputs, -1), (((0,), (0,)), ((), ())))
    return y.reshape(*x.shape[1:], outputs, size)


def _interleave(y: F32[Array, "B T O r"]) -> F32[Array, "O B T*r"]:
    rows, length, outputs, rate = y.shape
    return jnp.transpose(y, (2, 0, 1, 3)).reshape(outputs, rows, length * rate)
