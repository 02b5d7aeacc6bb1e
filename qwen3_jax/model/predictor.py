"""The code predictor (MTP): hidden [B H] and book 0 [B] of a frame in -> books 1..15 [B 15] out.

Input sequence: hidden, C(code 0), then each chosen code's own embedding; position i + 1 predicts book i + 1 with head i.
The first two positions run together, the other fourteen in a scan: unrolling them made compilation four times longer and
the step slower (2-core CPU). Embedding tables are stacked along axis 0 and gathered from by book; heads are not, because a
slice of a stack is copied before it is multiplied (8 MB a step), where a branch per book reads its own head in place.
Source: `qwen-tts` 0.1.1, modeling_qwen3_tts.py (Qwen3TTSTalkerCodePredictorModelForConditionalGeneration).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.model.cache import KVCache, causal_mask, empty
from qwen3_jax.model.config import PredictorConfig
from qwen3_jax.model.layers import DecoderLayer, Linear, RMSNorm, apply, rope_angles, take
from qwen3_jax.shapes import F32, I32, Array, Float

# (logits, index of the drawn book, 1..15) -> codes
Draw = Callable[[F32[Array, "B V"], I32[Array, ""]], I32[Array, " B"]]


class BookTables(nnx.Module):
    """One table [V H] for each of books 1..15, stacked."""

    def __init__(self, books: int, size: int, width: int) -> None:
        self.weight = nnx.Param(jnp.zeros((books, size, width)))


class PredictorModel(nnx.Module):
    """Decoder layers, final norm, and the embeddings of books 1..15 (in the talker's width)."""

    def __init__(self, config: PredictorConfig, talker_width: int) -> None:
        self.layers = nnx.List([DecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.codec_embedding = BookTables(config.num_code_groups - 1, config.vocab_size, talker_width)


class Predictor(nnx.Module):
    """Five layers run sixteen times a frame: most of the bytes that a frame costs."""

    def __init__(self, config: PredictorConfig, talker_width: int) -> None:
        self.model = PredictorModel(config, talker_width)
        self.lm_head = nnx.List([Linear(config.hidden_size, config.vocab_size) for _ in range(config.num_code_groups - 1)])
        narrower = config.hidden_size != talker_width
        self.small_to_mtp_projection = Linear(talker_width, config.hidden_size, bias=True) if narrower else None
        self.books, self.vocab, self.theta = config.num_code_groups - 1, config.vocab_size, config.rope_theta
        self.kv_shape = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)

    def embed(self, codes: I32[Array, "*rest {self.books}"], dtype: jnp.dtype) -> Float[Array, "*rest {self.books} H"]:
        """Each of books 1..15 in its own table."""
        return self._lookup(jnp.broadcast_to(jnp.arange(self.books), codes.shape), codes, dtype)

    def _lookup(self, book: I32[Array, "*#rest"], codes: I32[Array, " *rest"], dtype: jnp.dtype) -> Float[Array, "*rest H"]:
        # One gather in the flattened tables: slicing a table out first would copy 8 MB to read 4 kB.
        table = self.model.codec_embedding.weight[...]
        return take(table.reshape(-1, table.shape[-1]), book * self.vocab + codes, dtype)

    def hidden(self, x: Float[Array, "B T I"], cache: KVCache, start: I32[Array, " B"]) -> tuple[Float[Array, "B T H"], KVCache]:
        """Rows in talker width at positions start.. -> normed hidden states."""
        if self.small_to_mtp_projection is not None:
            x = self.small_to_mtp_projection(x)
        positions = start[:, None] + jnp.arange(x.shape[1])[None]
        rope = rope_angles(positions, self.kv_shape[2], self.theta, x.dtype)
        mask = causal_mask(start, x.shape[1], cache[0].k.shape[2])
        written: KVCache = []
        for layer, layer_cache in zip(self.model.layers, cache, strict=True):
            x, layer_cache = apply(layer, x, rope, layer_cache, start, mask)
            written.append(layer_cache)
        return self.model.norm(x), written

    def logits(self, hidden: Float[Array, "B H"], head: I32[Array, ""] | int) -> Float[Array, "B V"]:
        """Head ``head`` (0..14), in float32."""
        return jax.lax.switch(head, [linear.__call__ for linear in self.lm_head], hidden).astype(jnp.float32)

    def predict(self, hidden: Float[Array, "B H"], embedding: Float[Array, "B H"], draw: Draw) -> I32[Array, "B {self.books}"]:
        """The fifteen codes that follow ``hidden`` and the embedding of book 0, each drawn by ``draw``."""
        rows = hidden.shape[0]
        layers, kv_heads, head_dim = self.kv_shape
        cache = empty(layers, rows, kv_heads, self.books + 1, head_dim, hidden.dtype)
        states, cache = self.hidden(jnp.stack([hidden, embedding], axis=1), cache, jnp.zeros(rows, jnp.int32))
        first = draw(self.logits(states[:, 1], 0), jnp.int32(1))

        def step(carry: tuple[KVCache, jax.Array], book: jax.Array) -> tuple[tuple[KVCache, jax.Array], jax.Array]:
            cache, code = carry  # code of `book`, whose successor is predicted
            x = self._lookup(book - 1, code, hidden.dtype)[:, None]
            states, cache = self.hidden(x, cache, jnp.broadcast_to(book + 1, (rows,)))
            code = draw(self.logits(states[:, 0], book), book + 1)
            return (cache, code), code

        _, rest = jax.lax.scan(step, (cache, first), jnp.arange(1, self.books))
        return jnp.concatenate([first[:, None], rest.T], axis=1)
