"""A reference recording [F] at 24 kHz -> x-vector [H] and codes [N 16]: what cloning needs to know of a speaker.

Clips are padded to a few lengths, so that a new clip compiles nothing; padding changes no result (see codec/encoder.py and
model/x_vector.py).
"""

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from qwen3_jax.audio.recording import LOUDEST
from qwen3_jax.audio.samples import SAMPLE_RATE, mel_spectrogram
from qwen3_jax.model.frame import bucket
from qwen3_jax.model.model import Model, part
from qwen3_jax.runtime.allocation import give_back
from qwen3_jax.shapes import F32, I32, Array

SECOND_BUCKETS = (4, 8, 16, 32, 64)  # one trace each
_HOP = 256  # samples between frames of the mel
_DAMAGED = "the checkpoint's weights are damaged, so download or convert it again"


@functools.partial(jax.jit, static_argnames=("graph",))
def _codes(graph: Any, params: Any, wave: F32[Array, "B F"], valid: I32[Array, " B"]) -> I32[Array, "B N K"]:
    return nnx.merge(graph, params)(wave, valid)


@functools.partial(jax.jit, static_argnames=("graph",))
def _x_vector(graph: Any, params: Any, mel: F32[Array, "B F 128"], length: I32[Array, " B"]) -> F32[Array, "B H"]:
    return nnx.merge(graph, params)(mel, length)


def encode_codes(model: Model, wave: F32[np.ndarray, " F"]) -> I32[np.ndarray, "N K"]:
    """The clip's frames by the codec encoder: int32 [ceil(F / 1920), 16].

    Raises:
        ValueError: empty, not finite, or longer than the largest bucket.
        FloatingPointError: the encoder computed NaN or infinity.
    """
    _check(wave)
    valid = np.array([len(wave)], np.int32)
    codes = _codes(model.graphs.codec_encoder, part(model, "codec", "encoder"), _padded(wave, 1), valid)
    found = np.asarray(codes[0, : -(-len(wave) // model.codec_config.encode_downsample_rate)])
    _read_no_more(model)
    if (found < 0).any():
        raise FloatingPointError(f"the codec's encoder computed NaN or infinity from a clip whose samples are finite: {_DAMAGED}")
    return found


def encode_x_vector(model: Model, wave: F32[np.ndarray, " F"]) -> F32[np.ndarray, " H"]:
    """The clip's speaker embedding, float32 [H]; Base checkpoints only.

    Raises:
        ValueError: empty, not finite, longer than the largest bucket, or a checkpoint without a speaker encoder.
        FloatingPointError: the encoder computed NaN or infinity.
    """
    if model.graphs.speaker_encoder is None:
        raise ValueError(f"a {model.config.tts_model_type} checkpoint has no speaker encoder: load a Base checkpoint")
    _check(wave)
    mel = mel_spectrogram(wave)
    length = np.array([len(mel)], np.int32)
    found = np.asarray(_x_vector(model.graphs.speaker_encoder, part(model, "speaker_encoder"), _padded(mel, _HOP), length)[0])
    _read_no_more(model)
    if not np.isfinite(found).all():
        raise FloatingPointError(f"the speaker encoder computed NaN or infinity from a clip whose samples are finite: {_DAMAGED}")
    return found


def _read_no_more(model: Model) -> None:
    """The part that was read for this clip, and its work space, are free again: 0.5 GB at full size, which the heap would keep half of."""
    if model.later is not None:
        give_back()


def _check(wave: F32[np.ndarray, " F"]) -> None:
    wave = np.asarray(wave)
    if wave.ndim != 1 or not len(wave) or not np.issubdtype(wave.dtype, np.floating) or not (np.abs(wave) <= LOUDEST).all():
        raise ValueError(
            f"clip of shape {wave.shape}, {wave.dtype}: must be [samples], finite floats in [-1, 1], at least one; read it with load_audio"
        )


def _padded(array: np.ndarray, samples: int) -> np.ndarray:
    """[1, a bucket's worth, ...]; one entry of ``array`` is ``samples`` samples long."""
    seconds = bucket(-(-len(array) * samples // SAMPLE_RATE), SECOND_BUCKETS, "seconds of reference")
    target = -(-seconds * SAMPLE_RATE // samples)
    return np.pad(array, ((0, target - len(array)), *((0, 0) for _ in array.shape[1:])))[None]
