"""The talker: an LM over frames. Rows x [B T H] and a KV cache in -> normed hidden [B T H] and the cache out.

Attribute names are the published tensor names under ``talker.``. Source: `qwen-tts` 0.1.1, modeling_qwen3_tts.py
(Qwen3TTSTalkerForConditionalGeneration).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.model.cache import KVCache, causal_mask
from qwen3_jax.model.config import TalkerConfig
from qwen3_jax.model.layers import DecoderLayer, Embedding, Linear, RMSNorm, apply, rope_angles
from qwen3_jax.model.predictor import Predictor
from qwen3_jax.shapes import I32, Array, Float


class TextProjection(nnx.Module):
    """fc2(silu(fc1(x))): text width -> talker width."""

    def __init__(self, text_width: int, width: int) -> None:
        self.linear_fc1 = Linear(text_width, text_width, bias=True)
        self.linear_fc2 = Linear(text_width, width, bias=True)

    def __call__(self, x: Float[Array, "*rest I"]) -> Float[Array, "*rest H"]:
        return self.linear_fc2(jax.nn.silu(self.linear_fc1(x)))


class TalkerModel(nnx.Module):
    """Decoder layers, final norm, and the two input tables."""

    def __init__(self, config: TalkerConfig) -> None:
        self.layers = nnx.List([DecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.codec_embedding = Embedding(config.vocab_size, config.hidden_size)
        self.text_embedding = Embedding(config.text_vocab_size, config.text_hidden_size)
        self.head_dim, self.theta = config.head_dim, config.rope_theta

    def __call__(self, x: Float[Array, "B T H"], cache: KVCache, start: I32[Array, " B"]) -> tuple[Float[Array, "B T H"], KVCache]:
        positions = start[:, None] + jnp.arange(x.shape[1])[None]
        rope = rope_angles(positions, self.head_dim, self.theta, x.dtype)
        mask = causal_mask(start, x.shape[1], cache[0].k.shape[2])
        written: KVCache = []
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x, layer_cache = apply(layer, x, rope, layer_cache, start, mask)
            written.append(layer_cache)
        return self.norm(x), written


class Talker(nnx.Module):
    """The LM, its text projection, its book-0 head and the code predictor."""

    def __init__(self, config: TalkerConfig) -> None:
        self.model = TalkerModel(config)
        self.text_projection = TextProjection(config.text_hidden_size, config.hidden_size)
        self.codec_head = Linear(config.hidden_size, config.vocab_size)
        self.code_predictor = Predictor(config.code_predictor_config, config.hidden_size)
        self.eos_id = config.codec_eos_token_id
        self.books = config.num_code_groups
        self.kv_shape = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)

    @property
    def dtype(self) -> jnp.dtype:
        """Of all activations. Matrices may be kept narrower than this, norms and biases are not."""
        return self.model.norm.weight[...].dtype

    def text_rows(self, ids: I32[Array, " *rest"]) -> Float[Array, "*rest H"]:
        """T(id) of every id; an id of -1 gives a row of zeros."""
        rows = self.text_projection(self.model.text_embedding(jnp.maximum(ids, 0), self.dtype))
        return jnp.where(ids[..., None] >= 0, rows, 0)

    def code_rows(self, codes: I32[Array, "B T K"]) -> Float[Array, "B T H"]:
        """Sum over the books of each code's embedding; a code of -1 adds nothing."""
        first = self.model.codec_embedding(jnp.maximum(codes[..., :1], 0), self.dtype)
        rest = self.code_predictor.embed(jnp.maximum(codes[..., 1:], 0), self.dtype)
        rows = jnp.concatenate([first, rest], axis=-2)  # [B T K H]
        return jnp.sum(jnp.where(codes[..., None] >= 0, rows, 0), axis=-2)
