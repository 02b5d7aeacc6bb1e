"""A wave [F] float32 -> a file in the format that its name ends in. libsndfile writes all of them."""

import os
from pathlib import Path

import numpy as np
import soundfile

from qwen3_jax.audio import check_finite, pcm16
from qwen3_jax.shapes import NpF32

FORMATS = {  # ending -> container and encoding
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
}


def check_name(path: str | os.PathLike[str]) -> Path:
    """The path, if a sound can be written there.

    Raises:
        ValueError: its ending names no format that is written.
        FileNotFoundError: its folder is not there.
        IsADirectoryError: it is a folder.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file in it, such as {file / 'speech.wav'}")
    if file.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: a name that ends in {file.suffix!r} is no format that is written: use {', '.join(FORMATS)}")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {file.parent}; make it first")
    return file


def write_sound(path: str | os.PathLike[str], pcm: NpF32["F"], sample_rate: int) -> None:
    """Write a mono file, 16 bits a sample where the format has bits. Errors as in ``check_name``.

    Args:
        path: its ending chooses the format, see ``FORMATS``.
        pcm: [F], in [-1, 1]; what is beyond is clipped.
        sample_rate: Hz.

    Raises:
        FloatingPointError: a sample is NaN or infinite.
    """
    file = check_name(path)
    container, encoding = FORMATS[file.suffix.lower()]
    samples = pcm16(pcm) if encoding == "PCM_16" else np.clip(check_finite(pcm), -1, 1)
    soundfile.write(file, samples, sample_rate, encoding, format=container)
