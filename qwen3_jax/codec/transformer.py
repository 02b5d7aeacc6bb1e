"""The codec's two transformers: [H B T] -> [H B T]; the decoder's carries the keys and values of its window as state.

Decoder: RMSNorm, SwiGLU, a sliding window over the last W positions, keys and values of the last W - 1 in the state.
Encoder (Mimi): LayerNorm, GELU MLP, plainly causal, no state: it sees the whole clip at once.
Both scale each branch per channel (LayerScale) and rotate queries and keys by plain RoPE.

Sources: `qwen-tts` 0.1.1, core/tokenizer_12hz/modeling_qwen3_tts_tokenizer_v2.py; `transformers` 4.57.3, models/mimi.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.codec.conv import dense, over_channels, window_at
from qwen3_jax.model.cache import LayerCache, empty
from qwen3_jax.model.config import CodecDecoderConfig, CodecEncoderConfig
from qwen3_jax.model.layers import LayerNorm, Linear, RMSNorm, SwiGLU, attend, rope_angles, rotate
from qwen3_jax.shapes import F32, I32, Array, Bool

Rope = tuple[F32[Array, "#B T D"], F32[Array, "#B T D"]]


class LayerScale(nnx.Module):
    """A factor per channel."""

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(jnp.ones((width,)))

    def __call__(self, x: F32[Array, "H B T"]) -> F32[Array, "H B T"]:
        return x * self.scale[...][:, None, None]


class CodecAttention(nnx.Module):
    """Multi-head attention over the remembered positions and the new ones."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int) -> None:
        self.q_proj = Linear(width, heads * head_dim)
        self.k_proj = Linear(width, kv_heads * head_dim)
        self.v_proj = Linear(width, kv_heads * head_dim)
        self.o_proj = Linear(heads * head_dim, width)
        self.head_dim = head_dim

    def __call__(
        self, x: F32[Array, "H B T"], rope: Rope, mask: Bool[Array, "B T _"], past: LayerCache | None
    ) -> tuple[F32[Array, "H B T"], LayerCache]:
        q, k, v = (self._heads(dense(proj, x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        k, v = jnp.swapaxes(rotate(k, *rope), 1, 2), jnp.swapaxes(v, 1, 2)
        if past is not None:
            k, v = jnp.concatenate([past.k, k], axis=2), jnp.concatenate([past.v, v], axis=2)
        attended = attend(rotate(q, *rope), k, v, mask)
        return dense(self.o_proj, jnp.moveaxis(attended, -1, 0)), LayerCache(k, v)

    def _heads(self, x: F32[Array, "C B T"]) -> F32[Array, "B T C//{self.head_dim} {self.head_dim}"]:
        return jnp.transpose(x.reshape(-1, self.head_dim, *x.shape[1:]), (2, 3, 0, 1))


class GatedMLP(SwiGLU):
    """SwiGLU of model/layers.py on [H B T]."""

    def __call__(self, x: F32[Array, "H B T"]) -> F32[Array, "H B T"]:
        return dense(self.down_proj, jax.nn.silu(dense(self.gate_proj, x)) * dense(self.up_proj, x))


class WindowLayer(nnx.Module):
    """A layer of the decoder's transformer."""

    def __init__(self, cfg: CodecDecoderConfig) -> None:
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.self_attn = CodecAttention(cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim)
        self.self_attn_layer_scale = LayerScale(cfg.hidden_size)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.mlp = GatedMLP(cfg.hidden_size, cfg.intermediate_size)
        self.mlp_layer_scale = LayerScale(cfg.hidden_size)

    def __call__(
        self, x: F32[Array, "H B T"], rope: Rope, mask: Bool[Array, "B T _"], past: LayerCache
    ) -> tuple[F32[Array, "H B T"], LayerCache]:
        attended, seen = self.self_attn(over_channels(self.input_layernorm, x), rope, mask, past)
        x = x + self.self_attn_layer_scale(attended)
        return x + self.mlp_layer_scale(self.mlp(over_channels(self.post_attention_layernorm, x))), seen


class WindowTransformer(nnx.Module):
    """The decoder's transformer between its two projections: [latent B N] -> [latent B N]."""

    def __init__(self, cfg: CodecDecoderConfig) -> None:
        self.input_proj = Linear(cfg.latent_dim, cfg.hidden_size, bias=True)
        self.layers = nnx.List([WindowLayer(cfg) for _ in range(cfg.num_hidden_layers)])
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.output_proj = Linear(cfg.hidden_size, cfg.latent_dim, bias=True)
        self.head_dim, self.kv_heads, self.theta, self.window = cfg.head_dim, cfg.num_key_value_heads, cfg.rope_theta, cfg.sliding_window

    def initial(self, rows: int) -> list[LayerCache]:
        """The state at the start of a stream: what it holds is never seen, since it lies before position 0."""
        return empty(len(self.layers), rows, self.kv_heads, self.window - 1, self.head_dim, jnp.dtype(jnp.float32))

    def __call__(
        self, x: F32[Array, "H B N"], past: list[LayerCache], position: I32[Array, " B"], valid: I32[Array, " B"] | None
    ) -> tuple[F32[Array, "H B N"], list[LayerCache]]:
        length, kept = x.shape[2], self.window - 1
        queries = position[:, None] + jnp.arange(length)[None]
        keys = position[:, None] + jnp.arange(-kept, length)[None]
        distance = queries[:, :, None] - keys[:, None, :]
        mask = (distance >= 0) & (distance < self.window) & (keys[:, None, :] >= 0)
        rope = rope_angles(queries, self.head_dim, self.theta, jnp.dtype(jnp.float32))
        x = dense(self.input_proj, x)
        kept_caches = []
        for layer, cache in zip(self.layers, past, strict=True):
            x, seen = layer(x, rope, mask, cache)
            kept_caches.append(LayerCache(*(_last(columns, valid, kept) for columns in seen)))
        return dense(self.output_proj, over_channels(self.norm, x)), kept_caches


def _last(x: F32[Array, "B J S D"], valid: I32[Array, " B"] | None, kept: int) -> F32[Array, "B J {kept} D"]:
    return jnp.swapaxes(window_at(jnp.swapaxes(x, 2, 3), valid, kept), 2, 3)


class MLP(nnx.Module):
    """fc2(gelu(fc1(x))), with the exact (erf) GELU."""

    def __init__(self, width: int, inner: int) -> None:
        self.fc1 = Linear(width, inner)
        self.fc2 = Linear(inner, width)

    def __call__(self, x: F32[Array, "H B T"]) -> F32[Array, "H B T"]:
        return dense(self.fc2, jax.nn.gelu(dense(self.fc1, x), approximate=False))


class EncoderLayer(nnx.Module):
    """A layer of the encoder's transformer."""

    def __init__(self, cfg: CodecEncoderConfig) -> None:
        self.input_layernorm = LayerNorm(cfg.hidden_size, cfg.norm_eps)
        self.self_attn = CodecAttention(cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim)
        self.self_attn_layer_scale = LayerScale(cfg.hidden_size)
        self.post_attention_layernorm = LayerNorm(cfg.hidden_size, cfg.norm_eps)
        self.mlp = MLP(cfg.hidden_size, cfg.intermediate_size)
        self.mlp_layer_scale = LayerScale(cfg.hidden_size)

    def __call__(self, x: F32[Array, "H B T"], rope: Rope, mask: Bool[Array, "B T T"]) -> F32[Array, "H B T"]:
        attended, _ = self.self_attn(over_channels(self.input_layernorm, x), rope, mask, None)
        x = x + self.self_attn_layer_scale(attended)
        return x + self.mlp_layer_scale(self.mlp(over_channels(self.post_attention_layernorm, x)))


class EncoderTransformer(nnx.Module):
    """The encoder's transformer: [H B T] -> [H B T]."""

    def __init__(self, cfg: CodecEncoderConfig) -> None:
        self.layers = nnx.List([EncoderLayer(cfg) for _ in range(cfg.num_hidden_layers)])
        self.head_dim, self.theta = cfg.head_dim, cfg.rope_theta

    def __call__(self, x: F32[Array, "H B T"]) -> F32[Array, "H B T"]:
        positions = jnp.arange(x.shape[2])[None]
        mask = positions[:, None, :] <= positions[:, :, None]
        rope = rope_angles(positions, self.head_dim, self.theta, jnp.dtype(jnp.float32))
        for layer in self.layers:
            x = layer(x, rope, jnp.broadcast_to(mask, (x.shape[1], *mask.shape[1:])))
        return x
