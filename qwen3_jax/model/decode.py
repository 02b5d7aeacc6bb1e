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

_PRIME = 16  # frames of reference decoded at a time: one program for every length, and 150 MB of temporaries at full size


@functools.partial(jax.jit, static_argnames=("graph",), donate_argnames=("state",))
def decode(graph: Any, decoder: Any, codes: I32[Array, "N B K"], state: DecoderState) -> tuple[F32[Array, "B F"], DecoderState]:
    """The samples of every row's next N frames."""
    return nnx.merge(graph, decoder)(jnp.swapaxes(codes, 0, 1), state)


@functools.partial(jax.jit, static_argnames=("graph",), donate_argnames=("state",))
def _remember(graph: Any, decoder: Any, codes: I32[Array, "B N K"], valid: I32[Array, " B"], state: DecoderState) -> DecoderState:
    return nnx.merge(graph, decoder)(codes, state, valid)[1]


def prime(model: Model, reference: Integer[np.ndarray, "N K"]) -> DecoderState:
    """The codec's state after these frames, one row; their audio is not kept. It serves any number of requests.

    Raises:
        ValueError: codes that the checkpoint does not have.
        FloatingPointError: the decoder computed NaN or infinity.
    """
    reference = checks.reference(model.config, reference)
    state = init_state(model.codec_config.decoder_config, 1)
    for start in range(0, len(reference), _PRIME):
        piece = reference[start : start + _PRIME]
        codes = np.pad(piece, ((0, _PRIME - len(piece)), (0, 0)))[None]
        valid = np.array([len(piece)], np.int32)
        state = _remember(model.graphs.codec_decoder, model.params["codec"]["decoder"], codes, valid, state)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
        raise FloatingPointError(f"what the codec's decoder computed for the reference is NaN or infinite; {DAMAGED}")
    return state
