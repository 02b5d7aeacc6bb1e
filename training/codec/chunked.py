"""Speech through one half of a codec that is trained, piece by piece, so that few lengths are compiled and none fills the memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3_jax.checkpoint.mapping import unflatten
from qwen3_jax.codec import init_state
from qwen3_jax.model.config import CodecConfig
from qwen3_jax.model.decode import decode
from qwen3_jax.shapes import F32, I32, Integer
from training.codec import decoder_training, encoder_training
from training.latents.quantiser import FRAME

_PIECE = 16  # frames decoded at a time
_FEATURES, _FEATURES_BEFORE = 375 * FRAME, 4  # samples that are listened to at a time, and frames before them
_ENCODED, _ENCODED_BEFORE = 360 * FRAME, 24  # that are encoded at a time; they may hear further back


def lower_features(state: dict[str, Any], wave: Integer[np.ndarray, " F"], cfg: CodecConfig) -> Any:
    """`encoder_training.lower_output` of a voice's whole speech, frame by frame: float16 [N T C]."""
    pieces, clear = [], _FEATURES_BEFORE * FRAME
    padded = np.pad(wave, (clear, -len(wave) % _FEATURES))
    for start in range(0, len(padded) - clear, _FEATURES):
        piece = padded[None, start : start + clear + _FEATURES].astype(np.float32) / 32768
        found = encoder_training.lower_output(state, piece, cfg=cfg.encoder_config, books=cfg.encoder_valid_num_quantizers)[0]
        pieces.append(np.asarray(found).reshape(_FEATURES_BEFORE + _FEATURES // FRAME, -1, found.shape[-1])[_FEATURES_BEFORE:])
    return np.concatenate(pieces)[: len(wave) // FRAME]


def encode_voice(cfg: CodecConfig, params: dict[str, Any], wave: Integer[np.ndarray, " F"]) -> Integer[np.ndarray, "N K"]:
    """A voice's whole speech by the encoder, piece by piece."""
    pieces, clear = [], _ENCODED_BEFORE * FRAME
    padded = np.pad(wave, (clear, -len(wave) % _ENCODED))
    for start in range(0, len(padded) - clear, _ENCODED):
        piece = padded[start : start + clear + _ENCODED].astype(np.float32) / 32768
        pieces.append(encode_clip(cfg, params, piece)[_ENCODED_BEFORE:].astype(np.int16))
    return np.concatenate(pieces)[: len(wave) // FRAME]


def encode_clip(cfg: CodecConfig, params: dict[str, Any], wave: F32[np.ndarray, "..."]) -> I32[np.ndarray, "..."]:
    """A clip's codes [N K], by the encoder; padded so that few lengths are compiled."""
    graph, shapes = encoder_training.encoder_definition(cfg.encoder_config, cfg.encoder_valid_num_quantizers)
    padded = np.pad(wave, (0, -len(wave) % (64 * FRAME)))
    codes = _encode(graph, jax.tree.map(jnp.asarray, unflatten(params, shapes)), padded[None], np.array([len(wave)], np.int32))
    return np.asarray(codes[0])[: -(-len(wave) // FRAME)]


@functools.partial(jax.jit, static_argnames=("graph",))
def _encode(graph: Any, params: Any, wave: jax.Array, valid: jax.Array) -> jax.Array:
    return nnx.merge(graph, params)(wave, valid)


def decode_clip(cfg: Any, params: dict[str, Any], codes: I32[np.ndarray, "..."]) -> F32[np.ndarray, "..."]:
    """Codes [N K] -> wave [N*1920], by the decoder that streams."""
    graph, shapes = decoder_training.decoder_definition(cfg)
    tree = jax.tree.map(jnp.asarray, unflatten(params, shapes))
    state, pieces = init_state(cfg, 1), []
    padded = np.pad(codes, ((0, -len(codes) % _PIECE), (0, 0)))  # the decoder is causal: padding comes after all that is kept
    for start in range(0, len(padded), _PIECE):
        pcm, state = decode(graph, tree, jnp.asarray(padded[start : start + _PIECE, None]), state)
        pieces.append(np.asarray(pcm[0]))
    return np.concatenate(pieces)[: len(codes) * FRAME]
