"""Speaker encoder (ECAPA-TDNN): log-mel [B F 128] -> x-vector [B H], always in float32.

Mels may be padded to a bucket's length: each row's true length is an argument, "same" convolutions reflect at the true end
and pools average over the true frames, so the x-vector is that of the unpadded mel.
Sources: `qwen-tts` 0.1.1, core/models/modeling_qwen3_tts.py (Qwen3TTSSpeakerEncoder); ECAPA-TDNN, arXiv 2005.07143.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.codec.conv import Kernel
from qwen3_jax.model.config import SpeakerEncoderConfig
from qwen3_jax.model.products import matmul
from qwen3_jax.shapes import F32, I32, Array, Bool

_VARIANCE_FLOOR = 1e-12


class Extent(NamedTuple):
    """Which frames of a padded batch are real."""

    length: I32[Array, " B"]
    mask: Bool[Array, "B _ 1"]

    def mean(self, x: F32[Array, "B F C"]) -> F32[Array, "B 1 C"]:
        return jnp.sum(jnp.where(self.mask, x, 0.0), axis=1, keepdims=True) / self.length.astype(jnp.float32)[:, None, None]


class TimeConv(Kernel):
    """Convolution [B F I] -> [B F O] of "same" length with reflection at both true ends; the kernel size is odd."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, *, dilation: int = 1) -> None:
        super().__init__((outputs, inputs, kernel), outputs)
        self.dilation, self.pad = dilation, dilation * (kernel - 1) // 2

    def __call__(self, x: F32[Array, "B F I"], extent: Extent) -> F32[Array, "B F O"]:
        weight, frames = self.weight[...], x.shape[1]
        if not self.pad:
            return matmul(x, weight[:, :, 0]) + self.bias[...][None, None]
        last = extent.length[:, None] - 1
        source = jnp.abs(jnp.arange(-self.pad, frames + self.pad))[None]
        source = jnp.where(source > last, 2 * last - source, source)
        x = jnp.take_along_axis(x, jnp.clip(source, 0, frames - 1)[..., None], axis=1)
        taps = [x[:, tap * self.dilation : tap * self.dilation + frames] for tap in range(weight.shape[2])]
        return jnp.einsum("bfik,oik->bfo", jnp.stack(taps, axis=3), weight) + self.bias[...][None, None]


class TimeDelay(nnx.Module):
    """Convolution and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, *, dilation: int = 1) -> None:
        self.conv = TimeConv(inputs, outputs, kernel, dilation=dilation)

    def __call__(self, x: F32[Array, "B F I"], extent: Extent) -> F32[Array, "B F O"]:
        return jax.nn.relu(self.conv(x, extent))


class Res2Net(nnx.Module):
    """Channels in ``scale`` groups; each group but the first is convolved together with the result of the one before."""

    def __init__(self, channels: int, scale: int, kernel: int, dilation: int) -> None:
        width = channels // scale
        self.blocks = nnx.List([TimeDelay(width, width, kernel, dilation=dilation) for _ in range(scale - 1)])

    def __call__(self, x: F32[Array, "B F C"], extent: Extent) -> F32[Array, "B F C"]:
        first, *groups = jnp.split(x, len(self.blocks) + 1, axis=2)
        outputs = [first]
        for index, (block, group) in enumerate(zip(self.blocks, groups, strict=True)):
            outputs.append(block(group if index == 0 else group + outputs[-1], extent))
        return jnp.concatenate(outputs, axis=2)


class SqueezeExcitation(nnx.Module):
    """Each channel scaled by a gate that the clip's mean decides."""

    def __init__(self, channels: int, inner: int) -> None:
        self.conv1 = TimeConv(channels, inner)
        self.conv2 = TimeConv(inner, channels)

    def __call__(self, x: F32[Array, "B F C"], extent: Extent) -> F32[Array, "B F C"]:
        gate = jax.nn.relu(self.conv1(extent.mean(x), extent))
        return x * jax.nn.sigmoid(self.conv2(gate, extent))


