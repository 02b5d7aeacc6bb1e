"""Building blocks of the talker and the predictor: x [B T H], caches and masks in -> y [B T H], caches out.

Weights keep the published layout ([out, in] for a matrix), so conversion is a renaming and one decoding step reads each
row contiguously (measured on 2 cores: 23 GB/s against 19 for [in, out]).
Source of the formulas: `qwen-tts` 0.1.1, core/models/modeling_qwen3_tts.py (Qwen3TTSTalkerAttention and neighbours).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.kernels import attention as kernel
from qwen3_jax.kernels import library
from qwen3_jax.model.cache import LayerCache, write
from qwen3_jax.model.config import PredictorConfig, TalkerConfig
from qwen3_jax.model.int8 import as_int8, int8_matmul
from qwen3_jax.model.products import matmul
from qwen3_jax.shapes import I32, Array, Bool, Float, Real


class Linear(nnx.Module):
    """y = x W^T + b, W [O I]; with a ``scale`` [O], W is int8 and stands for scale W."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        self.weight = nnx.Param(jnp.zeros((outputs, inputs)))
        self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None
        self.scale: nnx.Param[jax.Array] | None = None

    def quantise(self) -> None:
        """Take a weight of int8 and its scales."""
        outputs, inputs = self.weight.shape
        self.weight = nnx.Param(jnp.zeros((outputs, inputs), jnp.int8))
        self.scale = nnx.data(nnx.Param(jnp.zeros((outputs,))))  # nnx.data: it was None, which flax takes for static

    def __call__(self, x: Float[Array, "*rest I"]) -> Float[Array, "*rest O"]:
        y = matmul(x, self.weight[...]) if self.scale is None else int8_matmul(x, self.weight[...], self.scale[...])
        return y if self.bias is None else y + over_last(self.bias[...], y)


def over_last(vector: Float[Array, " H"], x: Float[Array, "*rest H"]) -> Float[Array, "*#rest H"]:
    """``vector`` with axes of size 1 before it, as many as ``x`` has: JAX's silent ones are refused in the tests."""
    return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))


class Embedding(nnx.Module):
    """Rows of a table [V H] by id. The table may lie in its file: then it is flat, with a few entries before it (checkpoint/table.py)."""

    def __init__(self, size: int, width: int) -> None:
        self.weight = nnx.Param(jnp.zeros((size, width)))
        self.scale: nnx.Param[jax.Array] | None = None
        self.size, self.width, self.rounds = size, width, False

    def quantise(self, *, stored: bool) -> None:
        """Take a table of int8 and its scales; not ``stored``: take a wider one, and round the rows that are read."""
        if stored:
            self.weight = nnx.Param(jnp.zeros((self.size, self.width), jnp.int8))
            self.scale = nnx.data(nnx.Param(jnp.zeros((self.size,))))
        self.rounds = not stored

    def __call__(self, ids: I32[Array, " *rest"], dtype: jnp.dtype) -> Float[Array, "*rest H"]:
        rows = self._rows(ids, dtype)
        if self.scale is not None:
            return rows * jnp.take(self.scale[...], ids)[..., None]
        return as_int8(rows) if self.rounds else rows

    def _rows(self, ids: I32[Array, " *rest"], dtype: jnp.dtype) -> Float[Array, "*rest H"]:
        table = self.weight[...]
        if table.ndim == 2:
            return take(table, ids, dtype)
        begins = table.size - self.size * self.width + self.width * ids
        return take(table, begins[..., None] + jnp.expand_dims(jnp.arange(self.width), tuple(range(ids.ndim))), dtype)


