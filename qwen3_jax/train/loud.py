"""The first stage of a decoder's training: codes -> the levels that the vocoder it begins as (prior.py) needs, at 50 Hz.

It begins with what the books say; a frame's neighbours and its content tell a little more. Only the slowest part of the decoder runs, and
the error is that of 56 numbers, so a step is cheap.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from qwen3_jax.codec.decoder import Decoder
from qwen3_jax.config import CodecDecoderConfig
from qwen3_jax.mapping import unflatten
from qwen3_jax.shapes import F32, Int, NpF32
from qwen3_jax.train.levels import LEVELS, WEIGHT, unweighted
from qwen3_jax.train.prior import STEPS, TONES, sharpened
from qwen3_jax.train.vocoder import Flat, Held, decoder_definition, finish, heard, rate_at, to_columns, update

COUNT = 2 * LEVELS  # of a column: two moments


def wanted(levels: NpF32["B N 224"]) -> NpF32["56 B N*4"]:
    """What the columns are to be for frames of these (compressed, weighted) levels."""
    rows, frames = levels.shape[:2]
    played = np.moveaxis(unweighted(levels.reshape(rows * frames, -1)).reshape(rows, frames, STEPS, 2, LEVELS), -1, 0)
    played[:TONES] = sharpened(played[:TONES])
    return np.moveaxis(played, -1, 0).reshape(COUNT, rows, frames * STEPS).astype(np.float32)


def columns_of(decoder: Decoder, codes: Int["B M K"], crop: int, past: tuple[int, ...]) -> F32["56 B crop*4"]:
    """The level channels of the last ``crop`` frames; as `vocoder.decode_crop`, up to 50 Hz."""
    x, *_ = to_columns(decoder, codes, crop, past)
    return x[:COUNT, :, -crop * STEPS :]


@functools.partial(jax.jit, static_argnames=("cfg", "crop", "held"), donate_argnames="state")
def step(
    state: dict[str, Any], codes: Int["B M K"], target: F32["56 B crop*4"], rate: float, *, cfg: CodecDecoderConfig, crop: int, held: Held
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """One step towards ``target``, of `wanted`; errors are weighted as in the books."""
    graph, shapes = decoder_definition(cfg)
    weight = jnp.tile(WEIGHT, 2)[:, None, None]

    def loss(trained: Flat) -> jax.Array:
        decoder = nnx.merge(graph, unflatten({**trained, **state["frozen"]}, shapes))
        return jnp.mean(weight * jnp.abs(columns_of(decoder, codes, crop, heard(cfg)) - target))

    off, gradients = jax.value_and_grad(loss)(state["trained"])
    trained, moments = update(gradients, state["moments"], state["trained"], rate_at(state["step"], rate), held)
    return finish(state, trained=trained, moments=moments), {"levels": off, "gradient": optax.tree.norm(gradients)}
