"""The first stage of a decoder's training: codes -> the loudness that the vocoder it begins as (prior.py) needs, at 400 Hz.

Only the slow third of the decoder runs, and the error is that of twenty numbers, not of spectra: a step costs a fifth of a spectral one.
"""

import functools
from pathlib import Path
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
from qwen3_jax.train import prior
from qwen3_jax.train.data import Stream, keep
from qwen3_jax.train.latents import FRAME, Latents
from qwen3_jax.train.locking import TRACK, amplitudes
from qwen3_jax.train.vocoder import Flat, Held, decoder_definition, finish, heard, rate_at, to_blocks, update

STEPS = FRAME // TRACK  # of a frame
_PIECE = 750  # frames analysed at once: a minute
_QUIET = 0.05  # below it, an error counts as such; above, its ratio


def wanted(stream: Stream, latents: Latents, kept: Path) -> NpF32["N*32 20"]:
    """The loudness of a voice's locked speech; found once, and kept in a file."""
    if not kept.is_file():
        pieces = []
        for start in range(0, len(stream.locked) // FRAME, _PIECE):
            some = slice(start, start + _PIECE)
            wave = stream.locked[start * FRAME : (start + _PIECE) * FRAME].astype(np.float32) / 32768
            entry = stream.codes[: len(stream.locked) // FRAME][some, 1].astype(np.int32)
            tones, rest = amplitudes(wave, entry, latents.pitch, max(map(max, prior.GROUPS)))
            bands = np.stack([np.convolve(rest, taps, "same") for taps in prior.filters()])
            power = np.square(bands).reshape(len(bands), -1, TRACK).mean(axis=2)
            smooth = np.stack([np.convolve(each, np.full(5, 0.2), "same") for each in power])  # 12.5 ms
            pieces.append(prior.loudness(tones, np.sqrt(smooth).T.astype(np.float32)).astype(np.float16))
        keep(kept, lambda file: np.save(file, np.concatenate(pieces)))
    return np.load(kept, mmap_mode="r")


def loudness_of(decoder: Decoder, codes: Int["B M K"], crop: int, past: tuple[int, ...]) -> F32["20 B crop*32"]:
    """The loudness channels of the last ``crop`` frames; as `vocoder.decode_crop`, up to 400 Hz."""
    x, start, steps, needed = to_blocks(decoder, codes, crop, past)
    x, _ = decoder.decoder[1](x[:, :, -steps - next(needed) :], start.blocks[0], None)
    return x[prior.SLOW : prior.SLOW + prior.GAINS, :, -crop * STEPS :]


@functools.partial(jax.jit, static_argnames=("cfg", "crop", "held"), donate_argnames="state")
def step(
    state: dict[str, Any], codes: Int["B M K"], target: F32["B crop*32 20"], rate: float, *, cfg: CodecDecoderConfig, crop: int, held: Held
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """One step towards ``target``."""
    graph, shapes = decoder_definition(cfg)
    aim = jnp.moveaxis(jnp.arcsinh(target / _QUIET), -1, 0)

    def loss(trained: Flat) -> jax.Array:
        decoder = nnx.merge(graph, unflatten({**trained, **state["frozen"]}, shapes))
        return jnp.mean(jnp.abs(jnp.arcsinh(loudness_of(decoder, codes, crop, heard(cfg)) / _QUIET) - aim))

    off, gradients = jax.value_and_grad(loss)(state["trained"])
    trained, moments = update(gradients, state["moments"], state["trained"], rate_at(state["step"], rate), held)
    return finish(state, trained=trained, moments=moments), {"loudness": off, "gradient": optax.tree.norm(gradients)}
