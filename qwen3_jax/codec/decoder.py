"""Codec decoder: codes [B N K] and state -> pcm [B N*1920] at 24 kHz and state. One forward for one frame or for all.

    codes -> RVQ -> conv k3 -> transformer (window 72) -> 2 x (x2, ConvNeXt) -> conv k7 -> 4 x (Snake, x8/5/4/3, 3 residual
    units) -> Snake -> conv k7 -> clamp

Every part is causal and hands its past on, so decoding in chunks of any size equals decoding everything at once. Activations
are [C B T], see conv.py.
Source of the formulas: `qwen-tts` 0.1.1, core/tokenizer_12hz/modeling_qwen3_tts_tokenizer_v2.py (Qwen3TTSTokenizerV2Decoder).
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3_jax.codec import upsampler
from qwen3_jax.codec.blocks import BlockState, UpsamplingBlock, scaled
from qwen3_jax.codec.conv import CausalConv, Upsample, dense, over_channels
from qwen3_jax.codec.rvq import SplitDecoder
from qwen3_jax.codec.snake import SnakeBeta
from qwen3_jax.codec.transformer import WindowTransformer
from qwen3_jax.codec.upsampler import PreparedBlock
from qwen3_jax.model.cache import LayerCache
from qwen3_jax.model.config import CodecDecoderConfig
from qwen3_jax.model.layers import LayerNorm, Linear
from qwen3_jax.shapes import F32, I32, Array


class DecoderState(NamedTuple):
    """All that the decoder remembers. Every array has the rows as its first axis, so a row can be reset or moved alone."""

    position: I32[Array, " B"]  # frames decoded so far
    pre_conv: F32[Array, "B _ 2"]
    window: list[LayerCache]  # of each transformer layer: k and v [B J W-1 D]
    convnext: list[F32[Array, "B _ 6"]]  # of each doubling
    first_conv: F32[Array, "B _ 6"]
    blocks: list[BlockState]
    last_conv: F32[Array, "B _ 6"]


class ConvNeXt(nnx.Module):
    """Depthwise causal convolution, then a per-position MLP; added to the input."""

    def __init__(self, width: int) -> None:
        self.dwconv = CausalConv(width, width, 7, grouped=True)
        self.norm = LayerNorm(width, 1e-6)
        self.pwconv1 = Linear(width, 4 * width, bias=True)
        self.pwconv2 = Linear(4 * width, width, bias=True)
        self.gamma = nnx.Param(jnp.ones((width,)))

    def __call__(
        self, x: F32[Array, "C B T"], tail: F32[Array, "B C 6"], valid: I32[Array, " B"] | None
    ) -> tuple[F32[Array, "C B T"], F32[Array, "B C 6"]]:
        y, tail = self.dwconv(x, tail, valid)
        y = jax.nn.gelu(dense(self.pwconv1, over_channels(self.norm, y)), approximate=False)
        return x + self.gamma[...][:, None, None] * dense(self.pwconv2, y), tail


class Decoder(nnx.Module):
    """The speech tokenizer's decoder. See the module's docstring. ``prepared``: its parameters are those that `prepare` makes."""

    def __init__(self, cfg: CodecDecoderConfig, *, prepared: bool = False) -> None:
        last = cfg.decoder_dim // 2 ** len(cfg.upsample_rates)
        self.quantizer = SplitDecoder(cfg.num_quantizers, cfg.codebook_size, cfg.codebook_dim)
        self.pre_conv = CausalConv(cfg.codebook_dim, cfg.latent_dim, 3)
        self.pre_transformer = WindowTransformer(cfg)
        width = cfg.latent_dim
        self.upsample = nnx.List([nnx.List([Upsample(width, width, rate), ConvNeXt(width)]) for rate in cfg.upsampling_ratios])
        widths = [cfg.decoder_dim // 2**i for i in range(len(cfg.upsample_rates))]
        blocks: list[Any] = [
            PreparedBlock(width, rate) if prepared and _pays(i, width // 2) else UpsamplingBlock(width, rate)
            for i, (width, rate) in enumerate(zip(widths, cfg.upsample_rates, strict=True))
        ]
        layers: list[Any] = [CausalConv(cfg.latent_dim, cfg.decoder_dim, 7), *blocks, SnakeBeta(last), CausalConv(last, 1, 7)]
        self.decoder = nnx.List(layers)
        self.samples = math.prod((*cfg.upsampling_ratios, *cfg.upsample_rates))  # of a frame

    def initial(self, rows: int) -> DecoderState:
        """The state at the start of a stream; zeros everywhere."""
        first, *blocks, _, last = self.decoder
        return DecoderState(
            position=jnp.zeros((rows,), jnp.int32),
            pre_conv=self.pre_conv.initial(rows),
            window=self.pre_transformer.initial(rows),
            convnext=[stage[1].dwconv.initial(rows) for stage in self.upsample],
            first_conv=first.initial(rows),
            blocks=[block.initial(rows) for block in blocks],
            last_conv=last.initial(rows),
        )

    def __call__(
        self, codes: I32[Array, "B N K"], state: DecoderState, valid: I32[Array, " B"] | None = None
    ) -> tuple[F32[Array, "B N*1920"], DecoderState]:
        """Decode N more frames of each row.

        Args:
            codes: [B N K] int32; -1 (padding) counts as 0.
            state: of these rows, from `init_state` or an earlier call.
            valid: [B] int32, 0 to N: only this many frames of each row are real. Default: all.

        Returns:
            pcm [B N*1920] float32 in [-1, 1] at 24 kHz, of which a row's first valid * 1920 samples count, and the state
            after the valid frames. A sample that is not finite is NaN. Working memory is about 9 MB per row and frame of N at full size.
        """
        # float32 all the way: without this, GPUs and TPUs multiply float32 matrices in fewer bits
        with jax.default_matmul_precision("highest"):
            return self._decode(jnp.maximum(codes, 0), state, valid)

    def _decode(
        self, codes: I32[Array, "B N K"], state: DecoderState, valid: I32[Array, " B"] | None
    ) -> tuple[F32[Array, "B N*1920"], DecoderState]:
        position = state.position + (codes.shape[1] if valid is None else valid)
        x, pre_conv = self.pre_conv(jnp.moveaxis(self.quantizer(codes), -1, 0), state.pre_conv, valid)
        x, window = self.pre_transformer(x, state.window, state.position, valid)
        convnext = []
        for (stretch, mix), tail in zip(self.upsample, state.convnext, strict=True):
            valid = scaled(valid, stretch.rate)
            x, tail = mix(stretch(x), tail, valid)
            convnext.append(tail)
        first, *blocks, snake, last = self.decoder
        x, first_conv = first(x, state.first_conv, valid)
        block_states = []
        for block, block_state in zip(blocks, state.blocks, strict=True):
            x, block_state = block(x, block_state, valid)
            valid = scaled(valid, block.rate)
            block_states.append(block_state)
        x, last_conv = last(snake(x), state.last_conv, valid)
        # An infinite sample is a fault, not a loud one.
        pcm = jnp.where(jnp.isfinite(x[0]), jnp.clip(x[0], -1.0, 1.0), jnp.nan)
        return pcm, DecoderState(position, pre_conv, window, convnext, first_conv, block_states, last_conv)


LEAST_CHANNELS = 96  # of a prepared block: with fewer, other work than products takes most of the time


def _pays(index: int, channels: int) -> bool:
    """Whether a block is prepared. The first has few positions: reading its kernels takes as long as its products, and they would grow."""
    return index > 0 and channels >= LEAST_CHANNELS


def prepare(params: Mapping[Any, Any]) -> dict[Any, Any]:
    """A decoder's parameters as published -> as ``Decoder(cfg, prepared=True)`` has them: 26 MB more at full size; narrow ones stay."""
    layers = params["decoder"]
    blocks = {i: layers[i] for i in range(1, len(layers) - 2) if _pays(i - 1, len(layers[i]["block"][1]["conv"]["bias"]))}
    return {**params, "decoder": {**layers, **upsampler.prepare(blocks)}} if blocks else dict(params)