def take(table: Real[Array, "V ..."], ids: I32[Array, "..."], dtype: jnp.dtype) -> Float[Array, "..."]:
    """Rows of ``table`` in ``dtype``, whatever the table's.

    A narrow one is read as integers: XLA's CPU compiler gathers no bfloat16; in a loop it would write the whole table in float32 first
    (0.13 GB for the predictor's).
    """
    if table.dtype in (dtype, jnp.float32):
        return jnp.take(table, ids, axis=0).astype(dtype)
    table, ids = jax.lax.optimization_barrier((table, ids))  # or the reading as integers is hoisted out of the loop, a copy
    if table.dtype == jnp.int8:
        return jnp.take(table, ids, axis=0).astype(dtype)
    rows = jnp.take(jax.lax.bitcast_convert_type(table, jnp.uint16), ids, axis=0)
    return jax.lax.bitcast_convert_type(rows, table.dtype).astype(dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        self.weight = nnx.Param(jnp.ones((width,)))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rest H"]) -> Float[Array, "*rest H"]:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return over_last(self.weight[...], x) * x32.astype(x.dtype)


class LayerNorm(nnx.Module):
    """Mean and variance over the last axis, scale and shift, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        self.weight = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rest H"]) -> Float[Array, "*rest H"]:
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * over_last(self.weight[...], x) + over_last(self.bias[...], x)).astype(x.dtype)


def rope_angles(
    positions: I32[Array, "B T"], head_dim: int, theta: float, dtype: jnp.dtype
) -> tuple[Float[Array, "B T {head_dim}"], Float[Array, "B T {head_dim}"]]:
    """Cosines and sines of plain half-split RoPE. The three mrope channels are equal in TTS, so this is all of it."""
    inverse = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * inverse[None, None]
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(x: Float[Array, "B T A D"], cos: Float[Array, "#B T D"], sin: Float[Array, "#B T D"]) -> Float[Array, "B T A D"]:
    """Apply RoPE: halves of D are rotated against each other."""
    first, second = jnp.split(x, 2, axis=-1)
    return x * cos[:, :, None] + jnp.concatenate([-second, first], axis=-1) * sin[:, :, None]


def attend(
    q: Float[Array, "B T A D"], k: Float[Array, "B J S D"], v: Float[Array, "B J S D"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B T A*D"]:
    """Grouped-query attention, softmax in float32. Every query must see at least one column."""
    rows, length, heads, size = q.shape
    grouped = q.reshape(rows, length, k.shape[1], -1, size).transpose(0, 2, 3, 1, 4)
    on_cpu = _one_query if length == 1 and _kernel_takes(q, k, v) else mix_on_cpu
    mixed = jax.lax.platform_dependent(grouped, k, v, mask, cpu=on_cpu, default=_mix)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(rows, length, heads * size)


def _mix(
    q: Float[Array, "B J G T D"], k: Float[Array, "B J S D"], v: Float[Array, "B J S D"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B J G T D"]:
    weights = _weights(jnp.einsum("bjgtd,bjsd->bjgts", q, k, precision="highest"), q, mask)
    return jnp.einsum("bjgts,bjsd->bjgtd", weights, v, precision="highest")


def _kernel_takes(q: Float[Array, "B 1 A D"], k: Float[Array, "B J S D"], v: Float[Array, "B J S D"]) -> bool:
    return library.in_use().instructions is not None and kernel.takes(q, k, v)


@jax.custom_jvp
def _one_query(
    q: Float[Array, "B J G 1 D"], k: Float[Array, "B J S D"], v: Float[Array, "B J S D"], mask: Bool[Array, "B 1 S"]
) -> Float[Array, "B J G 1 D"]:
    """The same of one query, by the compiled kernel: it reads the columns that a row sees, once for all heads of a group.

    28 layers of 256 columns, XLA -> kernel: 1 row that sees 128 columns 6.1 -> 0.9 ms, 8 rows that see 128 54 -> 9 ms (two cores
    of Zen 4).
    """
    return kernel.attend(q[:, :, :, 0], k, v, mask[:, 0])[:, :, :, None]


@_one_query.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    return jax.jvp(mix_on_cpu, primals, tangents)


def mix_on_cpu(
    q: Float[Array, "B J G T D"], k: Float[Array, "B J S D"], v: Float[Array, "B J S D"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B J G T D"]:
    """The same in products that XLA's CPU compiler is quick at.

    Those are of a vector, and of a matrix whose contracted axis is not its last: 8 rows x 1 query 66 -> 20 ms, 1 row x 64 queries
    39 -> 21 ms (28 layers, 256 columns, two cores of Zen 4). An accelerator reads the keys once for all G.
    """
    *outer, groups, length, size = q.shape
    pairs = ((0, 1), (0, 1))
    if length == 1:
        each = [jax.lax.dot_general(k, q[:, :, group, 0], (((3,), (2,)), pairs), precision="highest") for group in range(groups)]
        weights = _weights(jnp.stack(each, axis=2)[:, :, :, None], q, mask)
        each = [jax.lax.dot_general(weights[:, :, group, 0], v, (((2,), (2,)), pairs), precision="highest") for group in range(groups)]
        return jnp.stack(each, axis=2)[:, :, :, None]
    turned_k = jax.lax.optimization_barrier(jnp.swapaxes(k, 2, 3))  # else XLA turns it back
    scores = jax.lax.dot_general(q.reshape(*outer, -1, size), turned_k, (((3,), (2,)), pairs), precision="highest")
    weights = _weights(scores.reshape(*outer, groups, length, -1), q, mask).reshape(*outer, groups * length, -1)
    return jax.lax.dot_general(weights, v, (((3,), (2,)), pairs), precision="highest").reshape(q.shape)


def _weights(scores: Float[Array, "B J G T S"], q: Float[Array, "B J G T D"], mask: Bool[Array, "B T S"]) -> Float[Array, "B J G T S"]:
    scores = scores.astype(jnp.float32) * q.shape[-1] ** -0.5
    return jax.nn.softmax(jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min), axis=-1).astype(q.dtype)


class Attention(nnx.Module):
    """Qwen3 attention: no biases, RMSNorm on each head's query and key, RoPE, grouped key/value heads."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, eps: float) -> None:
        self.q_proj = Linear(width, heads * head_dim)
        self.k_proj = Linear(width, kv_heads * head_dim)
        self.v_proj = Linear(width, kv_heads * head_dim)
        self.o_proj = Linear(heads * head_dim, width)
        self.q_norm = RMSNorm(head_dim, eps)
        self.k_norm = RMSNorm(head_dim, eps)
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim

    def __call__(
        self,
        x: Float[Array, "B T H"],
        rope: tuple[Float[Array, "B T D"], Float[Array, "B T D"]],
        cache: LayerCache,
        start: I32[Array, " B"],
        mask: Bool[Array, "B T S"],
    ) -> tuple[Float[Array, "B T H"], LayerCache]:
        rows, length, _ = x.shape
        q = self.q_norm(self.q_proj(x).reshape(rows, length, self.heads, self.head_dim))
        k = self.k_norm(self.k_proj(x).reshape(rows, length, self.kv_heads, self.head_dim))
        v = self.v_proj(x).reshape(rows, length, self.kv_heads, self.head_dim)
        cache = write(cache, rotate(k, *rope), v, start)
        return self.o_proj(attend(rotate(q, *rope), cache.k, cache.v, mask)), cache


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int) -> None:
        self.gate_proj = Linear(width, inner)
        self.up_proj = Linear(width, inner)
        self.down_proj = Linear(inner, width)

    def __call__(self, x: Float[Array, "B T H"]) -> Float[Array, "B T H"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nnx.Module):
    """Pre-norm attention and pre-norm SwiGLU, each added to the residual stream."""

    def __init__(self, config: TalkerConfig | PredictorConfig) -> None:
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = Attention(width, config.num_attention_heads, config.num_key_value_heads, config.head_dim, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = SwiGLU(width, config.intermediate_size)

    def __call__(
        self,
        x: Float[Array, "B T H"],
        rope: tuple[Float[Array, "B T D"], Float[Array, "B T D"]],
        cache: LayerCache,
        start: I32[Array, " B"],
        mask: Bool[Array, "B T S"],
    ) -> tuple[Float[Array, "B T H"], LayerCache]:
        attended, cache = self.self_attn(self.input_layernorm(x), rope, cache, start, mask)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), cache


def apply(module: nnx.Module, *arguments: Any) -> Any:
    """``module(*arguments)``. Modules of one form are traced once: 28 layers of the talker took 0.9 s of every start."""
    graph, state = nnx.split(module)
    return _apply(graph, nnx.to_pure_dict(state), *arguments)


@functools.partial(jax.jit, static_argnames=("graph",))
def _apply(graph: Any, params: Any, *arguments: Any) -> Any:
    return nnx.merge(graph, params)(*arguments)
