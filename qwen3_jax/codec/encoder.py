"""Codec encoder (Mimi): wave [B F] at 24 kHz -> codes [B N K], N = ceil(F / 1920). For cloning; it sees a clip at once.

    wave -> conv k7 -> 4 x (residual block, ELU, strided conv) -> ELU, conv k3 -> transformer -> stride-2 conv -> split RVQ

Waves are padded to a bucket's length and must give the codes of the unpadded wave. All is causal, so padding can only act
through a strided convolution whose last window is part real, part padding. The published encoder completes that window with
zeros at the convolution's own input (the stride-2 convolution: with its last input), so that is what is put there here.
Source of the formulas: `transformers` 4.57.3, models/mimi/modeling_mimi.py (MimiModel._encode_frame, MimiConv1d).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.codec.conv import Kernel, convolve
from qwen3_jax.codec.rvq import SplitEncoder
from qwen3_jax.codec.transformer import EncoderTransformer
from qwen3_jax.model.config import CodecEncoderConfig
from qwen3_jax.shapes import F32, I32, Array

WINDOW = 50  # steps of 960 samples, 2 s, that the convolutions work on at once: 8 s at full size took 313 MB of work space, and take 109


def _ceil_div(a: I32[Array, " B"], b: int) -> I32[Array, " B"]:
    return -(-a // b)


class PaddedConv(nnx.Module):
    """Causal convolution of a whole clip: x [I B T], of which each row's first ``valid`` count -> [O B ceil(T / stride)]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, bias: bool = True, replicate: bool = False) -> None:
        self.conv = Kernel((outputs, inputs, kernel), outputs, bias=bias)
        self.past, self.stride, self.replicate = kernel - stride, stride, replicate

    def __call__(self, x: F32[Array, "I B T"], valid: I32[Array, " B"]) -> tuple[F32[Array, "O B -(-T//{self.stride})"], I32[Array, " B"]]:
        if self.stride > 1:
            x = self._end_at(jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % self.stride))), valid)
        x = jnp.pad(x, ((0, 0), (0, 0), (self.past, 0)), mode="edge" if self.replicate else "constant")
        y = convolve(x, self.conv.weight[...], stride=self.stride)
        if self.conv.bias is not None:
            y = y + self.conv.bias[...][:, None, None]
        return y, _ceil_div(valid, self.stride)

    def _end_at(self, x: F32[Array, "I B T"], valid: I32[Array, " B"]) -> F32[Array, "I B T"]:
        """What follows the valid part: zeros, or its last value."""
        inside = (jnp.arange(x.shape[2])[None] < valid[:, None])[None]
        last = jnp.take_along_axis(x, jnp.maximum(valid - 1, 0)[None, :, None], axis=2) if self.replicate else 0.0
        return jnp.where(inside, x, last)


class ResidualBlock(nnx.Module):
    """ELU, convolution to half the channels, ELU, 1x1 convolution back; added to the input."""

    def __init__(self, channels: int, inner: int, kernel: int) -> None:
        self.block = nnx.Dict({"1": PaddedConv(channels, inner, kernel), "3": PaddedConv(inner, channels, 1)})

    def __call__(self, x: F32[Array, "C B T"], valid: I32[Array, " B"]) -> tuple[F32[Array, "C B T"], I32[Array, " B"]]:
        y, _ = self.block["1"](jax.nn.elu(x), valid)
        y, _ = self.block["3"](jax.nn.elu(y), valid)
        return x + y, valid


