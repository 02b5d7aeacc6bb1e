"""Discriminators of waves [B F] -> scores and activations: three that see the wave folded by a period, three that see its spectrum.

Kept small, since on a CPU they cost as much as the generator: 0.23 M parameters in all. Every convolution is the codec's own
`convolve`, one matrix product, whose gradient is two more (XLA's CPU convolution has a slow one with respect to the kernel).
Sources: multi-period discriminator of HiFi-GAN (arXiv 2010.05646); complex spectra as in EnCodec (arXiv 2210.13438).
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.codec.conv import Kernel, convolve
from qwen3_jax.shapes import F32, Array
from training.codec.losses import Judgement, spectrum

PERIODS = (2, 5, 11)
FFTS = (512, 1024, 2048)


def _leaky(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 0.1 * x)


class SameConv(nnx.Module):
    """Convolution over the last axis of [C B T], padded so that T' = ceil(T / stride)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        self.conv = Kernel((outputs, inputs, kernel), outputs)
        self.kernel, self.stride = kernel, stride

    def __call__(self, x: F32[Array, "C B T"]) -> F32[Array, "O B _"]:
        left = (self.kernel - 1) // 2
        right = self.kernel - 1 - left + (-x.shape[2] % self.stride)
        x = jnp.pad(x, ((0, 0), (0, 0), (left, right)))
        return convolve(x, self.conv.weight[...], stride=self.stride) + self.conv.bias[...][:, None, None]


class PeriodDiscriminator(nnx.Module):
    """Sees every ``period``-th sample, in each of the phases."""

    def __init__(self, period: int) -> None:
        sizes = (1, 16, 32, 64, 96)
        self.period = period
        self.layers = nnx.List([SameConv(a, b, 5, 3) for a, b in itertools.pairwise(sizes)])
        self.last = SameConv(sizes[-1], 1, 3)

    def __call__(self, wave: F32[Array, "B F"]) -> tuple[jax.Array, list[jax.Array]]:
        length = wave.shape[1] // self.period
        x = wave[:, : length * self.period].reshape(len(wave), length, self.period)
        x = jnp.swapaxes(x, 1, 2).reshape(1, -1, length)
        seen = []
        for layer in self.layers:
            x = _leaky(layer(x))
            seen.append(x)
        return self.last(x), seen


class SpectrumDiscriminator(nnx.Module):
    """Sees real and imaginary parts; kernels of 3 frames x 5 bins, half the bins after each layer."""

    def __init__(self, fft: int) -> None:
        sizes = (2, 16, 24, 32, 32)
        self.fft = fft
        self.layers = nnx.List([SameConv(3 * a, b, 5, 2) for a, b in itertools.pairwise(sizes)])
        self.last = SameConv(3 * sizes[-1], 1, 3)

    def __call__(self, wave: F32[Array, "B F"]) -> tuple[jax.Array, list[jax.Array]]:
        parts = jnp.stack(spectrum(wave, self.fft, self.fft // 4))
        size = jnp.sqrt(jnp.square(parts).sum(axis=0) + 1e-6)
        x = parts * (2.0 / jnp.sqrt(size))  # between a linear and a logarithmic scale: quiet bins count as well
        seen = []
        for layer in self.layers:
            x = _leaky(_beside(layer, x))
            seen.append(x)
        return _beside(self.last, x), seen


def _beside(layer: SameConv, x: F32[Array, "C B T bins"]) -> F32[Array, "O B T _"]:
    """A layer over bins, with the frame before and after as more channels."""
    channels, rows, length, bins = x.shape
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    near = jnp.concatenate([padded[:, :, shift : shift + length] for shift in range(3)])
    y = layer(near.reshape(3 * channels, rows * length, bins))
    return y.reshape(y.shape[0], rows, length, -1)


class Discriminators(nnx.Module):
    """All of them. At a call one pair judges, a period's and a spectrum's: taking turns, a step costs a third of all."""

    def __init__(self) -> None:
        self.periods = nnx.List([PeriodDiscriminator(period) for period in PERIODS])
        self.spectra = nnx.List([SpectrumDiscriminator(fft) for fft in FFTS])

    def __call__(self, wave: F32[Array, "B F"], pair: int) -> Judgement:
        judged = [one(wave) for one in (self.periods[pair], self.spectra[pair])]
        return [scores for scores, _ in judged], [seen for _, seen in judged]
