"""Split residual vector quantisation: codes [B N K] -> vectors [B N H] (decoder), vectors [B N H] -> codes [B N K] (encoder).

Book 0 ("semantic") and books 1.. ("acoustic") are two independent residual quantisers of the same vector. A codebook is
published as sums and counts; an entry is embedding_sum / max(cluster_usage, 1e-5). Books are stacked along axis 0.

Sources: `qwen-tts` 0.1.1, core/tokenizer_12hz/modeling_qwen3_tts_tokenizer_v2.py (EuclideanCodebook, ResidualVectorQuantizer);
`transformers` 4.57.3, models/mimi/modeling_mimi.py (MimiEuclideanCodebook, MimiResidualVectorQuantizer).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.codec.conv import Kernel
from qwen3_jax.model.products import matmul
from qwen3_jax.shapes import F32, I32, Array

_FLOOR = 1e-5


class Books(nnx.Module):
    """The decoder's stacked codebooks."""

    def __init__(self, books: int, size: int, width: int) -> None:
        self.embedding_sum = nnx.Param(jnp.zeros((books, size, width)))
        self.cluster_usage = nnx.Param(jnp.ones((books, size)))

    def __call__(self, codes: I32[Array, "B N K"]) -> F32[Array, "B N D"]:
        """The sum of the entries that a frame's codes name."""
        book = jnp.arange(codes.shape[-1])
        usage = jnp.maximum(self.cluster_usage[...][book, codes], _FLOOR)
        return jnp.sum(self.embedding_sum[...][book, codes] / usage[..., None], axis=2)


class BookDecoder(nnx.Module):
    """Books, then a 1x1 projection to the decoder's width."""

    def __init__(self, books: int, size: int, inner: int, width: int) -> None:
        self.vq = Books(books, size, inner)
        self.output_proj = Kernel((width, inner, 1), width, bias=False)

    def __call__(self, codes: I32[Array, "B N K"]) -> F32[Array, "B N H"]:
        return matmul(self.vq(codes), self.output_proj.weight[...][:, :, 0])


class SplitDecoder(nnx.Module):
    """codes [B N K] -> [B N H]: book 0 through one projection, the sum of the others through a second one."""

    def __init__(self, books: int, size: int, width: int) -> None:
        self.rvq_first = BookDecoder(1, size, width // 2, width)
        self.rvq_rest = BookDecoder(books - 1, size, width // 2, width)

    def __call__(self, codes: I32[Array, "B N K"]) -> F32[Array, "B N H"]:
        return self.rvq_first(codes[..., :1]) + self.rvq_rest(codes[..., 1:])


class BookEncoder(nnx.Module):
    """A 1x1 projection, then book after book the entry nearest to what is left; -1 where that is NaN or infinite."""

    def __init__(self, books: int, size: int, inner: int, width: int) -> None:
        self.input_proj = Kernel((inner, width, 1), inner, bias=False)
        self.embed_sum = nnx.Param(jnp.zeros((books, size, inner)))
        self.cluster_usage = nnx.Param(jnp.ones((books, size)))

    def __call__(self, x: F32[Array, "B N H"]) -> I32[Array, "B N K"]:
        entries = self.embed_sum[...] / jnp.maximum(self.cluster_usage[...], _FLOOR)[..., None]

        def stage(rest: F32[Array, "B N D"], book: F32[Array, "V D"]) -> tuple[F32[Array, "B N D"], I32[Array, "B N"]]:
            # |rest - entry|^2 without |rest|^2, which is the same for every entry
            distance = jnp.sum(jnp.square(book), axis=-1)[None, None] - 2.0 * matmul(rest, book)
            code = jnp.argmin(distance, axis=-1).astype(jnp.int32)  # of a NaN, where there is one
            nearest = jnp.take_along_axis(distance, code[..., None], axis=-1)[..., 0]
            return rest - book[code], jnp.where(jnp.isfinite(nearest), code, -1)

        _, codes = jax.lax.scan(stage, matmul(x, self.input_proj.weight[...][:, :, 0]), entries)
        return jnp.moveaxis(codes, 0, -1)


class SplitEncoder(nnx.Module):
    """[B N H] -> codes [B N K]; both quantisers start from the same vector."""

    def __init__(self, books: int, size: int, inner: int, width: int) -> None:
        self.semantic_residual_vector_quantizer = BookEncoder(1, size, inner, width)
        self.acoustic_residual_vector_quantizer = BookEncoder(books - 1, size, inner, width)

    def __call__(self, x: F32[Array, "B N H"]) -> I32[Array, "B N K"]:
        return jnp.concatenate([self.semantic_residual_vector_quantizer(x), self.acoustic_residual_vector_quantizer(x)], axis=-1)