class SERes2NetBlock(nnx.Module):
    """TDNN, Res2Net, TDNN, squeeze-excitation; added to the input."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int, cfg: SpeakerEncoderConfig) -> None:
        self.tdnn1 = TimeDelay(inputs, outputs)
        self.res2net_block = Res2Net(outputs, cfg.enc_res2net_scale, kernel, dilation)
        self.tdnn2 = TimeDelay(outputs, outputs)
        self.se_block = SqueezeExcitation(outputs, cfg.enc_se_channels)

    def __call__(self, x: F32[Array, "B F C"], extent: Extent) -> F32[Array, "B F C"]:
        y = self.tdnn2(self.res2net_block(self.tdnn1(x, extent), extent), extent)
        return x + self.se_block(y, extent)


class AttentivePooling(nnx.Module):
    """Mean and standard deviation over time, weighted per channel by attention: [B F C] -> [B 1 2C]."""

    def __init__(self, channels: int, inner: int) -> None:
        self.tdnn = TimeDelay(3 * channels, inner)
        self.conv = TimeConv(inner, channels)

    def __call__(self, x: F32[Array, "B F C"], extent: Extent) -> F32[Array, "B 1 2*C"]:
        mean = extent.mean(x)
        spread = _spread(extent.mean(jnp.square(x - mean)))
        context = jnp.concatenate([x, *(jnp.broadcast_to(part, x.shape) for part in (mean, spread))], axis=2)
        scores = self.conv(jnp.tanh(self.tdnn(context, extent)), extent)
        weights = jax.nn.softmax(jnp.where(extent.mask, scores, -jnp.inf), axis=1)
        mean = jnp.sum(weights * x, axis=1, keepdims=True)
        spread = _spread(jnp.sum(weights * jnp.square(x - mean), axis=1, keepdims=True))
        return jnp.concatenate([mean, spread], axis=2)


def _spread(variance: F32[Array, "B 1 C"]) -> F32[Array, "B 1 C"]:
    return jnp.sqrt(jnp.maximum(variance, _VARIANCE_FLOOR))


class SpeakerEncoder(nnx.Module):
    """The whole encoder. See the module's docstring."""

    def __init__(self, cfg: SpeakerEncoderConfig) -> None:
        channels, kernels, dilations = cfg.enc_channels, cfg.enc_kernel_sizes, cfg.enc_dilations
        blocks: list[nnx.Module] = [TimeDelay(cfg.mel_dim, channels[0], kernels[0], dilation=dilations[0])]
        for i in range(1, len(channels) - 1):
            blocks.append(SERes2NetBlock(channels[i - 1], channels[i], kernels[i], dilations[i], cfg))
        self.blocks = nnx.List(blocks)
        self.mfa = TimeDelay(sum(channels[1:-1]), channels[-1], kernels[-1], dilation=dilations[-1])
        self.asp = AttentivePooling(channels[-1], cfg.enc_attention_channels)
        self.fc = TimeConv(2 * channels[-1], cfg.enc_dim)

    def __call__(self, mel: F32[Array, "B F 128"], length: I32[Array, " B"]) -> F32[Array, "B H"]:
        """Embed clips.

        Args:
            mel: [B F 128] float32, as `audio.mel_spectrogram` makes it.
            length: [B] int32, frames of each row that are real, more than the widest padding (4 frames at full size).

        Returns:
            x-vectors [B H] float32.
        """
        extent = Extent(length, (jnp.arange(mel.shape[1])[None] < length[:, None])[..., None])
        with jax.default_matmul_precision("highest"):  # float32 on GPUs and TPUs too
            x, levels = mel, []
            for block in self.blocks:
                x = block(x, extent)
                levels.append(x)
            x = self.mfa(jnp.concatenate(levels[1:], axis=2), extent)
            return self.fc(self.asp(x, extent), extent)[:, 0]
