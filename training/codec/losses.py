"""Losses between waves [B F] -> scalars: spectra at several resolutions, and the adversarial ones. Differentiable, float32.

Sources: spectral convergence and log-magnitude terms of Parallel WaveGAN (arXiv 1910.11480); the mel term at several resolutions as
in the Descript codec (arXiv 2306.06546); least-squares adversarial and feature-matching losses of HiFi-GAN (arXiv 2010.05646).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.shapes import F32, Array
from training.latents.quantiser import mel_filters

RESOLUTIONS = (512, 1024, 2048)  # FFT sizes; the hop is a quarter
MEL_BINS = {512: 40, 1024: 80, 2048: 120}
_TINY = 1e-8
QUIET = 3e-5  # an amplitude below which differences do not count; teachers pause in digital silence


def spectrum(wave: F32[Array, "B F"], fft: int, hop: int) -> tuple[F32[Array, "B T {fft}//2+1"], F32[Array, "B T {fft}//2+1"]]:
    """Real and imaginary parts of Hann-windowed frames, T = (F - fft) // hop + 1, without padding; ``hop`` divides ``fft``.

    Frames are put together of whole hops: slices, whose gradient is cheap, where a gather's is a scatter.
    """
    window = jnp.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft) / fft), jnp.float32)
    steps = wave[:, : wave.shape[1] // hop * hop].reshape(len(wave), -1, hop)
    count = steps.shape[1] - fft // hop + 1
    frames = jnp.concatenate([steps[:, start : start + count] for start in range(fft // hop)], axis=-1)
    found = jnp.fft.rfft(frames * window)
    return found.real, found.imag


def magnitude(wave: F32[Array, "B F"], fft: int, hop: int) -> F32[Array, "B T {fft}//2+1"]:
    """Of the same frames; smooth at 0."""
    real, imaginary = spectrum(wave, fft, hop)
    return jnp.sqrt(jnp.square(real) + jnp.square(imaginary) + _TINY)


@functools.cache
def _filters(fft: int) -> np.ndarray:
    filters = mel_filters(MEL_BINS[fft], fft)
    return (filters / np.maximum(filters.sum(axis=1, keepdims=True), 1.0)).T  # means, so that wide bins do not count for more


def harmonic(made: F32[Array, "B F"], real: F32[Array, "B F"], resolutions: Sequence[int] = RESOLUTIONS[:2]) -> F32[Array, ""]:
    """How far the complex spectra are apart, |M - R| / |R| of all bins, weighted by exp(-f / 2 kHz): locked speech has its phases in the
    codes, but not that of its noise, which lies higher."""
    total = jnp.zeros(())
    for fft in resolutions:
        weight = jnp.exp(-jnp.arange(fft // 2 + 1) * (24000 / fft / 2000.0))
        m, r = spectrum(made, fft, fft // 4), spectrum(real, fft, fft // 4)
        off = jnp.sqrt(jnp.square(m[0] - r[0]) + jnp.square(m[1] - r[1]) + _TINY)
        size = jnp.sqrt(jnp.square(r[0]) + jnp.square(r[1]) + _TINY)
        total += jnp.sum(off * weight) / (jnp.sum(size * weight) + 1.0) / len(resolutions)  # of all rows: a silent one counts for little
    return total


def spectral(
    made: F32[Array, "B F"], real: F32[Array, "B F"], resolutions: Sequence[int] = RESOLUTIONS
) -> tuple[F32[Array, ""], dict[str, F32[Array, ""]]]:
    """How far the spectra are apart.

    Returns:
        Per resolution, averaged: convergence |M - R| / |R| + 0.5 mean |log M - log R| + mean |log mel M - log mel R|; and each of the
        three by name.
    """
    terms = dict.fromkeys(("convergence", "log", "mel"), jnp.zeros(()))
    for fft in resolutions:
        m, r = magnitude(made, fft, fft // 4), magnitude(real, fft, fft // 4)
        scale = 1.0 / len(resolutions)
        floor = fft / 4 * QUIET
        off = jnp.sqrt(jnp.sum(jnp.square(m - r)) + _TINY) / jnp.sqrt(jnp.sum(jnp.square(r)) + 1e-2)
        terms["convergence"] += scale * off
        terms["log"] += scale * jnp.mean(jnp.abs(jnp.log(m + floor) - jnp.log(r + floor)))
        mel = jnp.asarray(_filters(fft))
        terms["mel"] += scale * jnp.mean(jnp.abs(jnp.log(m @ mel + floor) - jnp.log(r @ mel + floor)))
    return terms["convergence"] + 0.5 * terms["log"] + terms["mel"], terms


Judgement = tuple[list[jax.Array], list[list[jax.Array]]]  # of each discriminator: its scores, and its layers' activations


def discriminator_loss(real: Judgement, made: Judgement) -> F32[Array, ""]:
    """Least squares: real to 1, made to 0; averaged over discriminators."""
    each = [jnp.mean(jnp.square(1 - r)) + jnp.mean(jnp.square(m)) for r, m in zip(real[0], made[0], strict=True)]
    return sum(each, jnp.zeros(())) / len(each)


def adversarial(made: Judgement) -> F32[Array, ""]:
    """The generator's: made to 1."""
    return sum((jnp.mean(jnp.square(1 - m)) for m in made[0]), jnp.zeros(())) / len(made[0])


def feature_matching(real: Judgement, made: Judgement) -> F32[Array, ""]:
    """Mean distance of the activations, each layer's relative to its real size."""
    pairs = [pair for r, m in zip(real[1], made[1], strict=True) for pair in zip(r, m, strict=True)]
    each = [jnp.mean(jnp.abs(jax.lax.stop_gradient(r) - m)) / (jnp.mean(jnp.abs(jax.lax.stop_gradient(r))) + 1e-3) for r, m in pairs]
    return sum(each, jnp.zeros(())) / len(each)
