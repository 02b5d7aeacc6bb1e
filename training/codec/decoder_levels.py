"""The first stage of a decoder's training: codes -> the levels that the vocoder it begins as (vocoder_initialisation.py) needs, at 50 Hz.

It begins with what the books say; a frame's neighbours and its content tell more. It learns from two kinds of codes, those of the latents
and those that the encoder hears, whose errors it so learns to see through. Only the slowest part of the decoder runs, and the error is that
of 56 numbers and of what a recogniser (phoneme_recogniser.py) hears in them, so a step is cheap. What it is unsure of comes out nearly
as the mean; so levels are then widened until they vary as they should (`wider`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from qwen3_jax.checkpoint.mapping import unflatten
from qwen3_jax.codec.decoder import Decoder
from qwen3_jax.model.config import CodecDecoderConfig
from qwen3_jax.shapes import F32, I32, Array
from training.codec.decoder_training import Held, decoder_definition, finish, receptive_field, to_columns, update
from training.codec.phoneme_recogniser import COUNT, difference
from training.codec.vocoder_initialisation import STEPS
from training.latents.levels import LEVELS, MOMENTS, SLOWNESS, WEIGHT, unweighted
from training.optimiser import Flat, rate_at, running_average

HEARD = 0.6  # of the rows have the encoder's codes
SLIPS = 0.01  # of the codes are another frame's, so that no book is believed blindly
WIDEST = 1.5  # by which levels are widened, at most
SYMBOLS, FEATURES = 0.1, 0.1  # what the recogniser hears counts for, beside the error of levels


def target_columns(levels: F32[np.ndarray, "B N 224"]) -> F32[np.ndarray, "56 B _"]:
    """What the columns are to be for frames of these (compressed, weighted) levels."""
    rows, frames = levels.shape[:2]
    told = unweighted(levels.reshape(rows * frames, -1)).reshape(rows, frames, STEPS, COUNT)
    return np.moveaxis(told, -1, 0).reshape(COUNT, rows, frames * STEPS).astype(np.float32)


def weighted(columns: F32[Array, "56 B _"]) -> F32[Array, "28 B N 8"]:
    """Levels as their errors count in the books (`levels.weighted`)."""
    rows = columns.shape[1]
    moments = jnp.moveaxis(columns.reshape(2, LEVELS, rows, -1, STEPS), 0, -1).reshape(LEVELS, rows, -1, MOMENTS)
    return jnp.einsum("st,lbnt->lbns", SLOWNESS, moments * WEIGHT[:, None, None, None])


def with_other_codes(
    codes: I32[np.ndarray, "B M K"], others: I32[np.ndarray, "B M K"], noise: np.random.Generator
) -> I32[np.ndarray, "B M K"]:
    """``codes``, a few of them from ``others``; the pitch stays, since it is what phases come of."""
    free = np.arange(codes.shape[-1]) != 1
    return np.where((noise.random(codes.shape) < SLIPS) & free, others, codes)


def wider(power: F32[Array, "2 28"]) -> F32[np.ndarray, "28"]:
    """What levels are to be widened by, for what a decoder's columns and the wanted ones vary."""
    found, wanted = np.asarray(power)
    return np.clip(np.sqrt(wanted / np.maximum(found, 1e-12)), 1.0, WIDEST).astype(np.float32)


def level_columns(decoder: Decoder, codes: I32[Array, "B M K"], crop: int, past: tuple[int, ...]) -> F32[Array, "56 B {crop}*4"]:
    """The level channels of the last ``crop`` frames; as `decoder_training.decode_crop`, up to 50 Hz."""
    x, *_ = to_columns(decoder, codes, crop, past)
    return x[:COUNT, :, -crop * STEPS :]


@functools.partial(jax.jit, static_argnames=("cfg", "crop", "held"), donate_argnames="state")
def step(
    state: dict[str, Any], codes: I32[Array, "B M K"], target: F32[Array, "56 B T"], recogniser: Flat | None, rate: float,
    *, cfg: CodecDecoderConfig, crop: int, held: Held,
) -> tuple[dict[str, Any], dict[str, jax.Array]]:  # fmt: skip
    """One step towards ``target``, of `target_columns`: squared errors, weighted as in the books, and what a recogniser
    (phoneme_recogniser.py) hears of them, if there is one. ``state["power"]`` [2 28] is how much the columns and the wanted ones vary, by
    level."""
    graph, shapes = decoder_definition(cfg)
    aim = weighted(target)

    def loss(trained: Flat) -> tuple[jax.Array, tuple[dict[str, jax.Array], jax.Array]]:
        decoder = nnx.merge(graph, unflatten({**trained, **state["frozen"]}, shapes))
        columns = level_columns(decoder, codes, crop, receptive_field(cfg))
        off = jnp.mean(jnp.square(weighted(columns) - aim))
        if recogniser is None:
            return off, ({"levels": off}, columns)
        found = difference(recogniser, columns, target)
        return off + SYMBOLS * found.symbols + FEATURES * found.features, ({"levels": off, **found._asdict()}, columns)

    (_, (terms, columns)), gradients = jax.value_and_grad(loss, has_aux=True)(state["trained"])
    trained, moments = update(gradients, state["moments"], state["trained"], rate_at(state["step"], rate), held)
    now = jnp.stack([jnp.var(each.reshape(2, LEVELS, -1), axis=2).mean(axis=0) for each in (columns, target)])
    power = running_average(state["power"], now, state["step"])
    return finish(state, trained=trained, moments=moments, power=power), {**terms, "gradient": optax.tree.norm(gradients)}