def init_state(cfg: CodecDecoderConfig, rows: int) -> DecoderState:
    """The state of ``rows`` streams that have not begun. Bytes at full size: about 5.2 MB a row."""
    return _definition(cfg).initial(rows)


def check_state(cfg: CodecDecoderConfig, state: DecoderState) -> None:
    """Refuse what is not the state of one row of this codec.

    Raises:
        ValueError: other arrays than `init_state` makes for one row, or one that is not finite.
    """
    expected = _one_row(cfg)
    if jax.tree.structure(state) != jax.tree.structure(expected):  # type: ignore[operator]  # jax says that they may be None
        raise ValueError(f"codec state of type {type(state).__name__}: must be a DecoderState of this codec; make it with decode.prime")
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(expected), strict=True):
        name = f"codec state, {jax.tree_util.keystr(path)}"
        if np.shape(ours) != theirs.shape or np.asarray(ours).dtype != theirs.dtype:
            raise ValueError(
                f"{name}: {np.asarray(ours).dtype} {np.shape(ours)} must be {theirs.dtype} {theirs.shape}, one row of this codec; make it "
                "with decode.prime"
            )
        if not np.isfinite(ours).all():
            raise ValueError(f"{name}: every number must be finite, and some are NaN or infinite; make it with decode.prime")


@functools.cache
def _one_row(cfg: CodecDecoderConfig) -> DecoderState:
    return jax.eval_shape(lambda: init_state(cfg, 1))


@functools.cache
def _definition(cfg: CodecDecoderConfig) -> Decoder:
    return nnx.eval_shape(lambda: Decoder(cfg))  # its states' shapes are asked for at the start of every utterance