class ConvEncoder(nnx.Module):
    """wave [1 B F] -> [H B T], T = ceil(F / 960). The published list also counts the activations, hence the gaps."""

    def __init__(self, cfg: CodecEncoderConfig) -> None:
        channels = cfg.num_filters
        layers: dict[str, nnx.Module] = {"0": PaddedConv(1, channels, cfg.kernel_size)}
        for i, rate in enumerate(reversed(cfg.upsampling_ratios)):
            layers[str(3 * i + 1)] = ResidualBlock(channels, channels // cfg.compress, cfg.residual_kernel_size)
            layers[str(3 * i + 3)] = PaddedConv(channels, 2 * channels, 2 * rate, stride=rate)
            channels *= 2
        layers[str(3 * len(cfg.upsampling_ratios) + 2)] = PaddedConv(channels, cfg.hidden_size, cfg.last_kernel_size)
        self.layers = nnx.Dict(layers)

    def __call__(self, wave: F32[Array, "1 B F"], valid: I32[Array, " B"]) -> tuple[F32[Array, "H B T"], I32[Array, " B"]]:
        return self.through(self.order, wave, valid)

    def in_windows(self, wave: F32[Array, "1 B F"], valid: I32[Array, " B"]) -> tuple[F32[Array, "H B T"], I32[Array, " B"]]:
        """The same, WINDOW steps at a time, each with as much of its past as it sees: so a long clip takes no more work space."""
        rate, reach = self._rate_and_reach()
        size, length = WINDOW + reach, -(-wave.shape[2] // rate)
        if length <= size:
            return self(wave, valid)
        count = -(-(length - reach) // WINDOW)
        wave = jnp.pad(wave, ((0, 0), (0, 0), (0, (count * WINDOW + reach) * rate - wave.shape[2])))

        def window(index: I32[Array, ""]) -> F32[Array, "H B _"]:
            at = index * WINDOW * rate
            return self(jax.lax.dynamic_slice_in_dim(wave, at, size * rate, 2), jnp.clip(valid - at, 0, size * rate))[0]

        windows = jax.lax.map(window, jnp.arange(count))  # [count H B reach+WINDOW]; what reaches before a window is the one before's
        rest = jnp.moveaxis(windows[..., reach:], 0, 2)
        x = jnp.concatenate([windows[0, ..., :reach], rest.reshape(*rest.shape[:2], -1)], axis=2)
        return x[..., :length], _ceil_div(valid, rate)

    def _rate_and_reach(self) -> tuple[int, int]:
        """Samples of a step, and steps back that a step sees."""
        rate, reach = 1, 0
        for name in self.order:
            layer = self.layers[name]
            for conv in layer.block.values() if isinstance(layer, ResidualBlock) else [layer]:
                reach += conv.past * rate
                rate *= conv.stride
        return rate, math.ceil(reach / rate)

    @property
    def order(self) -> list[str]:
        """Names of the layers, first to last."""
        return sorted(self.layers, key=int)

    def through(self, names: list[str], x: F32[Array, "I B T"], valid: I32[Array, " B"]) -> tuple[F32[Array, "O B _"], I32[Array, " B"]]:
        """Through some layers that follow each other."""
        for name in names:
            layer = self.layers[name]
            # an ELU stands before every plain convolution but the first; a residual block brings its own
            if name != "0" and isinstance(layer, PaddedConv):
                x = jax.nn.elu(x)
            x, valid = layer(x, valid)
        return x, valid


class Encoder(nnx.Module):
    """The speech tokenizer's encoder. See the module's docstring."""

    def __init__(self, cfg: CodecEncoderConfig, books: int) -> None:
        self.encoder = ConvEncoder(cfg)
        self.encoder_transformer = EncoderTransformer(cfg)
        self.downsample = PaddedConv(cfg.hidden_size, cfg.hidden_size, 4, stride=2, bias=False, replicate=True)
        self.quantizer = SplitEncoder(books, cfg.codebook_size, cfg.codebook_dim, cfg.hidden_size)

    def __call__(self, wave: F32[Array, "B F"], valid: I32[Array, " B"]) -> I32[Array, "B N K"]:
        """Encode clips.

        Args:
            wave: [B F] float32, 24 kHz mono.
            valid: [B] int32, samples of each row that are real (1 <= valid <= F); what follows them changes nothing.

        Returns:
            codes [B N K] int32, N = ceil(F / 1920); frames from ceil(valid / 1920) on are -1.
        """
        with jax.default_matmul_precision("highest"):  # as in the decoder
            x, steps = self.encoder.in_windows(wave[None], valid)
            x, frames = self.downsample(self.encoder_transformer(x), steps)
            codes = self.quantizer(jnp.moveaxis(x, 0, -1))
        return jnp.where(jnp.arange(codes.shape[1])[None, :, None] < frames[:, None, None], codes, -1)
