"""What a decoder may know before its first step: the books' main components -> the spectrogram's columns, by matrices alone.

The latent of a frame is linear in four columns of a log-mel spectrogram (latents.py), and the decoder's first two stretchings make four
steps of a frame. So its projections are set to carry the components through, and the stretchings to turn them back into columns: from
the start the first 80 channels at 50 Hz are the quantised spectrogram, the next are the frame's pitch, and the rest of the decoder
begins as a vocoder of both. Every
other weight stays random, and all of them train. One thousand steps without this had not found the formants yet.
"""

import numpy as np

from qwen3_jax.shapes import NpF32
from qwen3_jax.train.latents import BINS, COLUMNS, Latents
from qwen3_jax.train.vocoder import Flat

STEADY = 30.0  # a constant channel that keeps the RMS norm at the transformer's end from following the sound's level
_REST = 0.3  # of the random weights, where they share outputs with what is set


def show_spectrum(decoder: Flat, latents: Latents) -> Flat:
    """Put the way from books to spectrogram into a decoder's fresh parameters.

    Args:
        decoder: dotted path -> array; of `vocoder.fill_books`, so that the first channels are the whitened components.
        latents: what the books were fitted with.

    Raises:
        ValueError: the decoder is too narrow, or does not stretch a frame by 2 and 2 first.
    """
    size, steady = latents.latent_size, latents.latent_size
    wide, width = (decoder[f"pre_transformer.{name}.weight"].shape[0] for name in ("output_proj", "input_proj"))
    first, second = ("upsample.0.0.conv.weight", "upsample.1.0.conv.weight")
    if decoder[first].shape[2] != 2 or decoder[second].shape[2] != 2 or wide < 2 * size or wide < BINS or width <= steady:
        sizes = f"latent_dim {wide} must be twice that, hidden_size {width} more, and the first two stretchings by 2"
        raise ValueError(f"a latent of {size} components for {BINS} bins: {sizes}")
    made = {path: np.array(value) for path, value in decoder.items()}
    carry = np.arange(size)
    taken = made["pre_conv.conv.weight"]
    taken[:size] *= _REST
    taken[carry, carry, -1] = 1.0
    inward = made["pre_transformer.input_proj.weight"]
    inward[: size + 1] = 0.0
    inward[carry, carry] = 1.0
    made["pre_transformer.input_proj.bias"][steady] = STEADY
    outward = made["pre_transformer.output_proj.weight"]
    outward[:size] = 0.0
    outward[carry, carry] = np.sqrt((size + STEADY**2) / width)  # what the norm divided by
    half = made[first]
    half[:, : 2 * size] = 0.0
    half[carry, carry, 0] = 1.0
    half[carry, size + carry, 1] = 1.0
    quarter = made[second]
    shown = BINS + size - latents.components
    quarter[:, :shown] = 0.0
    for column, matrix in enumerate(columns(latents)):
        at = 0 if column < COLUMNS // 2 else size
        quarter[at : at + latents.components, :BINS, column % 2] = matrix
        pitch = np.arange(latents.components, size)
        quarter[at + pitch, BINS + pitch - latents.components, column % 2] = 1.0
    return made


def columns(latents: Latents) -> NpF32["4 C O"]:
    """For each column, whitened components [C] -> its 80 bins, as deviations from the mean in units of the spectrogram's spread."""
    back = latents.spread[: latents.components, None] * latents.basis  # [C 320]
    scale = np.sqrt(np.mean(np.sum(np.square(back), axis=0)))
    return np.moveaxis((back / scale).reshape(len(back), COLUMNS, BINS), 1, 0).astype(np.float32)
