"""Codes [N K] -> what the codec's decoder makes of them, compiled: samples at 24 kHz, or the state in which they leave it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3_jax.codec.decoder import DecoderState, init_state
from qwen3_jax.model import checks
from qwen3_jax.model.frame import DAMAGED
from qwen3_jax.model.model import Model
from qwen3_jax.shapes import F32, I32, Array, Integer

TOGETHER = 4  # frames that are decoded at once where nobody waits: more gained nothing


@functools.partial(jax.jit, static_argnames=("graph",), donate_argnames=("state",))
def decode(
    graph: Any, decoder: Any, codes: I32[Array, "N B K"], state: DecoderState, valid: I32[Array, " B"] | None = None
) -> tuple[F32[Array, "B F"], DecoderState]:
    """The samples of every row's next N frames, of which ``valid`` are real. Default: all."""
    return nnx.merge(graph, decoder)(jnp.swapaxes(codes, 0, 1), state, valid)


def prime(model: Model, reference: Integer[np.ndarray, "N K"]) -> DecoderState:
    """The codec's state after these frames, one row; their audio is not kept. It serves any number of requests.

    Raises:
        ValueError: codes that the checkpoint does not have.
        FloatingPointError: the decoder computed NaN or infinity.
    """
    reference = checks.reference(model.config, reference)
    graph, decoder = model.graphs.codec_decoder, model.params["codec"]["decoder"]
    place = jax.tree.leaves(decoder)[0].sharding  # all arguments there, as those of the engine: it is the same program
    state = jax.device_put(init_state(model.codec_config.decoder_config, 1), place)
    for start in range(0, len(reference), TOGETHER):
        piece = reference[start : start + TOGETHER].astype(np.int32)
        codes = np.pad(piece, ((0, TOGETHER - len(piece)), (0, 0)))[:, None]
        codes, valid = jax.device_put((codes, np.array([len(piece)], np.int32)), place)
        _, state = decode(graph, decoder, codes, state, valid)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
        raise FloatingPointError(f"what the codec's decoder computed for the reference is NaN or infinite; {DAMAGED}")
    return state
